"""Interrupts of a rank: the user's code takes them, ours does not. In a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

BEGIN = """
import signal, sys, threading, time, traceback
from ddp_magic.worker import interrupts
taken = []
interrupts.install(lambda: taken.append(1))
def soon(s=0.2):
    threading.Timer(s, interrupts.send).start()
def forever():
    while True: time.sleep(0.01)
"""


def _run(code: str) -> list[str]:
    program = BEGIN + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_users_code_is_interrupted_without_a_frame_of_ours() -> None:
    """As in a script; and the second signal shows that the main thread has taken it."""
    lines = _run("""
        soon()
        result, error = interrupts.user_code(forever)
        time.sleep(0.1)
        frames = traceback.extract_tb(error.__traceback__)
        print(type(error).__name__, result, len(taken), [f.name for f in frames])
    """)
    assert lines == ["KeyboardInterrupt None 1 ['user_code', 'forever']"]


def test_ours_is_not() -> None:
    """It runs to its end; the interrupt is recorded, and reaches the next user code on demand."""
    lines = _run("""
        soon(0.1)
        time.sleep(0.5)
        print(len(taken))
        print(interrupts.user_code(lambda: "ran"))
        print(interrupts.user_code(lambda: "ran", heed_missed=True))
        print(interrupts.user_code(lambda: "ran", heed_missed=True))
    """)
    assert lines == ["1", "('ran', None)", "(None, KeyboardInterrupt())", "('ran', None)"]


def test_a_missed_one_can_be_forgotten() -> None:
    """It was for a cell that is over."""
    lines = _run("""
        soon(0.1)
        time.sleep(0.5)
        interrupts.forget_missed()
        print(interrupts.user_code(lambda: "ran", heed_missed=True))
    """)
    assert lines == ["('ran', None)"]


def test_a_missed_one_can_come_later() -> None:
    """For what would be ended too early by it, and could wait for ever without it."""
    lines = _run("""
        soon(0.1)
        time.sleep(0.5)
        interrupts.send_missed_later(0.3)
        print(interrupts.user_code(lambda: "quick"))
        print(interrupts.user_code(forever)[1].__class__.__name__)
        interrupts.send_missed_later(0.1)
        print(interrupts.user_code(lambda: time.sleep(0.5) or "none is left"))
    """)
    assert lines == ["('quick', None)", "KeyboardInterrupt", "('none is left', None)"]


def test_code_that_ignores_interrupts_has_not_taken_them() -> None:
    """By SIG_IGN, or by a mask; a handler of its own takes them."""
    lines = _run("""
        def ignoring():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            soon(0.1); time.sleep(0.5); print(len(taken))
        def masked():
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            soon(0.1); time.sleep(0.5); print(len(taken))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        def handling():
            taken.clear()
            signal.signal(signal.SIGINT, lambda *_: print("mine"))
            soon(0.1); time.sleep(0.5); print(len(taken))
        interrupts.user_code(ignoring)
        print(interrupts.user_code(masked)[1].__class__.__name__)
        interrupts.user_code(handling)
    """)
    assert lines == ["0", "0", "KeyboardInterrupt", "mine", "1"]


def test_a_storm_breaks_nothing_of_ours() -> None:
    """Whenever an interrupt comes, it is returned, or ours goes on."""
    lines = _run("""
        stop = threading.Event()
        def storm():
            while not stop.is_set():
                interrupts.send(); time.sleep(0.0007)
        thread = threading.Thread(target=storm); thread.start()
        calls = [interrupts.user_code(lambda: time.sleep(0.001)) for _ in range(1500)]
        stop.set(); thread.join()
        hit = sum(isinstance(error, KeyboardInterrupt) for _, error in calls)
        print(len(calls), hit > 10)
    """)
    assert lines == ["1500 True"]


def test_an_interrupt_that_a_destructor_swallows_is_sent_again() -> None:
    """The cell goes on as if nothing had been; what else a destructor raises is shown."""
    lines = _run("""
        interrupts.watch_destructors(lambda: print("reported"), is_exiting=lambda: False)
        class Swallows:
            def __init__(self, error): self.error = error
            def __del__(self): raise self.error
        def cell():
            print("goes on", Swallows(KeyboardInterrupt()) and 1)
            forever()
        print(type(interrupts.user_code(cell)[1]).__name__)
        sys.stderr = sys.stdout
        Swallows(ValueError("shown"))
    """)
    assert lines[:2] == ["goes on 1", "KeyboardInterrupt"]
    assert lines[-1] == "ValueError: shown"
    assert "reported" not in lines


def test_an_interrupt_that_an_exit_handler_has_taken_is_reported() -> None:
    """`atexit` swallows it; it is not sent again."""
    lines = _run("""
        import atexit
        atexit.register(forever)
        interrupts.watch_destructors(lambda: print("reported"), is_exiting=lambda: True)
        soon()
        interrupts.user_code(atexit._run_exitfuncs)
        print("after", interrupts.user_code(lambda: time.sleep(0.2)))
    """)
    assert lines[-1] == "after (None, None)"
