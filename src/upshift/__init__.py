"""Train PyTorch models faster and run them faster, measured on your machine, with proof that nothing was lost.

Importing this package imports neither torch nor numpy: each name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upshift.data.config import AugmentConfig as AugmentConfig
    from upshift.data.config import DataConfig as DataConfig
    from upshift.errors import BadInputError as BadInputError
    from upshift.errors import UpshiftError as UpshiftError
    from upshift.inference.artifact import load as load
    from upshift.recipes.recipe import Recipe as Recipe
    from upshift.training.config import OptimizerConfig as OptimizerConfig
    from upshift.training.config import ScheduleConfig as ScheduleConfig
    from upshift.training.config import StageConfig as StageConfig
    from upshift.tuning.plan import Plan as Plan
    from upshift.workflows.callbacks import lightning_callback as lightning_callback
    from upshift.workflows.callbacks import transformers_callback as transformers_callback
    from upshift.workflows.emit import emit as emit
    from upshift.workflows.evaluate import evaluate as evaluate
    from upshift.workflows.optimize import optimize as optimize
    from upshift.workflows.predict import predict as predict
    from upshift.workflows.profile import profile as profile
    from upshift.workflows.report import report as report
    from upshift.workflows.run import run as run
    from upshift.workflows.train import train as train
    from upshift.workflows.tune import tune as tune

__version__ = "0.1.0"

_EXPORTS = {
    "AugmentConfig": "upshift.data.config",
    "BadInputError": "upshift.errors",
    "DataConfig": "upshift.data.config",
    "OptimizerConfig": "upshift.training.config",
    "Plan": "upshift.tuning.plan",
    "Recipe": "upshift.recipes.recipe",
    "ScheduleConfig": "upshift.training.config",
    "StageConfig": "upshift.training.config",
    "UpshiftError": "upshift.errors",
    "emit": "upshift.workflows.emit",
    "evaluate": "upshift.workflows.evaluate",
    "lightning_callback": "upshift.workflows.callbacks",
    "load": "upshift.inference.artifact",
    "optimize": "upshift.workflows.optimize",
    "predict": "upshift.workflows.predict",
    "profile": "upshift.workflows.profile",
    "report": "upshift.workflows.report",
    "run": "upshift.workflows.run",
    "train": "upshift.workflows.train",
    "transformers_callback": "upshift.workflows.callbacks",
    "tune": "upshift.workflows.tune",
}

__all__ = sorted([*_EXPORTS, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'upshift' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
