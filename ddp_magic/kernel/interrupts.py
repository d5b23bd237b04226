"""Counts presses of Stop, which arrive as SIGINT. `execution.stop` acts on them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from ddp_magic.display.record import RunRecord
from ddp_magic.errors import DDPMagicError, RunInterrupted
from ddp_magic.kernel.machine.limits import system_error
from ddp_magic.wire.states import State


class InterruptCounter:
    """Counts presses of Stop (SIGINT) while a run goes on.

    The kernel's own handler would raise KeyboardInterrupt in the middle of anything. It is restored
    afterwards. Only the main thread can be interrupted; in other threads the count stays 0.
    """

    def __init__(self) -> None:
        self.count = 0
        self._previous: Any = None

    def __enter__(self) -> InterruptCounter:  # noqa: PYI034 -- typing.Self is Python 3.11's
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._press)
        return self

    def _press(self, _signum: int, _frame: FrameType | None) -> None:
        self.count += 1

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)


@contextmanager
def deferred() -> Iterator[None]:
    """Defer Stop (SIGINT) until the block is done; it must not take long."""
    with InterruptCounter() as counter:
        yield
    if counter.count:
        raise KeyboardInterrupt


@contextmanager
def without_frames(message: Callable[[], str]) -> Iterator[None]:
    """Show what ends the kernel's own work as one line, without the kernel's frames.

    Args:
        message: Returns what was interrupted.

    Raises:
        RunInterrupted: Stop was pressed.
        LaunchError: A system call failed.
    """
    try:
        yield
    except (RunInterrupted, DDPMagicError):
        raise
    except OSError as error:
        raise system_error(error) from None
    except KeyboardInterrupt:
        raise RunInterrupted(message()) from None


def interrupted_words(run: RunRecord | None) -> str:
    """Return what Stop interrupted, where no rank was running."""
    if run is None or run.state is State.PENDING:
        return "Stop was pressed before the ranks were started"
    if isinstance(run.error, KeyboardInterrupt):
        return str(run.error)
    if run.error is not None:
        return f"Stop was pressed after the run failed: {run.error}"
    return "Stop was pressed after the run ended"
