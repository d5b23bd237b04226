"""Interrupts of a rank: SIGINT to its main thread, raised only in the user's code.

While the user's code runs, Python's own `default_int_handler` handles SIGINT, as in a script. It
is written in C, so that no frame of ours is in the traceback of a KeyboardInterrupt. At all other
times SIGINT is only recorded: it never stops code of ours halfway.

A second signal, sent right after the first, shows that the main thread has taken the interrupt.
Python calls the handlers of pending signals in the order of their numbers and only in the main
thread, so that the second signal is handled only after the first one was.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from ddp_magic.system.tracebacks import without_ours

# Its default action is to ignore it, so that a child process that receives it by mistake lives.
# Hardly any program uses it. Its number is higher than SIGINT's.
TAKEN = signal.SIGURG
AGAIN_S = 0.05  # until an interrupt that a destructor has swallowed is sent again

T = TypeVar("T")
_missed = threading.Event()


def install(on_taken: Callable[[], None]) -> None:
    """Install the signal handlers. Call it in the main thread, while no user's code runs.

    Args:
        on_taken: Called when the main thread has taken an interrupt.
    """

    def taken(_signum: int, _frame: FrameType | None) -> None:
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        if not ignored and signal.SIGINT not in signal.sigpending():
            on_taken()

    signal.signal(TAKEN, taken)
    signal.signal(signal.SIGINT, _record)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, TAKEN})


def watch_destructors(on_taken: Callable[[], None], *, is_exiting: Callable[[], bool]) -> None:
    """Send an interrupt again that a destructor has swallowed: Python ignores what is raised there.

    While the rank exits it is not sent again, only reported.

    Args:
        on_taken: Called when an exit handler has taken an interrupt.
        is_exiting: Whether the cell is over.
    """
    show = sys.unraisablehook

    def hook(args: Any) -> None:  # noqa: ANN401 -- sys.UnraisableHookArgs, which has no constructor
        if isinstance(args.exc_value, KeyboardInterrupt):
            if is_exiting():
                on_taken()
            else:
                send_later(AGAIN_S)
            return
        if args.exc_value is not None:
            without_ours(args.exc_value)
            args = type(args)((*args[:2], args.exc_value.__traceback__, *args[3:]))
        show(args)

    sys.unraisablehook = hook


def send() -> None:
    """Interrupt this process's main thread, from another thread."""
    main = threading.main_thread().ident
    assert main is not None  # noqa: S101 -- it has started
    signal.pthread_kill(main, signal.SIGINT)
    signal.pthread_kill(main, TAKEN)


def send_later(after_s: float) -> None:
    """Interrupt this process's main thread after some seconds."""
    timer = threading.Timer(after_s, send)
    timer.daemon = True
    timer.start()


def send_missed_later(after_s: float) -> None:
    """Send again an interrupt that came while no user's code ran, if there was one."""
    if _missed.is_set():
        _missed.clear()
        send_later(after_s)


def user_code(
    function: Callable[[], T], *, heed_missed: bool = False
) -> tuple[T | None, BaseException | None]:
    """Call a function that runs the user's code, in the main thread.

    Args:
        function: What to call.
        heed_missed: Do not call it if an interrupt came while no user's code ran.

    Returns:
        What it returned, and the exception that ended it, KeyboardInterrupt included.
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
        signal.signal(signal.SIGINT, _record)
    except KeyboardInterrupt as late:  # between the user's last line and ours
        signal.signal(signal.SIGINT, _record)
        error = error or late
    return result, error


@contextmanager
def held_back() -> Iterator[None]:
    """Block interrupts, for system calls of the main thread that must not stop halfway."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def forget_missed() -> None:
    """Forget an interrupt that came after a session's cell: it must not reach the next one."""
    _missed.clear()


def _record(_signum: int, _frame: FrameType | None) -> None:
    """Record the interrupt: no user's code runs."""
    _missed.set()
