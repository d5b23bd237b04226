"""`%pdb on`: IPython's debugger opens where a cell failed, which is in a rank and not here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from IPython.core.interactiveshell import InteractiveShell

from ddp_magic.errors import DDPMagicError, RunInterrupted


def wants_debugger(shell: InteractiveShell) -> bool:
    """Return whether a person has asked for a debugger wherever a cell fails."""
    return bool(shell.call_pdb)


@contextmanager
def without_debugger(shell: InteractiveShell) -> Iterator[None]:
    """Keep IPython's debugger away from an error of a run, until the cell has ended.

    It would open in a frame of ddp_magic; with `%pdb on` the rank that failed was in a debugger.
    """
    try:
        yield
    except (DDPMagicError, RunInterrupted):
        if shell.call_pdb:
            _switch_off(shell)
        raise


def _switch_off(shell: InteractiveShell) -> None:
    def switch_on(*_: object) -> None:
        shell.events.unregister("post_run_cell", switch_on)
        shell.call_pdb = True

    shell.call_pdb = False
    shell.events.register("post_run_cell", switch_on)
