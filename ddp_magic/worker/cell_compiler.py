"""Compiles a rank's cells, each under the file name and label that tracebacks show.

The methods that are overridden here are the same in IPython 8.18 to 9.18;
tests/unit/worker/test_private_names.py fails where one changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from IPython.core.compilerop import CachingCompiler

from ddp_magic.system.tracebacks import cell_label
from ddp_magic.wire.commands import RunCell


class CellCompiler(CachingCompiler):
    """Compiles the cell under its own file name, which tracebacks show as `Cell In[5]`.

    The file need not exist: its text is in `linecache`, where tracebacks, debuggers, `inspect` and
    torch look first.
    """

    def __init__(self) -> None:
        super().__init__()
        self._cell_file = self._source = ""
        self._numbers: dict[str, int | None] = {}
        self._labels: dict[str, str] = {}

    def start_cell(self, command: RunCell, source: str) -> None:
        """Compile this text under this cell's name."""
        self._cell_file, self._source = command.name, source
        self.add_cell(command.name, command.execution_count)

    def add_cell(self, file: str, number: int | None) -> None:
        """Show the code of a file under the number of the notebook's cell; None if it has none."""
        self._numbers[file] = number
        if number is not None:
            self._labels[file] = cell_label(number)

    def numbered_labels(self) -> Mapping[str, str]:
        """Return what a person calls the cells that have a number, by file: `Cell In[5]`.

        Later cells appear in it too: a copy for each cell would slow a long session down.
        """
        return self._labels

    def labels(self) -> dict[str, str]:
        """Return what a person calls the files of cells: `Cell In[5]`."""
        return {file: " ".join(self.format_code_name(file) or ()) for file in self._numbers}

    def get_code_name(self, raw_code: str, transformed_code: str, number: int) -> str:
        """Name the cell's code by its file; that of a cell within it has a name of its own."""
        if raw_code != self._source:
            return str(super().get_code_name(raw_code, transformed_code, number))
        return self._cell_file

    def format_code_name(self, name: str) -> tuple[str, str] | None:
        """Return what tracebacks show for a file: ("Cell", "In[5]"), or None if it is no cell."""
        if name not in self._numbers:
            return None
        number = self._numbers[name]
        return "Cell", f'"{Path(name).name}"' if number is None else f"In[{number}]"
