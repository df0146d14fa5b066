"""Which model a plan was found for: a hash of what it is made of, whatever its weights are."""

from __future__ import annotations

import hashlib
import json

from torch import nn

from upshift.tuning.plan import Plan


def subject_of(model: nn.Module) -> str:
    """A short hash of a model's modules and parameters, equal for two models of the same architecture."""
    parts = {
        "modules": [type(module).__qualname__ for module in model.modules()],
        "parameters": [[name, list(p.shape), str(p.dtype)] for name, p in model.named_parameters()],
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def is_of_another(plan: Plan, model: nn.Module) -> bool:
    """Whether a plan was found for another model than this; False where nobody knows what it was found for."""
    return plan.subject is not None and plan.subject != subject_of(model)
