"""The user's own modules in a rank of a session: reloaded when they were edited between two cells.

A fresh rank imports them anew in any case. Their functions and classes are replaced in place, as
IPython's `%autoreload` does it, so that an earlier `from helper import f` has the new `f` too.
"""

from __future__ import annotations

import importlib
import itertools
import linecache
import os
import sys
import zlib
from collections.abc import Collection
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from IPython.extensions.autoreload import superreload

from ddp_magic.system import libraries

_NOT_OURS = ("__main__", "__mp_main__")


def imported_since(newest: str) -> dict[str, ModuleType]:
    """Return the modules that were imported after `newest`, the oldest first.

    The search begins at the end of `sys.modules` and stops at `newest`: to read a module's name is
    to write to its memory page (its reference count), which until then is shared with the
    forkserver. For thousands of modules that is 20 MB.
    """
    found: list[tuple[str, ModuleType]] = []
    try:
        for name in itertools.takewhile(newest.__ne__, reversed(sys.modules)):
            found.append((name, sys.modules[name]))
    except (RuntimeError, KeyError):  # a thread of the cell's is importing
        return {}
    # Some libraries put other objects there.
    return {name: each for name, each in reversed(found) if issubclass(type(each), ModuleType)}


class UserModules:
    """The modules of the user's own in this process, and the state of their files.

    Args:
        newest: The last module that was imported before any of the user's.
    """

    def __init__(self, newest: str) -> None:
        self._newest = newest
        # File, its state and its text's checksum, by name.
        self._files: dict[str, tuple[str, tuple[int, ...] | None, int]] = {}
        self._known: set[tuple[str, object]] = set()  # name and file of all that were looked at
        self._old: dict[Any, Any] = {}  # what was replaced: IPython's own record

    def record(self) -> None:
        """Record the files of modules that have been imported since the last call."""
        for name, module in imported_since(self._newest).items():
            found = name, getattr(module, "__file__", None)
            if found in self._known:
                continue
            self._known.add(found)
            if name not in self._files and (file := _own_file(name, module)):
                self._files[name] = file, _state(file), _checksum(file)

    def reload_edited(self) -> list[str]:
        """Reload edited modules.

        Returns:
            Messages to show.
        """
        return [f"{name} has changed: {self._reload(sys.modules[name])}" for name in self._edits()]

    def _edits(self) -> list[str]:
        """Return the names of edited modules, each after those that it uses."""
        # Unless they use each other, the newest comes first: it was imported by an older one.
        todo = [
            name for name in reversed(self._files) if name in sys.modules and self._is_edited(name)
        ]
        ordered = []
        while todo:
            name = next((name for name in todo if not _uses(name, {*todo} - {name})), todo[0])
            todo.remove(name)
            ordered.append(name)
        return ordered

    def _is_edited(self, name: str) -> bool:
        """Return whether the text of a module's file has changed since the last call."""
        file, state, checksum = self._files[name]
        now = _state(file)
        if now is None or now == state:
            return False
        self._files[name] = file, now, _checksum(file)
        return self._files[name][2] != checksum  # otherwise it was only saved, or checked out

    def _reload(self, module: ModuleType) -> str:
        importlib.invalidate_caches()
        linecache.checkcache()
        before = dict(vars(module))
        try:
            # IPython 8.18 to 9.18: tests/unit/worker/test_private_names.py
            superreload(module, old_objects=self._old)
        except BaseException as error:  # IPython restores the module only after an Exception
            vars(module).update(before)
            if isinstance(error, KeyboardInterrupt):
                raise
            return (
                "the session keeps the version it has, because the new one raises "
                f"{type(error).__name__}: {error}"
            )
        return "the session has reloaded it"


def _uses(name: str, others: Collection[str]) -> bool:
    """Return whether a module has imported one of the others, or a name that is defined there."""
    for value in list(vars(sys.modules[name]).values()):
        if isinstance(value, ModuleType) and value.__name__ in others:
            return True
        if isinstance(value, (type, FunctionType)) and value.__module__ in others:
            return True
    return False


def _own_file(name: str, module: ModuleType) -> str:
    """Return the file of a module of the user's own; an empty string for any other module."""
    file = getattr(module, "__file__", None)
    if name in _NOT_OURS or not isinstance(file, str) or not file.endswith(".py"):
        return ""
    return "" if libraries.is_installed(file) else os.path.abspath(file)  # noqa: PTH100


def _checksum(file: str) -> int:
    try:
        return zlib.crc32(Path(file).read_bytes())
    except OSError:
        return 0


def _state(file: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(file)  # noqa: PTH116 -- hot path
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
