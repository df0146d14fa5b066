"""Code carried along: the source of a function or class with all that it uses of its own file.

An emitted file must run where upshift is not installed, and where a recipe's file is not. What it uses of these is
copied into it. Code of other installed packages is imported by its name, as the recipe has it.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upshift.errors import ConfigError
from upshift.tuning.emit.imports import KNOWN_IMPORTS, Import, needed_names
from upshift.tuning.emit.source_file import SourceFile

_OWN = "upshift"
_RULE = "code that is copied out of a file must import from upshift the very functions and classes that it uses"
_HINT = "at the top of the file, from upshift.… import NAME, under its own name"

# What stands for parts of upshift that speak of its command line: the same in fewer words.
_CONFIG_ERROR = '''
class ConfigError(ValueError):
    """A value of the wrong type or out of its range."""

    def __init__(self, rule: str, *, received: object, hint: str) -> None:
        super().__init__(f"{rule}; received {received}; hint: {hint}")
'''
_IMAGE_SHAPE = '''
def image_shape(input_shape: Sequence[int], model: str, min_side: int) -> tuple[int, int, int]:
    """(channels, height, width) of images that are large enough for a model's poolings."""
    channels, height, width = input_shape
    if min(height, width) < min_side:
        raise ValueError(f"{model} needs images of at least {min_side}×{min_side} pixels")
    return channels, height, width
'''
_STAND_INS = {
    f"{_OWN}.errors:ConfigError": _CONFIG_ERROR.strip("\n"),
    f"{_OWN}.models.shapes:image_shape": _IMAGE_SHAPE.strip("\n"),
}


@dataclass
class Carried:
    """Definitions copied from elsewhere, in an order in which they can be executed.

    Attributes:
        definitions: Source of each statement.
        names: What they define, and the file that each is from.
        imports: What they have from packages that are imported by name.
        builtins: Of Python's own names those that they use as such, and a file that does.
        sections: What `take` gave.
    """

    definitions: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    imports: dict[str, Import] = field(default_factory=dict)
    builtins: dict[str, str] = field(default_factory=dict)
    sections: list[str] = field(default_factory=list)
    _modules: dict[str, SourceFile] = field(default_factory=dict)
    _num_taken: int = 0

    def add(self, target: Any) -> str:
        """Copy a function, class or constant of upshift itself; gives its name."""
        return self._from_module(target.__module__, target.__qualname__)

    def add_reference(self, name: str, file: str | None) -> str:
        """Copy or import what a recipe refers to; gives the expression that stands for it.

        Args:
            name: "package.module:name", or "name" within `file`.
            file: The user's Python file; None for an importable module.

        Raises:
            ConfigError: Its source cannot be copied.
        """
        if file is not None:
            return self._from(self._module(file, Path(file)), name)
        module_name, _, attribute = name.partition(":")
        if module_name.partition(".")[0] == _OWN:
            return self._from_module(module_name, attribute)
        first, _, _ = attribute.partition(".")
        self._bind_import(first, Import(module_name, first), module_name)
        return attribute

    def check_free(self, code: str) -> None:
        """Refuse copied code that has names of the file that it is copied into, or hides Python's own from it.

        Args:
            code: What the file has beside copied code.

        Raises:
            ConfigError: It has.
        """
        names = defined_names(code)
        taken = names | set(KNOWN_IMPORTS) | {name for name in needed_names(code) if hasattr(builtins, name)}
        for name in sorted(self.names.keys() & taken):
            self._clash(name, self.names[name], "the emitted file")
        for name, imported in sorted(self.imports.items()):
            known = KNOWN_IMPORTS.get(name)
            if (name in taken and known is None) or (known is not None and known.target != imported.target):
                self._clash(name, imported.target, "the emitted file")

    def take(self) -> str:
        """The definitions that were added since the last call, as one section of a module."""
        taken, self._num_taken = self.definitions[self._num_taken :], len(self.definitions)
        parts = []
        for index, definition in enumerate(taken):
            follows_constant = index > 0 and _is_constant(definition) and _is_constant(taken[index - 1])
            parts.append(("" if index == 0 else "\n" if follows_constant else "\n\n\n") + definition)
        self.sections.append("".join(parts))
        return self.sections[-1]

    def _from_module(self, module_name: str, qualname: str) -> str:
        file = inspect.getsourcefile(importlib.import_module(module_name))
        assert file is not None, module_name
        return self._from(self._module(module_name, Path(file)), qualname)

    def _module(self, identity: str, path: Path) -> SourceFile:
        if identity not in self._modules:
            self._modules[identity] = SourceFile(path)
        return self._modules[identity]

    def _from(self, module: SourceFile, qualname: str) -> str:
        """Copy all statements that define a name, after what they use themselves."""
        wanted, done = [qualname.partition(".")[0]], set()
        statements: set[int] = set()
        while wanted:
            name = wanted.pop()
            if name in done:
                continue
            done.add(name)
            imported = module.imports_of(name)
            for key in imported:
                self._add_import(key, module.imports[key], module)
            if imported:
                continue
            for index in module.statements_of(name):
                if index not in statements:
                    statements.add(index)
                    self._refuse_late_imports(module, index)
                    wanted += sorted(needed_names(module.source_of(index)) | module.bound_by(index))
            if module.statements_of(name):
                self._bind(name, module)
            else:
                self._leave(name, module)
        for index in sorted(statements):
            self._define(module.source_of(index))
        return qualname

    def _refuse_late_imports(self, module: SourceFile, index: int) -> None:
        """An import within a function would only fail when the function is called, where upshift is not installed."""
        for name in module.late_imports(index):
            if name.partition(".")[0] == _OWN:
                raise ConfigError(_RULE, received=f"import of {name} within a function of {module.path}", hint=_HINT)

    def _define(self, definition: str) -> None:
        if definition not in self.definitions:
            self.definitions.append(definition)

    def _add_import(self, name: str, imported: Import, module: SourceFile) -> None:
        if imported.module.partition(".")[0] != _OWN:
            self._bind_import(name, imported, str(module.path))
            return
        stand_in = _STAND_INS.get(f"{imported.module}:{name}") if imported.attribute == name else None
        if stand_in is not None:
            self.names[name] = imported.module
            self._define(stand_in)
            for used in sorted(needed_names(stand_in)):
                if hasattr(builtins, used):
                    self._use_builtin(used, imported.module)
            return
        defined = self._definition_of(imported)
        if defined is None or defined.rpartition(":")[2] != name:
            raise ConfigError(_RULE, received=f"{name} in {module.path}", hint=_HINT)
        self._from_module(*defined.split(":"))

    def _definition_of(self, imported: Import) -> str | None:
        """Where upshift defines a name that may have been imported by way of another of its modules."""
        if imported.attribute is None:
            return None
        target = getattr(importlib.import_module(imported.module), imported.attribute, None)
        module_name = getattr(target, "__module__", imported.module)
        return None if inspect.ismodule(target) else f"{module_name}:{imported.attribute}"

    def _bind(self, name: str, module: SourceFile) -> None:
        place = str(module.path)
        other = self.imports[name].target if name in self.imports else self.builtins.get(name)
        if self.names.setdefault(name, place) != place or other is not None:
            self._clash(name, place, other or self.names[name])

    def _bind_import(self, name: str, imported: Import, place: str) -> None:
        other = self.names.get(name) or self.builtins.get(name)
        if self.imports.setdefault(name, imported).target != imported.target or other is not None:
            self._clash(name, place, other or self.imports[name].target)

    def _leave(self, name: str, module: SourceFile) -> None:
        """A name that the file neither defines nor imports by name."""
        is_builtin = hasattr(builtins, name)
        if any(not is_builtin or _exports(star, name) for star in module.star_imports):
            raise ConfigError(
                "code that is copied out of a file must import every name that it uses by name",
                received=f"{name} in {module.path}, which has an import *",
                hint="name it in an import, or refer to the model as package.module:name",
            )
        if is_builtin:  # others are local names of a function, or would fail in their own file too
            self._use_builtin(name, str(module.path))

    def _use_builtin(self, name: str, place: str) -> None:
        self.builtins.setdefault(name, f"Python itself, which {place} uses")
        if name in self.names or name in self.imports:
            self._clash(name, self.names.get(name) or self.imports[name].target, self.builtins[name])

    def _clash(self, name: str, place: str, other: str) -> None:
        raise ConfigError(
            "a name in code that is copied into one file must not stand for two things",
            received=f"{name} of {place} and of {other}",
            hint="rename it, or put the model into a package and refer to it as package.module:name",
        )


def _is_constant(definition: str) -> bool:
    return not isinstance(ast.parse(definition).body[0], ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def _exports(star: str, name: str) -> bool:
    """Whether an `import *` of a module may bind a name; a relative one may, as its package is not known here."""
    if star.startswith("."):
        return True
    exported = getattr(importlib.import_module(star), "__all__", None)
    return name in exported if exported is not None else not name.startswith("_") and name in vars(sys.modules[star])


def defined_names(code: str) -> set[str]:
    """The names that code defines at its top level."""
    names: set[str] = set()
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {inner.id for target in node.targets for inner in ast.walk(target) if isinstance(inner, ast.Name)}
    return names
