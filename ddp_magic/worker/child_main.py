"""What `multiprocessing` children of a rank import in the cell's place.

A child that is spawned runs its parent's main module again, so that what it unpickles finds its
class. A cell must not run again there: it would train again. So the rank's `__main__` names this
module as its origin, and this one gives the child the cell's imports, functions, classes and
constants (`SIZE = 4 * 16`; not what a call returns), the prelude's names that the cell uses, and
what the cell took along from the notebook; in a session, those of its earlier cells too. Nothing
else of a cell is executed. Standard library only, unless there is more to do: every `DataLoader`
worker pays for it.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ddp_magic.system.frames import know_source

VARIABLE = "DDP_MAGIC_MAIN"  # names the file that a rank leaves for its children

Kept = TypeVar("Kept")


class Inheritance:
    """What a rank leaves for its children.

    Args:
        path: The file to write it to.
    """

    def __init__(self, path: Path) -> None:
        """Begin with nothing."""
        self._path = path
        self._cells: list[tuple[str, Collection[str]]] = []
        self._captured: list[tuple[Mapping[str, Any], Collection[str]]] = []
        self._prelude: set[str] = set()
        self._files: dict[str, str] = {}

    def add_cell(self, path: str, prelude: Collection[str], file: str = "") -> None:
        """Leave a cell that is about to run.

        Args:
            path: Where it lies.
            prelude: Names of the prelude that it uses.
            file: What it calls itself; empty for `path`.
        """
        self._files[path] = file or path
        binds = names_bound(definitions(Path(path).read_text(encoding="utf-8")))
        self._cells = [*_not_replaced(self._cells, binds), (path, binds)]
        self._prelude |= set(prelude)
        self._write()

    def add_captured(self, captured: Mapping[str, Any], names: Collection[str]) -> None:
        """Leave values of the notebook's (`capture.for_children`)."""
        self._captured = [*_not_replaced(self._captured, names), (captured, names)]
        self._write()

    def drop_captured(self, held: Collection[int]) -> set[int]:
        """Forget what lies in shared memory that is not held; return the numbers that are needed.

        Args:
            held: Numbers of shared memory that stays with this rank in any case.
        """
        self._captured = [
            (captured, names)
            for captured, names in self._captured
            if set(captured["segments"]) <= {captured["command"]["stream"], *held}
        ]
        self._write()
        return {captured["command"]["stream"] for captured, _ in self._captured}

    def _write(self) -> None:
        left = {
            "cells": [path for path, _ in self._cells],
            "files": {path: self._files[path] for path, _ in self._cells},
            "prelude": sorted(self._prelude),
            "captured": [captured for captured, _ in self._captured],
        }
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # cleaners come by
            self._path.write_text(json.dumps(left))
        except OSError:  # a full disk: children that are spawned do without
            os.environ.pop(VARIABLE, None)
            return
        os.environ[VARIABLE] = str(self._path)


def _not_replaced(
    entries: Sequence[tuple[Kept, Collection[str]]], names: Collection[str]
) -> list[tuple[Kept, Collection[str]]]:
    """Return what still gives names of its own once these are given anew."""
    pairs = [(entry, set(given) - set(names)) for entry, given in entries]
    return [(entry, given) for entry, given in pairs if given]


def definitions(source: str) -> ast.Module:
    """Return of a cell only its imports, functions, classes and constants.

    Imports and constants may stand in a `try` or an `if` in which there is nothing else.
    """
    tree = ast.parse(source)
    known: set[str] = {"__name__"}
    tree.body = [statement for statement in tree.body if _defines(statement, known)]
    return tree


def names_bound(tree: ast.Module) -> set[str]:
    """Return the names that definitions (see `definitions`) bind at the top level."""
    bound: set[str] = set()
    todo: list[ast.AST] = [*tree.body]
    while todo:
        node = todo.pop()
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                bound.add(name)
            case ast.ClassDef(name=name):
                bound.add(name)
            case ast.alias(name=name, asname=asname):
                bound.add((asname or name).partition(".")[0])
            case ast.Name(id=name, ctx=ast.Store()):
                bound.add(name)
            case _:
                todo += ast.iter_child_nodes(node)
    return bound


def _defines(statement: ast.stmt, known: set[str]) -> bool:
    """Tell whether a statement only defines; note in `known` what a constant may be made of."""
    parts: list[ast.stmt] = []
    constant = True
    match statement:
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            known.update((a.asname or a.name).partition(".")[0] for a in names)
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() | ast.Pass():
            pass
        case ast.Assign(targets=targets, value=value):
            constant = _bind_constant(targets, value, known)
        case ast.AnnAssign(target=target, value=ast.expr() as value):
            constant = _bind_constant([target], value, known)
        case ast.Try():  # what a handler does is done only where an import has failed
            parts = [*statement.body, *statement.orelse, *statement.finalbody]
        case ast.If(test=test):
            constant = _is_constant(test, known, ast.Attribute)
            parts = [*statement.body, *statement.orelse]
        case _:
            return False
    return constant and all(_defines(part, known) for part in parts)


# What is evaluated without a call.
_PURE = (
    *(ast.Constant, ast.JoinedStr, ast.FormattedValue, ast.Tuple, ast.List, ast.Set, ast.Dict),
    *(ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Subscript, ast.Slice),
    *(ast.unaryop, ast.operator, ast.boolop, ast.cmpop, ast.expr_context),
)


def _is_constant(value: ast.expr, known: Collection[str], *more: type[ast.AST]) -> bool:
    return all(
        isinstance(node, (*_PURE, *more)) or (isinstance(node, ast.Name) and node.id in known)
        for node in ast.walk(value)
    )


def _bind_constant(targets: Collection[ast.expr], value: ast.expr, known: set[str]) -> bool:
    if not (all(map(_is_name, targets)) and _is_constant(value, known)):
        return False
    known.update(n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))
    return True


def _is_name(target: ast.expr) -> bool:
    """Tell whether a target is a name, or names; `config.lr = 1` needs what the cell has made."""
    if isinstance(target, (ast.Tuple, ast.List)):
        return all(map(_is_name, target.elts))
    return isinstance(target, ast.Name)


def provide_prelude(namespace: dict[str, Any], names: Collection[str]) -> None:
    """Import these names of the prelude into a namespace; with none, import nothing."""
    if names:
        from ddp_magic import prelude

        namespace.update({name: getattr(prelude, name) for name in names})


def restore(namespace: dict[str, Any], left: Mapping[str, Any]) -> None:
    """Put what a rank has left into a namespace.

    Args:
        namespace: Of this process's main module.
        left: `cells`: paths, the running cell's last; `files`: what they call themselves, by path;
            `prelude`: names; `captured`: values.

    Raises:
        NameError: A decorator, base class or default of a definition needs a name that only
            running the cell would give.
    """
    provide_prelude(namespace, left["prelude"])
    for captured in left["captured"]:
        from ddp_magic.worker import received_values

        namespace.update(received_values.receive_as_child(captured, namespace))
    files = left.get("files", {})
    *earlier, path = left["cells"]
    for cell in earlier:
        for statement in definitions(Path(cell).read_text(encoding="utf-8")).body:
            try:
                _execute(ast.Module([statement], []), files.get(cell, cell), namespace)
            except NameError:  # not this cell's, which may well do without
                continue
    file = namespace["__file__"] = files.get(path, path)
    for cell, name in files.items():
        know_source(name, Path(cell).read_text(encoding="utf-8"))
    try:
        _execute(definitions(Path(path).read_text(encoding="utf-8")), file, namespace)
    except NameError as error:
        raise NameError(
            f"{error}: a multiprocessing child of a %%ddp cell gets the cell's imports, functions, "
            "classes and constants, and what the cell took from the notebook; the cell "
            "itself is not run again there"
        ) from error


def _execute(tree: ast.Module, path: str, namespace: dict[str, Any]) -> None:
    exec(compile(tree, path, "exec"), namespace)  # noqa: S102 -- the user's own cell


if __name__ == "__mp_main__" and VARIABLE in os.environ:
    restore(globals(), json.loads(Path(os.environ[VARIABLE]).read_text()))
