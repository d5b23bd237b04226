"""What the exit of a rank waits for: seen from another thread, as the heartbeat's is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from ddp_magic.worker.exit import Step, run_steps
from ddp_magic.worker.watch.exit_wait import exit_wait
from tests.limits import HANG_S

CELL = "/run/cell.py"


def _seen_in(file: str, function: str) -> str:
    """Return what is seen while the main thread is in this function."""
    seen: list[str] = []

    def look() -> None:
        thread = threading.Thread(target=lambda: seen.append(exit_wait({CELL: ""})), daemon=True)
        thread.start()
        thread.join(HANG_S)

    names: dict[str, Callable[[], None]] = {"look": look}
    exec(compile(f"\n\n\ndef {function}():\n    look()", file, "exec"), names)
    run_steps([Step(names[function])], lambda: None)
    return seen[0]


@pytest.fixture
def loader() -> Iterator[None]:
    """A thread of the cell that waits."""
    end = threading.Event()
    names: dict[str, object] = {"end": end}
    exec(compile("def load():\n    end.wait()", CELL, "exec"), names)
    thread = threading.Thread(target=names["load"], name="Thread-1 (load)")  # type: ignore[arg-type]
    thread.start()
    yield
    end.set()
    thread.join(HANG_S)


@pytest.mark.usefixtures("loader")
def test_a_thread_is_named_with_its_line() -> None:
    """That which the interpreter waits for: a daemon, as the one that looks, is none."""
    found = _seen_in("/lib/threading.py", "_shutdown")
    assert found.startswith("its thread Thread-1 (load) (line 2, in ")


@pytest.mark.parametrize(
    ("file", "function", "words"),
    [
        ("/lib/multiprocessing/util.py", "_exit_function", "its child processes"),
        (CELL, "save", "an exit handler (line 5, in "),
        ("/lib/wandb/sdk.py", "finish", "an exit handler"),
        ("/lib/threading.py", "_shutdown", "its threads"),
    ],
)
def test_other_steps_of_the_exit(file: str, function: str, words: str) -> None:
    assert _seen_in(file, function).startswith(words)


def test_a_rank_that_does_not_exit_waits_for_nothing() -> None:
    assert exit_wait({CELL: ""}) == ""
