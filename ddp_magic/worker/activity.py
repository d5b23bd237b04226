"""What a rank is doing: written by its main thread, read by its other threads."""

from __future__ import annotations

from dataclasses import dataclass

from ddp_magic.wire.states import Phase


@dataclass
class Activity:
    """What the main thread is doing.

    Attributes:
        phase: STARTING, RUNNING, IDLE or EXITING.
        cells: Number of cells that have started.
        cell_file: File name of the current cell's code; empty before the first cell.
    """

    phase: Phase = Phase.STARTING
    cells: int = 0
    cell_file: str = ""

    def start_cell(self, cell_file: str) -> None:
        """Count a cell that is about to run."""
        self.cells += 1
        self.cell_file = cell_file
