"""The user's own modules in a session's rank: edited between two cells, they are read again.

A fresh rank imports them anew in any case. What functions and classes they have is replaced in
place, as by IPython's `%autoreload`, so that `from helper import f` is the new `f` too.
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


class UserModules:
    """Which modules of the user's own this process has, and which state of their files.

    Args:
        newest: The last module that was imported before any of the user's.
    """

    def __init__(self, newest: str) -> None:
        """Begin with none."""
        self._newest = newest
        # File, its state and its text's checksum, by name.
        self._files: dict[str, tuple[str, tuple[int, ...] | None, int]] = {}
        self._old: dict[Any, Any] = {}  # what has been replaced: IPython's own record

    def note(self) -> None:
        """Note the files of modules that have been imported since the last time."""
        try:
            # Newest first, and no further: to look at a module that the forkserver has imported is
            # to copy its page.
            names = list(itertools.takewhile(self._newest.__ne__, reversed(sys.modules)))
        except RuntimeError:  # a thread of the cell's is importing
            return
        for name in reversed(names):
            if name not in self._files and (file := _own_file(name)):
                self._files[name] = file, _state(file), _checksum(file)

    def refresh(self) -> list[str]:
        """Read edited modules again.

        Returns:
            What is to be said of it.
        """
        said = []
        for name in self._changed():
            said.append(f"{name} has changed: {self._reload(sys.modules[name])}")
        return said

    def _changed(self) -> list[str]:
        """Return the names of edited modules, each after those that it uses."""
        # Where nothing else is known: of two, the one that was imported by the other comes first.
        todo = [
            name for name in reversed(self._files) if name in sys.modules and self._edited(name)
        ]
        ordered = []
        while todo:
            name = next((name for name in todo if not _uses(name, {*todo} - {name})), todo[0])
            todo.remove(name)
            ordered.append(name)
        return ordered

    def _edited(self, name: str) -> bool:
        """Tell whether the text of a module's file is another one than the last time."""
        file, state, checksum = self._files[name]
        now = _state(file)
        if now is None or now == state:
            return False
        self._files[name] = file, now, _checksum(file)
        return self._files[name][2] != checksum  # else it has only been saved, or checked out

    def _reload(self, module: ModuleType) -> str:
        importlib.invalidate_caches()
        linecache.checkcache()
        before = dict(vars(module))
        try:
            superreload(module, old_objects=self._old)
        except BaseException as error:  # IPython restores the module only after an Exception
            vars(module).update(before)
            if isinstance(error, KeyboardInterrupt):
                raise
            return (
                f"the session keeps the version that it has, since the new one raises "
                f"{type(error).__name__}: {error}"
            )
        return "the session has read it again"


def _uses(name: str, others: Collection[str]) -> bool:
    """Tell whether a module holds one of the others, or something that is defined there."""
    for value in list(vars(sys.modules[name]).values()):
        if isinstance(value, ModuleType) and value.__name__ in others:
            return True
        if isinstance(value, (type, FunctionType)) and value.__module__ in others:
            return True
    return False


def _own_file(name: str) -> str:
    """Return the file of a module of the user's own; of any other an empty string."""
    file = getattr(sys.modules.get(name), "__file__", None)
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
