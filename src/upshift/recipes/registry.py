"""How a recipe is found: by a built-in name, in a Python file, or in an installed package."""

from __future__ import annotations

import importlib
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upshift.errors import BadInputError, ConfigError, UnknownNameError

if TYPE_CHECKING:  # naming a recipe must not cost an import of torch
    from upshift.recipes.recipe import Recipe

_BUILT_IN = (
    "digits",
    "mnist-mlp",
    "mnist-mlp-small",
    "mnist-cnn",
    "mnist-keras-dense",
    "mnist-resnet50",
    "cifar10-simplecnn",
    "cifar10-net",
    "cifar10-resnet18",
    "sst2-transformer",
)


@dataclass(frozen=True, kw_only=True)
class RecipeOrigin:
    """Where a recipe came from: what `find_recipe` takes to find it again.

    Attributes:
        reference: The built-in name, the absolute path of the file, "package.module:NAME", or "python"
            for a recipe handed over as an object.
        file_sha256: Hash of the user's file when it was read; None for the others.
    """

    reference: str
    file_sha256: str | None = None


def recipe_names() -> tuple[str, ...]:
    """The names of the built-in recipes, in the order in which they are listed."""
    return _BUILT_IN


def find_recipe(reference: str | Path | Recipe) -> tuple[Recipe, RecipeOrigin]:
    """A recipe and where it came from.

    Args:
        reference: A built-in name, the path of a Python file that defines RECIPE, "package.module:RECIPE",
            or a recipe itself.

    Raises:
        UnknownNameError: No built-in recipe has this name.
        ConfigError: The file or module has no valid RECIPE; the error names it.
    """
    from upshift.recipes.recipe import Recipe

    if isinstance(reference, Recipe):
        return _checked(reference, "the recipe"), RecipeOrigin(reference="python")
    text = str(reference)
    if text in _BUILT_IN:
        module = importlib.import_module(f"upshift.recipes.{text.replace('-', '_')}")
        return typing.cast(Recipe, module.RECIPE), RecipeOrigin(reference=text)
    path = Path(text).expanduser()
    if isinstance(reference, Path) or path.suffix == ".py" or path.is_file():
        return _from_file(path)
    if ":" in text:
        return _from_module(text)
    raise UnknownNameError(
        "recipe",
        text,
        _BUILT_IN,
        hint="`upshift recipes` lists them; a recipe of your own is a path to a .py file or package.module:RECIPE",
    )


def _from_file(path: Path) -> tuple[Recipe, RecipeOrigin]:
    from upshift.core.reference import load_python_file

    if not path.is_file() or path.suffix != ".py":
        raise ConfigError(
            "a recipe file must be an existing .py file",
            received=path,
            hint="check the path, or name a built-in recipe: " + ", ".join(_BUILT_IN),
        )
    with _import_errors(str(path)):
        module = load_python_file(path)
    origin = RecipeOrigin(reference=str(path.resolve()), file_sha256=module.__upshift_sha256__)
    return _checked(_attribute(module, "RECIPE", str(path)), str(path)), origin


def _from_module(reference: str) -> tuple[Recipe, RecipeOrigin]:
    module_name, _, attribute = reference.partition(":")
    if module_name == "__main__" or not all(part.isidentifier() for part in module_name.split(".")):
        raise ConfigError(
            "a recipe in a package must be given as package.module:RECIPE", received=reference, hint="check the name"
        )
    with _import_errors(module_name):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise  # of what the module itself imports
            raise _NoSuchModuleError(error.name, reference) from error
    recipe = _checked(_attribute(module, attribute or "RECIPE", module_name), reference)
    return recipe, RecipeOrigin(reference=reference)


class _NoSuchModuleError(ConfigError):
    """A recipe's module is not there at all."""

    def __init__(self, missing: str, reference: str) -> None:
        super().__init__(
            "a recipe given as package.module:RECIPE must be in a module that Python finds",
            received=f"{reference!r}, and no module {missing!r}",
            hint="check the name, install its package, or name a .py file or a built-in recipe (`upshift recipes`)",
        )


class _import_errors:
    """Turn whatever a user's file raises while it is imported into a `ConfigError` that names the file."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, _NoSuchModuleError):
            return
        if isinstance(error, BadInputError):
            raise ConfigError(f"{self.place}: {error.rule}", received=error.received, hint=error.hint) from error
        if not isinstance(error, Exception | SystemExit):
            return
        line = _line_of(error, traceback, self.place)
        raise ConfigError(
            f"{self.place} must import without an error",
            received=f"{type(error).__name__}: {error}{line}",
            hint="mend the file; it may use upshift, torch and installed packages",
        ) from error


def _line_of(error: BaseException, traceback: Any, place: str) -> str:
    """Where in the user's own file an error arose, as " (line 3)"."""
    if isinstance(error, SyntaxError):
        return ""  # its message already tells the line
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == str(Path(place).resolve()):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return f" (line {line})" if line is not None else ""


def _attribute(module: Any, name: str, place: str) -> Any:
    if not hasattr(module, name):
        raise ConfigError(
            f"{place} must define {name}", received="a file without it", hint=f"end it with {name} = Recipe(...)"
        )
    return getattr(module, name)


def _checked(recipe: Any, place: str) -> Recipe:
    """The recipe if it is one, with each field of its type: a file can hold epochs=2.5, which no comparison catches."""
    from upshift.core.typed_fields import from_json
    from upshift.recipes.recipe import Recipe

    if not isinstance(recipe, Recipe):
        raise ConfigError(
            f"{place} must hold an upshift Recipe",
            received=type(recipe).__name__,
            hint="from upshift import Recipe; RECIPE = Recipe(name=..., model=...)",
        )
    try:
        for name, hint in typing.get_type_hints(Recipe).items():
            from_json(getattr(recipe, name), hint, name)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error.rule}", received=error.received, hint=error.hint) from error
    return recipe
