"""How a rank ends: as an interpreter does, but within its time."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import os
import threading
from collections.abc import Callable, Sequence
from time import monotonic  # bound here: a cell may replace the module's
from typing import NamedTuple, NoReturn

from ddp_magic.worker import interrupts
from ddp_magic.worker.console.streams import flush
from ddp_magic.worker.error_report import CellPlace, Formatter, print_error
from ddp_magic.worker.interrupts import user_code
from ddp_magic.worker.shell import end_names

FAILED_EXIT_S = 1.0  # for the exit handlers of a rank that failed: its peers wait for its end
QUEUES_S = 0.3  # for the threads of multiprocessing's queues to give back their semaphores
SAVE_S = 1.0  # for exit handlers, before an interrupt that came shortly before reaches them


class Step(NamedTuple):
    """One thing that an interpreter does at its end.

    Attributes:
        run: Does it; user's code runs in it.
        may_save: Whether it is the user's chance to save. An interrupt that came before it reaches
            it only after `SAVE_S`, if it is stuck.
    """

    run: Callable[[], object]
    may_save: bool = False


def end_process(code: int, on_interrupt: Callable[[], None]) -> NoReturn:
    """Run what an interpreter runs at its end, and end.

    After a failure the steps have `FAILED_EXIT_S` together. The process group is left as it is:
    destroying it while a DDP object lives can deadlock, and the end of the process closes it.

    Args:
        code: Exit code.
        on_interrupt: Called when an interrupt has ended a step.
    """
    if code:
        _end_after(FAILED_EXIT_S)
    run_steps(steps(code), on_interrupt)
    flush()
    os._exit(code)


def end_forked(
    error: BaseException | None, rank: int, cell: CellPlace, format_error: Formatter
) -> NoReturn:
    """End a process that a cell has forked and that has left the cell; see `print_error`."""
    end_process(print_error(error, rank, cell, format_error), lambda: None)


def steps(code: int) -> list[Step]:
    """Return the steps in their order. A rank that failed does not wait for its threads."""
    # Python 3.10 to 3.13: tests/unit/worker/test_private_names.py
    threads = [] if code else [Step(threading._shutdown)]  # type: ignore[attr-defined]
    handlers = Step(atexit._run_exitfuncs, may_save=True)
    return [*threads, handlers, Step(end_names), Step(join_queue_threads)]


def run_steps(steps: Sequence[Step], on_interrupt: Callable[[], None]) -> None:
    """Run the steps. An interrupt ends one of them, and the next one follows."""
    for step in steps:
        if step.may_save:
            interrupts.send_missed_later(SAVE_S)
        _, error = user_code(step.run, heed_missed=not step.may_save)
        if isinstance(error, KeyboardInterrupt):
            on_interrupt()


def join_queue_threads(timeout_s: float = QUEUES_S) -> None:
    """Wait for the threads of `multiprocessing` queues, which the exit handlers have asked to end.

    They are daemons, and the last to hold their queue's semaphores: if one is cut off, the
    semaphores' tracker warns of a leak.
    """
    deadline = monotonic() + timeout_s
    for thread in threading.enumerate():
        # Python 3.10 to 3.13: tests/unit/worker/test_private_names.py
        if thread.name == "QueueFeederThread":
            thread.join(max(0.0, deadline - monotonic()))


def _end_after(seconds: float) -> None:
    """End the process after a while, whatever runs then; faulthandler does it from C."""
    # The cell may have used up the descriptors, or the memory for one more thread.
    with contextlib.suppress(OSError, RuntimeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
