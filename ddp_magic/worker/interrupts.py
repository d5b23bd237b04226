"""Who takes an interrupt in a rank: the user's code, or nobody.

While the user's code runs, SIGINT is handled by Python's own `default_int_handler`, as in a script:
it is written in C, so that no frame of ours stands in the traceback of a KeyboardInterrupt. Outside
of it SIGINT is only noted: nothing of ours is ever broken off halfway.

That the main thread has taken an interrupt is told by a second signal, which is sent right after
the first. Python calls the handlers of pending signals in the order of their numbers and in the
main thread alone, so that the second one is handled only where the first one was.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

# Ignored by default, so that a child process that is sent it by mistake lives; nearly nobody uses
# it; its number is higher than SIGINT's.
TAKEN = signal.SIGURG

T = TypeVar("T")
_missed = threading.Event()


def install(on_taken: Callable[[], None]) -> None:
    """Take the signals over, in the main thread, while no user's code runs.

    Args:
        on_taken: Called when the main thread has taken an interrupt.
    """

    def taken(_signum: int, _frame: FrameType | None) -> None:
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        if not ignored and signal.SIGINT not in signal.sigpending():
            on_taken()

    signal.signal(TAKEN, taken)
    signal.signal(signal.SIGINT, _nothing)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, TAKEN})


def send() -> None:
    """Interrupt this process's main thread, from another one."""
    main = threading.main_thread().ident
    assert main is not None  # noqa: S101 -- it has started
    signal.pthread_kill(main, signal.SIGINT)
    signal.pthread_kill(main, TAKEN)


def send_later(after_s: float) -> None:
    """Interrupt this process's main thread in a while, s."""
    timer = threading.Timer(after_s, send)
    timer.daemon = True
    timer.start()


def send_missed_later(after_s: float) -> None:
    """Send an interrupt again that came while no user's code ran, if there was one."""
    if _missed.is_set():
        _missed.clear()
        send_later(after_s)


def user_code(
    function: Callable[[], T], *, heed_missed: bool = False
) -> tuple[T | None, BaseException | None]:
    """Call a function that runs the user's code, in the main thread.

    Args:
        function: What to call.
        heed_missed: Do not even begin if an interrupt came while no user's code ran.

    Returns:
        What it returned, and what it raised or was interrupted by.
    """
    result: T | None = None
    error: BaseException | None = None
    try:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if heed_missed and _missed.is_set():
                _missed.clear()
                raise KeyboardInterrupt  # noqa: TRY301 -- as if it came now
            result = function()
        except BaseException as raised:  # noqa: BLE001 -- the caller reports it
            error = raised
        signal.signal(signal.SIGINT, _nothing)
    except KeyboardInterrupt as late:  # between the user's last line and ours
        signal.signal(signal.SIGINT, _nothing)
        error = error or late
    return result, error


@contextmanager
def held_back() -> Iterator[None]:
    """Let no interrupt break off what is inside, for the main thread's own system calls."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def forget_missed() -> None:
    """Let an interrupt that came after a session's cell not reach its next one."""
    _missed.clear()


def _nothing(_signum: int, _frame: FrameType | None) -> None:
    """Break off nothing: no user's code runs."""
    _missed.set()
