"""The top level of a Python file, read and not executed: what each statement binds, changes and imports."""

from __future__ import annotations

import ast
import tokenize
from collections.abc import Iterator
from pathlib import Path

from upshift.tuning.emit.imports import Import


class SourceFile:
    """The top level of a Python file: what each of its statements binds and changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with tokenize.open(path) as stream:
            text = stream.read()
        # As Python counts lines: it goes on after a form feed, and so within strings.
        self._lines = text.split("\n")
        self._body = [node for node in ast.parse(text).body if not _is_main_guard(node)]
        self.imports: dict[str, Import] = {}
        self.star_imports: list[str] = []
        self._bound: dict[int, set[str]] = {}
        for index, node in enumerate(self._body):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._note_imports(node)
            else:
                self._bound[index] = set(_bound_names(node))

    def _note_imports(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            if isinstance(node, ast.ImportFrom):
                if alias.name == "*":
                    self.star_imports.append("." * node.level + (node.module or ""))
                elif node.module != "__future__":
                    self.imports[alias.asname or alias.name] = Import(node.module or "", alias.name)
            elif alias.asname is not None:
                self.imports[alias.asname] = Import(alias.name)
            else:
                self.imports[alias.name] = Import(alias.name)  # under a dotted key where it is `import a.b`

    def imports_of(self, name: str) -> list[str]:
        """The keys of the imports that bind a name."""
        return [key for key in self.imports if key.partition(".")[0] == name]

    def statements_of(self, name: str) -> list[int]:
        """The statements that define a name or change what it stands for."""
        return [index for index, bound in self._bound.items() if name in bound]

    def bound_by(self, index: int) -> set[str]:
        return self._bound[index]

    def late_imports(self, index: int) -> Iterator[str]:
        """Modules that a statement imports when it, or a function in it, is executed."""
        for node in ast.walk(self._body[index]):
            if isinstance(node, ast.ImportFrom):
                yield node.module or ""
            elif isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)

    def source_of(self, index: int) -> str:
        """A statement with its decorators, the comment above it, and the docstring of a constant below it."""
        node = self._body[index]
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))]) - 1
        while first > 0 and self._lines[first - 1].startswith("#"):
            first -= 1
        last = node.end_lineno or node.lineno
        following = self._body[index + 1] if index + 1 < len(self._body) else None
        if isinstance(node, ast.Assign | ast.AnnAssign) and _is_docstring(following):
            assert following is not None
            last = following.end_lineno or last
        return "\n".join(self._lines[first:last])


def _bound_names(node: ast.stmt) -> Iterator[str]:
    """Names that a statement of the top level binds, or changes an item or attribute of."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
        return
    if isinstance(node, ast.Expr):
        if isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
            yield from _root(node.value.func)
        return
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield inner.name
        elif isinstance(inner, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in inner.names)
        elif isinstance(inner, ast.Name | ast.Attribute | ast.Subscript) and isinstance(inner.ctx, ast.Store | ast.Del):
            yield from _root(inner)


def _root(node: ast.expr) -> Iterator[str]:
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    if isinstance(node, ast.Name):
        yield node.id


def _is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def _is_docstring(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
