"""What a run may be resumed with: the same recipe, seed and data, and a few fields that may differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from upshift.core.files import finite
from upshift.errors import ConfigError
from upshift.workflows.model import RunRecord

# Everything else would make it another run.
RESUMABLE_FIELDS = {
    "epochs",
    "max_steps",
    "target",
    "patience",
    "evaluate_every",
    "log_every",
    "checkpoint_every_steps",
    "checkpoint_every_minutes",
    "keep_checkpoints",
    "max_nonfinite_steps",
    "variants",
    "description",
}


def check_same_run(before: Mapping[str, Any], now: RunRecord) -> None:
    """Refuse to resume a run whose recipe, seed or data have changed.

    Args:
        before: The document of the run's recipe.json.
        now: The record of what is asked for.

    Raises:
        ConfigError: It names each value that differs.
    """
    old = dict(_leaves(_part(before, "recipe")))
    new = dict(_leaves(finite(now.to_json()["recipe"])))
    changes = [
        f"{name} was {old.get(name)}, is {new.get(name)}"
        for name in [*new, *(name for name in old if name not in new)]
        if name.partition(".")[0] not in RESUMABLE_FIELDS and old.get(name) != new.get(name)
    ]
    if before.get("seed") != now.seed:
        changes.append(f"seed was {before.get('seed')}, is {now.seed}")
    if _part(before, "data_info").get("fingerprint") != now.info.fingerprint:
        changes.append("the data have changed")
    if changes:
        raise ConfigError(
            "a run can only be resumed with the recipe, seed and data that it began with",
            received="; ".join(changes),
            hint="repeat the options of the first command, or start a new run with another --out",
        )


def _part(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object of a document; empty where the file has something else there."""
    value = document.get(name)
    return value if isinstance(value, Mapping) else {}


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted names and values of a tree of JSON objects."""
    for name, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _leaves(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item
