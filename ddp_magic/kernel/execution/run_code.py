"""The files of a run's code: what the ranks and a person call them, and their text."""

from __future__ import annotations

import itertools
import os
from collections import ChainMap, Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddp_magic.display.diagnosis.stack_dumps import CellCode
from ddp_magic.display.profiles.profile import Code
from ddp_magic.kernel.cell import Cell
from ddp_magic.system.libraries import current_directory
from ddp_magic.system.tracebacks import cell_label, know_source


class CodeFiles:
    """The code that a group of ranks has: the cells of a session, and functions that were sent.

    A session adds to it cell by cell; its runs share it.

    Attributes:
        texts: The text of each file.
        labels: What a person calls the files of cells.
    """

    def __init__(self) -> None:
        self._cells: dict[str, str] = {}
        self._cell_labels: dict[str, str] = {}
        self._functions: dict[str, str] = {}
        self._function_labels: dict[str, str] = {}
        self._used: Counter[str] = Counter()  # the last number in the names that begin so
        self.texts: Mapping[str, str] = ChainMap(self._cells, self._functions)
        self.labels: Mapping[str, str] = ChainMap(self._cell_labels, self._function_labels)

    def add_functions(self, functions: Mapping[str, Sequence[Any]]) -> None:
        """Add functions that are sent to the ranks.

        Args:
            functions: Text and cell number of their code, by its file; see `Captured`.
        """
        for file, (text, number) in functions.items():
            self._functions[file] = str(text)
            if number is not None:
                self._function_labels[file] = cell_label(number)

    def add_cell(self, cell: Cell, path: Path) -> str:
        """Add a cell.

        Args:
            cell: The cell.
            path: Where it lies, in its run's directory.

        Returns:
            What it calls itself: a file of the notebook's directory, as a script would be. No such
            file is made there. Who wants the cell's text finds it in `linecache`.
        """
        stem = f"cell_{cell.number}" if cell.number else path.parent.name
        here = current_directory() or path.parent  # it may have been removed
        for number in itertools.count(self._used[stem] + 1):
            file = f"{here}/{stem}_{number}.py" if number > 1 else f"{here}/{stem}.py"
            if file not in self._cells and not os.path.lexists(file):
                break
        self._used[stem] = number
        self._cells[file], self._cell_labels[file] = cell.source, cell_label(cell.number)
        return file


class RunCode:
    """A run's cell, its session's other cells, and the functions that were sent to the ranks.

    Args:
        cell: The cell.
        path: Where it lies, in the run's directory.
        files: The code that the ranks have; the cell is added.
        is_call: Whether the cell only calls a function, and nobody has seen it.

    Attributes:
        cell: How messages name its lines.
        labels: What a person calls each file.
    """

    def __init__(
        self,
        cell: Cell,
        path: Path,
        files: CodeFiles,
        *,
        is_call: bool,
    ) -> None:
        self.labels, self._texts = files.labels, files.texts
        file = files.add_cell(cell, path)
        self.cell = CellCode(file, cell_label(cell.number), self.labels, is_call)

    @property
    def file(self) -> str:
        """What the cell calls itself."""
        return self.cell.file

    def profiled(self) -> Code:
        """Return the names for a profile, which is the cell's own: its lines need no other name."""
        return Code(labels={**self.labels, self.file: ""}, sources=self._texts)

    def make_known(self) -> None:
        """Let `inspect` find the text of functions of the cell in this process."""
        know_source(self.file, self._texts[self.file])
