"""A plan in the loop of Transformers' `Trainer`: its callback."""

from __future__ import annotations

from typing import Any

from upshift.errors import ConfigError, MissingExtraError
from upshift.tuning.apply import says_how_many_workers
from upshift.tuning.framework import PlanInFramework
from upshift.tuning.plan import Plan


def transformers_callback(plan: Plan) -> Any:
    """A `transformers.TrainerCallback` that trains by a plan; see `upshift.transformers_callback`."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("transformers", extra="transformers", purpose="a callback for its Trainer") from error

    class PlanCallback(transformers.TrainerCallback):  # type: ignore[misc] # not imported for type checks
        """Executes as a plan says, from the first step of `Trainer.train` to its last.

        transformers tells a callback nothing of an error: after one, the plan stays applied.
        """

        def __init__(self) -> None:
            self._in_loop = PlanInFramework(plan)

        def on_init_end(self, args: Any, state: Any, control: Any, **of_trainer: Any) -> None:
            if says_how_many_workers(plan):
                args.dataloader_num_workers = plan.num_workers
                if plan.num_workers == 0:  # torch refuses settings of workers where there are none
                    args.dataloader_persistent_workers, args.dataloader_prefetch_factor = False, None
            if args.world_size > 1:
                self._in_loop.lay_out(of_trainer["model"])

        def on_train_begin(self, args: Any, state: Any, control: Any, **of_trainer: Any) -> None:
            _refuse_what_wraps_the_model(args, plan)
            # accelerate's wrapper around the optimizer steps it; the kernels are those of the one within.
            optimizer = getattr(of_trainer["optimizer"], "optimizer", of_trainer["optimizer"])
            self._in_loop.begin(of_trainer["model"], [optimizer], is_distributed=args.world_size > 1)

        def on_train_end(self, args: Any, state: Any, control: Any, **of_trainer: Any) -> None:
            self._in_loop.end()

    return PlanCallback()


def _refuse_what_wraps_the_model(args: Any, plan: Plan) -> None:
    if args.torch_compile:
        raise ConfigError(
            "a plan says itself whether to compile",
            received=f'torch_compile=True, and a plan with compile="{plan.compile}"',
            hint="leave torch_compile out of the TrainingArguments",
        )
    if args.n_gpu > 1:
        raise ConfigError(
            "a plan is for one device a process",
            received=f"a Trainer that copies its model to {args.n_gpu} devices in one process",
            hint="start it by torchrun, which makes a process for each",
        )
