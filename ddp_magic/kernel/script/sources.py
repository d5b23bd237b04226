"""The text of the notebook's functions and classes, where it says all that they are."""

from __future__ import annotations

import ast
import copy
import functools
import linecache
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddp_magic.kernel.script.unchanged import functions_in, is_unchanged
from ddp_magic.kernel.values.names import names_of

_FUTURE_ANNOTATIONS = annotations.compiler_flag  # of `from __future__ import annotations`


@dataclass(frozen=True)
class Source:
    """A statement that defines a name.

    Attributes:
        text: The statement.
        now: Names that it reads where it stands: decorators, base classes, default values.
        called: Those among them that it may call.
        later: Names that the bodies of its functions read.
        touched: Those that a call of it reads, and so may change.
        place: Where it stands in the notebook, to keep the order.
        future: Whether its annotations are not evaluated (`from __future__ import annotations`).
        sets: Names of outer scopes that its functions assign.
    """

    text: str
    now: frozenset[str]
    called: frozenset[str] = frozenset()
    later: frozenset[str] = frozenset()
    touched: frozenset[str] = frozenset()
    place: tuple[int, int] = (0, 0)
    future: bool = False
    sets: frozenset[str] = frozenset()


def source_of(
    name: str,
    value: Any,  # noqa: ANN401 -- the user's
    home: Mapping[str, Any],
    files: Sequence[str],
) -> Source | None:
    """Return the statement of the notebook that has made a name's value; None if there is none.

    A statement in a block or a function is none, since it may depend on what surrounds it, and a
    value that was changed afterwards has none.

    Args:
        name: The name.
        value: Its value.
        home: The notebook's namespace.
        files: The files of its cells, oldest first.
    """
    path = getattr(value, "__qualname__", None)
    if not isinstance(value, (type, types.FunctionType, functools._lru_cache_wrapper)):
        return None
    if path not in (name, "<lambda>"):
        first, *rest = str(path).split(".")
        found = functools.reduce(lambda o, n: getattr(o, n, None), rest, home.get(first))
        return Source(f"{name} = {path}", frozenset([first])) if found is value else None
    codes = list(_codes(value, files))
    for number, file in sorted(enumerate(files), reverse=True):
        if codes and file not in (code.co_filename for code in codes):
            continue
        lines = linecache.getlines(file)
        for node in reversed(statements(file)):
            if _binds(node, name, value) and all(_is_in(code, file, node) for code in codes):
                if not is_unchanged(value, node, home):
                    return None
                return _read(node, value, codes, (number, node.lineno), lines)
    return None


def _read(
    node: ast.stmt,
    value: object,
    codes: Sequence[types.CodeType],
    place: tuple[int, int],
    lines: Sequence[str],
) -> Source:
    now, later = reads(node)
    outlined = outline(node)
    calls = [*getattr(node, "decorator_list", ()), *getattr(node, "keywords", ())]
    calls += [part for part in ast.walk(outlined) if isinstance(part, ast.Call)]
    hooked = isinstance(value, type) and any(
        base.__module__ == "__main__" and "__init_subclass__" in vars(base)
        for base in value.__mro__[1:]
    )
    calls += node.bases if hooked and isinstance(node, ast.ClassDef) else []
    called = {n.id for call in calls for n in ast.walk(call) if isinstance(n, ast.Name)}
    touched = later if isinstance(node, ast.ClassDef) else _touched(node)
    future = any(code.co_flags & _FUTURE_ANNOTATIONS for code in codes)
    outer = [part for part in ast.walk(node) if isinstance(part, (ast.Global, ast.Nonlocal))]
    sets = frozenset(name for part in outer for name in part.names)
    return Source(_text_of(node, lines), now, now & called, later, touched, place, future, sets)


def _touched(function: ast.stmt) -> frozenset[str]:
    """Return the names that a function reads when it is called, without what it defines."""
    shallow = copy.deepcopy(function)
    if isinstance(shallow, (ast.FunctionDef, ast.AsyncFunctionDef)):
        shallow.body = [outline(part) for part in shallow.body]
    return names_of(ast.Module([shallow], [])).reads


def reads(node: ast.stmt) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names that a statement reads where it stands, and all that it may read."""
    whole = names_of(ast.Module([node], [])).reads
    now = names_of(ast.Module([outline(node)], [])).reads
    return now, whole


def outline(node: ast.stmt) -> ast.stmt:
    """Return a statement without the bodies of its functions."""
    outlined: ast.stmt = _Outline().visit(copy.deepcopy(node))
    return outlined


class _Outline(ast.NodeTransformer):
    def visit_FunctionDef(self, node: Any) -> ast.AST:  # noqa: ANN401 -- async too
        node.body = [ast.Pass()]
        return self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 -- ast's

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        node.body = ast.Constant(None)
        return self.generic_visit(node)


def statements(file: str) -> list[ast.stmt]:
    """Return the statements of a file of the notebook's."""
    return _parsed("".join(linecache.getlines(file)))


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> list[ast.stmt]:
    try:
        return ast.parse(text).body
    except SyntaxError:  # a file that is not Python's
        return []


def _codes(value: object, files: Sequence[str]) -> Iterator[types.CodeType]:
    """Yield the code of the notebook's cells in a function, or in a class's own functions."""
    members = vars(value).values() if isinstance(value, type) else [value]
    for member in members:
        for function in functions_in(member):
            if function.__code__.co_filename in files:
                yield function.__code__


def _binds(node: ast.stmt, name: str, value: Any) -> bool:  # noqa: ANN401 -- any
    match node:
        case ast.ClassDef():
            return node.name == name and isinstance(value, type)
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            wraps, inner = 0, value
            while hasattr(inner, "__wrapped__") and wraps <= len(node.decorator_list):
                wraps, inner = wraps + 1, inner.__wrapped__
            # Not `f = timed(f)`, another statement. Attributes of its own: who has set them?
            is_all = wraps <= len(node.decorator_list) and (node.decorator_list or not vars(value))
            return node.name == name and not isinstance(value, type) and bool(is_all)
        case ast.Assign(targets=[ast.Name(id=target)], value=ast.Lambda()):
            return target == name and value.__name__ == "<lambda>"
    return False


def _is_in(code: types.CodeType, file: str, node: ast.stmt) -> bool:
    last = node.end_lineno or node.lineno
    return code.co_filename == file and _first_line(node) <= code.co_firstlineno <= last


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _text_of(node: ast.stmt, lines: Sequence[str]) -> str:
    text = "".join(lines)
    if isinstance(node, ast.Assign):  # perhaps one of several in its line
        return ast.get_source_segment(text, node) or ""
    return "".join(lines[_first_line(node) - 1 : node.end_lineno]).rstrip("\n")
