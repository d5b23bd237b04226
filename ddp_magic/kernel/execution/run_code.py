"""The files of a run's code: what the ranks and a person call them, and their text."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddp_magic.display.diagnosis.stack_dumps import CellCode
from ddp_magic.display.places import cell_labels
from ddp_magic.display.profiles.profile import Code
from ddp_magic.kernel.cell import Cell
from ddp_magic.system.libraries import current_directory
from ddp_magic.system.tracebacks import cell_label, know_source


class RunCode:
    """A run's cell, its session's earlier cells, and the functions that were sent to the ranks.

    Args:
        cell: The cell.
        path: Where it lies, in the run's directory.
        cells: The text of the session's cells by what they call themselves; this one is added.
        functions: Text and cell number of the code of functions, by its file; see `Captured`.
        is_call: Whether the cell only calls a function, and nobody has seen it.

    Attributes:
        cell: How messages name its lines.
        labels: What a person calls each file.
    """

    def __init__(
        self,
        cell: Cell,
        path: Path,
        *,
        cells: dict[str, str],
        functions: Mapping[str, Sequence[Any]],
        is_call: bool,
    ) -> None:
        file = cell_file(path, cell.number, cells)
        cells[file] = cell.source
        of_cells = {f: cell_label(n) for f, (_, n) in functions.items() if n is not None}
        self.labels = {**of_cells, **cell_labels(cells)}
        self.cell = CellCode(file, cell_label(cell.number), self.labels, is_call)
        self._texts = {**{f: str(text) for f, (text, _) in functions.items()}, **cells}

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


def cell_file(cell_path: Path, number: int | None, taken: Collection[str]) -> str:
    """Return what a cell calls itself: a file of the notebook's directory, as a script would be.

    No such file is made there. Who wants the cell's text finds it in `linecache`.

    Args:
        cell_path: Where the cell lies, in the run's directory.
        number: In the notebook's `In[n]`.
        taken: What the session's other cells call themselves.
    """
    stem = f"cell_{number}" if number else cell_path.parent.name
    here = current_directory() or cell_path.parent  # it may have been removed
    names = itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(2)))
    files = (f"{here}/{name}.py" for name in names)
    return next(file for file in files if file not in taken and not os.path.lexists(file))
