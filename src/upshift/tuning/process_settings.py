"""Settings of the whole process that a plan in a loop of the user's own changes, and what they were before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from upshift.core.malloc import keep_freed_memory, keeps_freed_memory
from upshift.training.execution import MAX_VARIANTS_OF_A_BLOCK

if TYPE_CHECKING:
    from upshift.tuning.plan import Plan


@dataclass(frozen=True)
class _Setting:
    read: Callable[[], Any]
    write: Callable[[Any], None]


def _recompile_limit() -> int:
    return int(torch._dynamo.config.recompile_limit)


def _set_recompile_limit(limit: int) -> None:
    torch._dynamo.config.recompile_limit = limit


_SETTINGS = {
    "num_threads": _Setting(torch.get_num_threads, torch.set_num_threads),
    "keep_freed_memory": _Setting(keeps_freed_memory, keep_freed_memory),
    "recompile_limit": _Setting(_recompile_limit, _set_recompile_limit),
}
_changed: dict[str, tuple[Any, Any]] = {}
"""Of each setting that a plan has changed: what it was before the first plan, and what the last plan made of it."""


def set_process(plan: Plan) -> None:
    """Set what a plan wants of the process; what an earlier plan has set, and this one says nothing of, is put back."""
    torch.set_float32_matmul_precision("high" if plan.precision == "tf32" else "highest")
    set_to(
        {
            "num_threads": plan.num_threads,
            "keep_freed_memory": plan.keep_freed_memory or None,
            "recompile_limit": _enough_for_blocks() if plan.compile == "regional" else None,
        }
    )


def set_by_plans() -> dict[str, Any]:
    """The settings that are as a plan has made them: for `set_to`, to come back to them."""
    return {name: value for name, (_, value) in _changed.items() if _SETTINGS[name].read() == value}


def set_to(wanted: Mapping[str, Any]) -> None:
    """Set what is given, and put back the rest of what plans have changed; what somebody else has changed since stays.

    Args:
        wanted: By name; None puts back too.
    """
    for name, setting in _SETTINGS.items():
        value = wanted.get(name)
        if value is None and name not in _changed:
            continue
        now = setting.read()
        before, of_plan = _changed.pop(name, (now, now))
        if now != of_plan:
            before = now
        if value is not None:
            _changed[name] = before, value
        target = before if value is None else value
        if target != now:
            setting.write(target)


def _enough_for_blocks() -> int:
    return max(_recompile_limit(), MAX_VARIANTS_OF_A_BLOCK)
