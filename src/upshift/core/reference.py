"""Code by name: how a model factory or a loss is found again in another process."""

from __future__ import annotations

import contextvars
import hashlib
import importlib
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from upshift.core.files import sha256_file
from upshift.errors import ArtifactError, BadInputError, ConfigError

_IMPORTING: contextvars.ContextVar[Path | None] = contextvars.ContextVar("importing", default=None)
_OWN = ("upshift.models.", "upshift.recipes.")
_WAY_OUT = "define it with def or class at the top level of a .py file, and pass values through model_args"


@dataclass(frozen=True, kw_only=True)
class CodeReference:
    """A function or class as data.

    Attributes:
        name: "package.module:name", or "name" within `file`.
        file: Absolute path of the user's Python file that defines it; None for an importable module.
        file_sha256: The file's hash when it was referred to.
    """

    name: str
    file: str | None = None
    file_sha256: str | None = None

    @property
    def is_own(self) -> bool:
        """Whether it is defined in upshift itself (and not merely reachable through it)."""
        module, _, attribute = self.name.partition(":")
        if self.file is not None or not module.startswith(_OWN) or not attribute.isidentifier():
            return False
        try:
            found = getattr(importlib.import_module(module), attribute, None)
        except ImportError:
            return False
        return getattr(found, "__module__", None) == module

    def resolve(self) -> Any:
        """The function or class.

        Raises:
            ArtifactError: The file is missing or has changed, or the module has no such name.
        """
        try:
            if self.file is not None:
                found: Any = load_python_file(self._unchanged_file())
                attribute = self.name
            else:
                module_name, _, attribute = self.name.partition(":")
                if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
                    raise ImportError("not of the form package.module:name")
                found = importlib.import_module(module_name)
            for part in attribute.split("."):
                found = getattr(found, part)
        except BadInputError:
            raise
        except Exception as error:  # importing runs other people's code, which may raise anything
            raise ArtifactError(
                "code that a run refers to must be importable by its name",
                received=f"{self.name!r}: {type(error).__name__}: {error}",
                hint="install the package that defines it, in the version that the run was trained with",
            ) from error
        return found

    def _unchanged_file(self) -> Path:
        path = Path(self.file or "")
        if not path.is_absolute():
            raise ArtifactError(
                "a recipe file must be named by its absolute path",
                received=path,
                hint="train again: a record that names code beside itself may not be yours",
            )
        if not path.is_file() or sha256_file(path) != self.file_sha256:
            raise ArtifactError(
                "the recipe file of a run must be where it was, unchanged",
                received=f"{path} ({'changed' if path.is_file() else 'missing'})",
                hint="put the file back; an artifact never carries code",
            )
        return path


def reference_to(target: Callable[..., Any], *, field: str) -> CodeReference:
    """The reference by which another process finds a function or class.

    Args:
        target: A top-level function or class of an importable module, of a file loaded by
            `load_python_file`, or of the running script.
        field: The recipe's field that holds it, for the error.

    Raises:
        ConfigError: It is a lambda, a closure, a partial, a bound method, or was made in a notebook.
    """
    module_name = getattr(target, "__module__", None)
    qualname = getattr(target, "__qualname__", None)
    module = sys.modules.get(module_name or "")
    if module is None or qualname is None or "<" in qualname or _attribute(module, qualname) is not target:
        raise ConfigError(
            f"{field} must be a function or class that can be found again by its name",
            received=f"{module_name}.{qualname}" if qualname else repr(target),
            hint=_WAY_OUT,
        )
    if module_name != "__main__" and not hasattr(module, "__upshift_sha256__"):
        return CodeReference(name=f"{module_name}:{qualname}")
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file():
        raise ConfigError(f"{field} must be defined in a file", received=f"{module_name}.{qualname}", hint=_WAY_OUT)
    path = Path(file).resolve()
    digest = getattr(module, "__upshift_sha256__", None) or sha256_file(path)
    return CodeReference(name=qualname, file=str(path), file_sha256=digest)


def reference_to_factory(target: Callable[..., Any]) -> CodeReference:
    """The reference to a model factory, under the rule of `makes_a_module`.

    Raises:
        ConfigError: It cannot be found again by name, or does not say that it makes a model.
    """
    reference = reference_to(target, field="model")
    if not makes_a_module(target):
        raise ConfigError(
            "model must be a torch.nn.Module class, or a function annotated to return one",
            received=reference.name,
            hint=f"annotate it: def {reference.name.rpartition(':')[2]}(...) -> nn.Module",
        )
    return reference


def _attribute(module: types.ModuleType, qualname: str) -> Any:
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def makes_a_module(target: Any) -> bool:
    """Whether a callable says that it makes a model: an nn.Module class, or a function annotated to return one.

    A recipe.json or manifest names its factory, and naming is calling: without this check such a file
    could have any function of any package called with arguments of its choice.
    """
    if isinstance(target, type):
        return issubclass(target, nn.Module)
    try:
        returned = typing.get_type_hints(target).get("return")
    except (TypeError, NameError, AttributeError):
        return False
    return isinstance(returned, type) and issubclass(returned, nn.Module)


def load_python_file(path: Path) -> Any:
    """Import a Python file of the user's as a module of its own, once a process, path and content.

    The source is compiled here: Python's bytecode cache tells versions of a file apart by whole seconds.
    """
    path = path.resolve()
    source = path.read_bytes()
    digest = hashlib.sha256(source).hexdigest()
    identity = hashlib.sha256(f"{path}\0{digest}".encode()).hexdigest()[:12]
    name = f"upshift_user_{path.stem}_{identity}"
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__file__ = str(path)
        module.__dict__["__upshift_sha256__"] = digest
        code = compile(source, str(path), "exec", dont_inherit=True)
        sys.modules[name] = module
        importing = _IMPORTING.set(path)
        try:
            exec(code, module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
        finally:
            _IMPORTING.reset(importing)
    return sys.modules[name]


def refuse_while_importing(verb: str) -> None:
    """Refuse to start work from a file that is only being imported to find a model in it.

    A script that trains without a guard would otherwise train again in every process that makes its model.

    Raises:
        ConfigError: `load_python_file` is at work.
    """
    path = _IMPORTING.get()
    if path is not None:
        raise ConfigError(
            f"a script that defines its model must guard what it does, as {verb} imports it again to make the model",
            received=f"{path} calling upshift.{verb} while it is imported",
            hint=f'put the call under: if __name__ == "__main__": (upshift.{verb}(...))',
        )
