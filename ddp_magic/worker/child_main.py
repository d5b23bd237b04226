"""The main module of a rank's `multiprocessing` children, in place of the cell.

A spawned child runs its parent's main module again, so that pickle finds classes in it. A cell must
not run again: it would train again. So the rank's `__main__` names this module as its origin, and
this module gives the child the cell's imports, functions, classes and constants (`SIZE = 4 * 16`,
but not the result of a call), the names of the prelude that the cell uses, and the notebook's
values that the cell uses; in a session, those of earlier cells too. Nothing else of a cell is
executed. It imports only the standard library unless it needs more: every `DataLoader` worker
imports it.
"""

from __future__ import annotations

import ast
import builtins
import importlib.machinery
import json
import os
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ddp_magic.system.frames import (
    know_source,
    warnings_without_ours,
    without_ours,
    write_tracebacks_without_ours,
)

_NAME = "ddp_magic.worker.child_main"  # in a child, `__name__` is another one
VARIABLE = "DDP_MAGIC_MAIN"  # names the file that a rank leaves for its children

Kept = TypeVar("Kept")


class Inheritance:
    """What a rank leaves for its children, in a file that is written before one starts.

    Args:
        path: Path of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cells: list[str] = []
        self._binds: dict[str, set[str]] = {}  # the names that a cell defines, once they are needed
        self._captured: list[tuple[Mapping[str, Any], Collection[str]]] = []
        self._prelude: set[str] = set()
        self._files: dict[str, str] = {}
        self._is_written = False

    def add_cell(self, path: str, prelude: Collection[str], file: str = "") -> None:
        """Add a cell that is about to run.

        Args:
            path: Its file.
            prelude: Names of the prelude that it uses.
            file: Its `__file__`; empty for `path`.
        """
        self._files[path] = file or path
        self._cells.append(path)
        self._prelude |= set(prelude)
        self._is_written = False

    def add_captured(self, captured: Mapping[str, Any], names: Collection[str]) -> None:
        """Add values of the notebook's (`received_values.for_children`)."""
        self._captured = [*_not_replaced(self._captured, names), (captured, names)]
        self._is_written = False

    def drop_captured(self, held: Collection[int]) -> set[int]:
        """Forget the values in shared memory that is not held; return the numbers still needed.

        Args:
            held: Numbers of the shared memory that this rank keeps open.
        """
        self._captured = [
            (captured, names)
            for captured, names in self._captured
            if set(captured["segments"]) <= {captured["command"]["stream"], *held}
        ]
        self._is_written = False
        return {captured["command"]["stream"] for captured, _ in self._captured}

    def write(self) -> None:
        """Write the file, unless that has been done since the last change."""
        if self._is_written and self._path.exists():
            return
        self._cells = cells = self._needed_cells()
        left = {
            "cells": cells,
            "files": {path: self._files[path] for path in cells},
            "prelude": sorted(self._prelude),
            "captured": [captured for captured, _ in self._captured],
        }
        text = json.dumps(left).encode()
        try:
            try:
                _replace(self._path, text)
            except FileNotFoundError:  # its directory has been removed
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                _replace(self._path, text)
        except OSError:  # a full disk: spawned children do without
            os.environ.pop(VARIABLE, None)
            return
        os.environ[VARIABLE] = str(self._path)
        self._is_written = True

    def _needed_cells(self) -> list[str]:
        """Return the running cell, and the earlier ones with definitions that still hold."""
        *earlier, running = self._cells
        needed, replaced = [running], set(self._bound(running))
        for path in reversed(earlier):
            if bound := self._bound(path) - replaced:
                needed.append(path)
                replaced |= bound
        return needed[::-1]

    def _bound(self, path: str) -> set[str]:
        if path not in self._binds:
            try:
                self._binds[path] = names_bound(definitions(Path(path).read_text(encoding="utf-8")))
            except OSError:  # an old run, which has been removed
                self._binds[path] = set()
        return self._binds[path]


class MainSpec(importlib.machinery.ModuleSpec):
    """The `__spec__` of a rank's `__main__`.

    `multiprocessing` (`spawn.get_preparation_data`), and joblib likewise, read its name right
    before they start a child: this is when the rank leaves what the child needs. To do so in each
    cell would cost a session's cell 0.2 ms.

    Args:
        inheritance: What the rank leaves; None before it is known.
    """

    def __init__(self, inheritance: Inheritance | None = None) -> None:
        self._inheritance = inheritance
        super().__init__(_NAME, None)

    @property
    def name(self) -> str:
        """Name of this module."""
        if self._inheritance is not None:
            self._inheritance.write()
        return _NAME

    @name.setter
    def name(self, _name: str) -> None:
        """Do nothing: `ModuleSpec` sets it."""


def _replace(path: Path, text: bytes) -> None:
    """Write a file. To empty it first would wait for the disk on ext4."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb", buffering=0) as file:
        file.write(text)
        file.truncate()


def _not_replaced(
    entries: Sequence[tuple[Kept, Collection[str]]], names: Collection[str]
) -> list[tuple[Kept, Collection[str]]]:
    """Return the entries that still have names of their own once these names are replaced."""
    pairs = [(entry, set(given) - set(names)) for entry, given in entries]
    return [(entry, given) for entry, given in pairs if given]


def definitions(source: str) -> ast.Module:
    """Return only the imports, functions, classes and constants of a cell.

    Imports and constants may be in a `try` or an `if` that contains nothing else.
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
    """Return whether a statement only defines; add to `known` the names that constants may use."""
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
        case ast.Try():  # a handler runs only if an import has failed
            parts = [*statement.body, *statement.orelse, *statement.finalbody]
        case ast.If(test=test):
            constant = _is_constant(test, known, ast.Attribute)
            parts = [*statement.body, *statement.orelse]
        case _:
            return False
    return constant and all(_defines(part, known) for part in parts)


# Nodes that are evaluated without a call.
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
    """Return whether a target is a name or names; `config.lr = 1` needs an object of the cell."""
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
        namespace: The namespace of this process's main module.
        left: `cells`: paths, the running cell's last; `files`: their `__file__`, by path;
            `prelude`: names; `captured`: values.

    Raises:
        NameError: A decorator, base class or default of a definition needs a name that only running
            the cell would define.
    """
    provide_prelude(namespace, left["prelude"])
    for captured in left["captured"]:
        from ddp_magic.worker.values import received_values

        namespace.update(received_values.receive_as_child(captured, namespace))
    files = left.get("files", {})
    *earlier, path = left["cells"]
    for cell in earlier:
        for statement in definitions(Path(cell).read_text(encoding="utf-8")).body:
            try:
                _execute(ast.Module([statement], []), files.get(cell, cell), namespace)
            except NameError:  # of an earlier cell: this one may not need it
                continue
    file = namespace["__file__"] = files.get(path, path)
    for cell, name in files.items():
        know_source(name, Path(cell).read_text(encoding="utf-8"))
    try:
        _execute(definitions(Path(path).read_text(encoding="utf-8")), file, namespace)
    except NameError as error:
        raise NameError(
            f"{error}: a multiprocessing child of a %%ddp cell has the cell's imports, functions, "
            "classes and constants, and the notebook's values that the cell uses; it does not run "
            "the cell again"
        ) from error


def _execute(tree: ast.Module, path: str, namespace: dict[str, Any]) -> None:
    exec(compile(tree, path, "exec"), namespace)  # noqa: S102 -- the user's own cell


def _input(prompt: object = "", /) -> str:
    """Raise an error: the input of a child is empty."""
    raise RuntimeError(
        f"a process that a rank has started called input({str(prompt)!r}): only the rank itself "
        "can ask. Ask before the process is started"
    )


def _become_child() -> None:
    """Restore the cell in this child; if that fails, end it as an uncaught error does."""
    builtins.input = _input
    write_tracebacks_without_ours()
    try:
        with warnings_without_ours():
            restore(globals(), json.loads(Path(os.environ[VARIABLE]).read_text()))
    except BaseException as error:  # noqa: BLE001 -- whatever a definition of the cell's raises
        traceback.print_exception(without_ours(error))  # raised on, it would get our frames again
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__mp_main__" and VARIABLE in os.environ:
    _become_child()
