"""The names that code takes from elsewhere, import statements for them, and a module of such code."""

from __future__ import annotations

import ast
import re
import symtable
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from upshift.tuning.emit.source import LINE_LENGTH, lines


@dataclass(frozen=True)
class Import:
    """What a name stands for: a module, or an attribute of one.

    Attributes:
        module: As "torch.nn".
        attribute: None for the module itself.
    """

    module: str
    attribute: str | None = None

    @property
    def target(self) -> str:
        """What is bound: `import a.b as c` and `from a import b as c` bind the same."""
        return self.module if self.attribute is None else f"{self.module}.{self.attribute}"


# What emitted code may use without saying so; carried code brings its own imports.
KNOWN_IMPORTS = {
    "Accelerator": Import("accelerate", "Accelerator"),
    "Any": Import("typing", "Any"),
    "Callable": Import("collections.abc", "Callable"),
    "EarlyStopping": Import("lightning.pytorch.callbacks", "EarlyStopping"),
    "F": Import("torch.nn", "functional"),
    "Iterable": Import("collections.abc", "Iterable"),
    "Iterator": Import("collections.abc", "Iterator"),
    "LambdaLR": Import("torch.optim.lr_scheduler", "LambdaLR"),
    "Path": Import("pathlib", "Path"),
    "contextmanager": Import("contextlib", "contextmanager"),
    "TorchDynamoPlugin": Import("accelerate.utils", "TorchDynamoPlugin"),
    "ctypes": Import("ctypes"),
    "fnmatch": Import("fnmatch"),
    "json": Import("json"),
    "lightning": Import("lightning"),
    "math": Import("math"),
    "nn": Import("torch", "nn"),
    "np": Import("numpy"),
    "platform": Import("platform"),
    "pytorch_optimizer": Import("pytorch_optimizer"),
    "random": Import("random"),
    "save_file": Import("safetensors.torch", "save_file"),
    "torch": Import("torch"),
    "transformers": Import("transformers"),
}


def module(docstring: str, sections: Sequence[str], imports: Mapping[str, Import]) -> str:
    """The text of a module: its docstring, the imports that its code uses, and its sections.

    Args:
        docstring: Its text, without quotes.
        sections: Code, two empty lines apart.
        imports: Names that carried code has from elsewhere, beside `KNOWN_IMPORTS`.
    """
    body = "\n\n\n".join(section.strip("\n") for section in sections if section) + "\n"
    known = {**KNOWN_IMPORTS, **imports}
    needed = needed_names(body)
    # A dotted key is an `import a.b`, which binds a.
    used = {name: imported for name, imported in known.items() if name.partition(".")[0] in needed}
    header = f'"""{docstring.strip()}\n"""\n\nfrom __future__ import annotations\n\n'
    gap = "\n\n" if re.match(r"def |class |@", body) else "\n"
    return header + import_block(used) + gap + body


def imported_modules(code: str) -> set[str]:
    """The first names of the modules that code imports, within functions too: "torch" of `torch.nn`."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            modules.add(node.module)
    return {name.partition(".")[0] for name in modules}


def import_block(used: Mapping[str, Import]) -> str:
    """Import statements in the order of isort: the standard library, then other packages."""

    def rank(imported: Import) -> bool:
        return imported.module.partition(".")[0] not in sys.stdlib_module_names

    blocks = []
    for is_other in (False, True):
        chosen = {name: imported for name, imported in used.items() if rank(imported) is is_other}
        rows = [
            f"import {imported.module}" + (f" as {name}" if name != imported.module else "")
            for name, imported in sorted(chosen.items(), key=lambda pair: pair[1].module)
            if imported.attribute is None
        ]
        plain: dict[str, list[str]] = {}
        renamed: dict[str, list[str]] = {}
        for name, imported in chosen.items():
            if imported.attribute == name:
                plain.setdefault(imported.module, []).append(name)
            elif imported.attribute is not None:
                renamed.setdefault(imported.module, []).append(f"{imported.attribute} as {name}")
        for of_module in sorted(plain.keys() | renamed.keys()):
            if of_module in plain:
                rows.append(_from_import(of_module, sorted(plain[of_module], key=_isort_key)))
            rows += [f"from {of_module} import {name}" for name in sorted(renamed.get(of_module, []))]
        if rows:
            blocks.append("\n".join(rows))
    return "\n\n".join(blocks) + "\n"


def _isort_key(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2), name


def _from_import(of_module: str, names: Sequence[str]) -> str:
    row = f"from {of_module} import {', '.join(names)}"
    if len(row) <= LINE_LENGTH:
        return row
    return lines(f"from {of_module} import (", [f"    {name}," for name in names], ")")


def needed_names(code: str) -> set[str]:
    """The names that code takes from outside of itself; builtins too, as a file may have others of their names."""
    tree = ast.parse(code)
    table = symtable.symtable(code, "<emitted>", "exec")
    bound = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    used = set(_globals_of(table)) | set(_annotation_names(tree))
    return used - bound


def _globals_of(table: symtable.SymbolTable) -> Iterator[str]:
    at_top = table.get_type() == "module"
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (symbol.is_global() or at_top):
            yield symbol.get_name()
    for child in table.get_children():
        yield from _globals_of(child)


def _annotation_names(tree: ast.AST) -> Iterator[str]:
    """Names in annotations, which the symbol table leaves out where annotations are not evaluated."""
    for node in ast.walk(tree):
        annotations = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        for annotation in annotations:
            if isinstance(annotation, ast.AST):
                yield from _names(annotation)


def _names(annotation: ast.AST) -> Iterator[str]:
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                quoted = ast.parse(node.value, mode="eval")
            except SyntaxError:
                continue  # the text of a Literal or an Annotated, which is no code
            yield from _names(quoted)
