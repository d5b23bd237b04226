"""What a rank leaves for its `multiprocessing` children, whose main module is `child_main`."""

from __future__ import annotations

import importlib.machinery
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ddp_magic.system.definitions import definitions, names_bound
from ddp_magic.worker.child_main import VARIABLE

_NAME = "ddp_magic.worker.child_main"

Kept = TypeVar("Kept")


class Inheritance:
    """What a rank leaves for its children, in a file that is written before one starts.

    Args:
        path: Path of the file.

    Attributes:
        device: The rank's, once it is known.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cells: list[str] = []
        self._binds: dict[str, set[str]] = {}  # the names that a cell defines, once they are needed
        self._captured: list[tuple[Mapping[str, Any], Collection[str]]] = []
        self._prelude: set[str] = set()
        self._files: dict[str, str] = {}
        self._is_written = False
        self.device = ""

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
            "device": self.device,
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
        """Name of the children's main module."""
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
