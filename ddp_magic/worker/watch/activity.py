"""What a rank is doing: written by its main thread, read by its other threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ddp_magic.wire.states import Phase


@dataclass
class Activity:
    """What the main thread is doing.

    Attributes:
        phase: STARTING, RUNNING, IDLE or EXITING.
        cells: Number of cells that have started.
        cell_labels: What a person calls the code whose lines are told, by its file; empty for the
            current cell itself.
        other_cells: What a person calls the notebook's other cells, by the files of their code.
    """

    phase: Phase = Phase.STARTING
    cells: int = 0
    cell_labels: Mapping[str, str] = field(default_factory=dict)
    other_cells: Mapping[str, str] = field(default_factory=dict)

    def start_cell(self, cell_file: str) -> None:
        """Count a cell that is about to run."""
        self.cells += 1
        self.cell_labels, self.other_cells = {cell_file: ""}, {}
