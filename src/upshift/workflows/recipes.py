"""`recipes`: what is built in."""

from __future__ import annotations

from typing import Any

from upshift.recipes.overrides import field_called as field_called
from upshift.recipes.registry import find_recipe, recipe_names


def recipes() -> list[dict[str, Any]]:
    """Name, description, data source and variants of each built-in recipe."""
    found = (find_recipe(name)[0] for name in recipe_names())
    return [
        {
            "name": recipe.name,
            "description": recipe.description,
            "data": recipe.data.source,
            "epochs": recipe.epochs,
            "batch_size": recipe.batch_size,
            "variants": list(recipe.variants),
        }
        for recipe in found
    ]
