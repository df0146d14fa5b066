"""Which columns of a parquet dataset are the input and the label."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from upshift.data.config import DataConfig
from upshift.data.dataset import Kind
from upshift.errors import DataError, UnknownNameError

LABEL_NAMES = ("label", "labels", "target", "class", "y")


@dataclass(frozen=True)
class Columns:
    """The columns that make a dataset of a parquet file.

    Attributes:
        kind: What the inputs are.
        inputs: The image or text column, or the feature columns.
        label: The label column.
        label_names: Class names, where the file's metadata has them.
    """

    kind: Kind
    inputs: tuple[str, ...]
    label: str
    label_names: tuple[str, ...] | None


def find_columns(schema: Any, config: DataConfig, description: str) -> Columns:
    """Read a `pyarrow.Schema`: its Hugging Face features where it has them, else its types.

    Raises:
        UnknownNameError: A configured column is not there.
        DataError: The input or the label cannot be told.
    """
    kinds = _column_kinds(schema)
    for name in (config.input_column, config.label_column, *config.feature_columns):
        if name is not None and name not in kinds:
            raise UnknownNameError("a column", name, kinds)
    features = _features(schema)
    label = config.label_column or _find_label(kinds, features, description)
    names = features.get(label, {}).get("names")
    label_names = tuple(map(str, names)) if isinstance(names, list) else None
    # Datasets often have their classes in words, as `label_text` beside `label`: they are the answer, not an input.
    candidates = {name: kind for name, kind in kinds.items() if name not in (label, f"{label}_text")}
    if config.feature_columns:
        _require_numeric(config.feature_columns, kinds)
        return Columns("tabular", config.feature_columns, label, label_names)
    if config.input_column is not None:
        named = kinds[config.input_column]
        if named == "other":
            raise DataError(
                "data.input_column must hold images, texts or numbers",
                received=f"{config.input_column} of type {schema.field(config.input_column).type}",
                hint="name another column",
            )
        return Columns(named, (config.input_column,), label, label_names)
    single: tuple[Kind, ...] = ("image", "text")
    for kind in single:
        found = [name for name, of in candidates.items() if of == kind]
        if len(found) == 1:
            return Columns(kind, (found[0],), label, label_names)
        if found:
            raise DataError(
                f"the input of {description} must be one column",
                received=f"{kind} columns {', '.join(found)}",
                hint=f"--set data.input_column={found[0]}",
            )
    numeric = tuple(name for name, of in candidates.items() if of == "tabular")
    if not numeric:
        raise DataError(
            f"{description} must have a column of images, texts or numbers beside the label",
            received=f"columns {', '.join(kinds)}",
            hint="--set data.input_column=NAME",
        )
    return Columns("tabular", numeric, label, label_names)


def _column_kinds(schema: Any) -> dict[str, Any]:
    """The kind of input that each column could be; "other" where none."""
    import pyarrow.types as types

    features = _features(schema)
    kinds: dict[str, Any] = {}
    for field in schema:
        of = field.type.value_type if types.is_dictionary(field.type) else field.type
        is_image = features.get(field.name, {}).get("_type") == "Image"
        if is_image or types.is_binary(of) or types.is_large_binary(of):
            kinds[field.name] = "image"
        elif types.is_struct(of):
            kinds[field.name] = "image" if of.get_field_index("bytes") >= 0 else "other"
        elif types.is_string(of) or types.is_large_string(of):
            kinds[field.name] = "text"
        elif types.is_integer(of) or types.is_floating(of) or types.is_boolean(of):
            kinds[field.name] = "tabular"
        else:
            kinds[field.name] = "other"
    return kinds


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Features from the metadata that the package `datasets` writes; nothing of it is trusted to be there."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    if not isinstance(features, Mapping):
        return {}
    return {name: dict(feature) for name, feature in features.items() if isinstance(feature, Mapping)}


def _find_label(kinds: Mapping[str, str], features: Mapping[str, Mapping[str, Any]], description: str) -> str:
    for name in LABEL_NAMES[:2]:
        if kinds.get(name) in ("tabular", "text"):
            return name
    of_classes = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel" and name in kinds]
    named = [name for name in LABEL_NAMES if kinds.get(name) in ("tabular", "text")]
    found = of_classes or named[:1]
    if len(found) == 1:
        return found[0]
    raise DataError(
        f"the label of {description} must be one column",
        received=f"class columns {', '.join(found)}" if found else f"columns {', '.join(kinds)}, none called label",
        hint=f"--set data.label_column={found[0] if found else 'NAME'}",
    )


def _require_numeric(columns: tuple[str, ...], kinds: Mapping[str, str]) -> None:
    other = [name for name in columns if kinds[name] != "tabular"]
    if other:
        raise DataError(
            "data.feature_columns must hold numbers", received=", ".join(other), hint="leave them out, or encode them"
        )
