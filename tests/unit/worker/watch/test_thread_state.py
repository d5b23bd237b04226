"""What the operating system says of the main thread."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ddp_magic.worker.watch.thread_state import ThreadState
from tests.limits import HANG_S


def test_the_state_of_the_main_thread_is_read_from_another() -> None:
    state = ThreadState()
    answers: list[bool] = []

    def ask(after_s: float) -> Callable[[], None]:
        def run() -> None:
            time.sleep(after_s)
            answers.append(state.sleeps())

        return run

    thread = threading.Thread(target=ask(0.1))
    thread.start()
    time.sleep(0.5)
    thread.join(HANG_S)
    assert answers == [True]
    assert not state.sleeps()  # asked by the main thread itself
    state.close()


def test_a_descriptor_that_the_cell_has_closed_is_opened_again(tmp_path: Path) -> None:
    """And a file of the cell's that has its number by now is neither read nor closed."""
    state = ThreadState()
    state.sleeps()
    (tmp_path / "mine").write_text("1 (x) S ")
    mine = os.open(tmp_path / "mine", os.O_RDONLY)
    os.dup2(mine, state._fd)
    taken = state._fd
    assert not state.sleeps()
    state.close()
    assert os.fstat(taken).st_ino == os.fstat(mine).st_ino
    os.close(taken)
    os.close(mine)
