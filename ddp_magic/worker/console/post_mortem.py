"""`--debug`: a rank that raised is held in the debugger, at the failing line."""

from __future__ import annotations

from dataclasses import replace

from ddp_magic.worker import error_report
from ddp_magic.worker.console import debugger
from ddp_magic.worker.console.keyboard import Keyboard
from ddp_magic.worker.error_report import CellPlace
from ddp_magic.worker.interrupts import user_code


def hold(
    error: BaseException, rank: int, raised: float, keyboard: Keyboard, cell: CellPlace
) -> None:
    """Hold the rank in the debugger, if it is the first of the run that has raised.

    Args:
        error: Of the cell; what is no failure, or is not in the notebook's code, is not examined.
        rank: Number of the rank.
        raised: When it was raised, in seconds since the epoch.
        keyboard: Asks a person.
        cell: The cell that runs.
    """
    if not isinstance(error, Exception) or not debugger.is_in_notebook(error):
        return
    held = replace(error_report.describe(error, rank, cell, raised), held=True)

    def examine() -> None:
        if keyboard.may_examine(held):
            text, _ = user_code(lambda: str(error))
            debugger.examine(error, rank, held.evalue if text is None else text)

    user_code(examine)
    debugger.end_cell()
