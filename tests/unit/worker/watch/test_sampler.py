"""Looking at the main thread, for the profile."""

from __future__ import annotations

import sysconfig
import threading
import time
from pathlib import Path

import pytest

from ddp_magic.wire.profile import Place, ProfileWriter, RankProfile, Spent, read
from ddp_magic.worker.watch.sampler import Sampler
from ddp_magic.worker.watch.user_files import is_users_file
from tests.limits import HANG_S

CELL = "/run/cell.py"


def _looked(tmp_path: Path, source: str, looks: int = 3) -> RankProfile:
    """Run a cell's text; another thread looks while it is in `stay()`."""
    writer = ProfileWriter(tmp_path / "profile", 0, "cpu", time.time())
    sampler = Sampler(writer, on_gpu=False)

    def look() -> None:
        for _ in range(looks):
            time.sleep(0.05)
            sampler.look()

    thread = threading.Thread(target=look)
    names = {"time": time, "watched": thread.start, "done": lambda: thread.join(HANG_S)}
    exec(compile(source, CELL, "exec"), names)
    thread.join(HANG_S)
    sampler.close()
    writer.flush()
    found = read((tmp_path / "profile").open())
    assert found is not None
    return found


def test_a_sample_has_the_line_and_stands_for_the_time_since_the_last(tmp_path: Path) -> None:
    found = _looked(tmp_path, "watched()\n\ntime.sleep(1)\ndone()")
    assert found.samples[-1].spent is Spent.IDLE
    place = found.places[found.samples[-1].place]
    assert (place.file, place.line) == (CELL, 3)
    assert sum(sample.seconds for sample in found.samples) == pytest.approx(
        found.samples[-1].time - found.began, abs=0.1
    )


def test_a_thread_that_computes_does_not_sleep(tmp_path: Path) -> None:
    busy = "watched()\nend = time.time() + 1\nwhile time.time() < end:\n    sum(range(100))\n"
    found = _looked(tmp_path, busy)
    assert Spent.COMPUTE in {sample.spent for sample in found.samples}


def test_the_innermost_line_of_the_users_counts(tmp_path: Path) -> None:
    """A function of the cell that a library calls."""
    nested = "def f(x):\n    watched()\n    time.sleep(1)\nlist(map(f, [1]))\ndone()"
    found = _looked(tmp_path, nested)
    assert found.places[found.samples[-1].place].line == 3


def test_what_a_wrapper_calls_is_named(tmp_path: Path) -> None:
    """`all_reduce` is called by a wrapper of torch's, as this wait by one of contextlib's."""
    wrapped = (
        "import contextlib, threading\n"
        "class Empty(contextlib.ContextDecorator):\n"
        "    def __enter__(self): pass\n"
        "    def __exit__(self, *_): pass\n"
        "wait = Empty()(threading.Event().wait)\n"
        "watched()\nwait(1)\ndone()"
    )
    found = _looked(tmp_path, wrapped)
    place = found.places[found.samples[-1].place]
    assert place.line == 7
    assert place.call.endswith("wait")


def test_libraries_are_not_the_users() -> None:
    assert is_users_file(CELL)
    assert is_users_file("/home/me/project/data.py")
    assert not is_users_file(f"{sysconfig.get_path('stdlib')}/threading.py")
    assert not is_users_file("/env/lib/python3.11/site-packages/torch/nn/modules/linear.py")
    assert not is_users_file("<frozen importlib._bootstrap>")
    assert not is_users_file(is_users_file.__code__.co_filename)


def test_a_place_without_a_line_is_nowhere() -> None:
    assert Place() == ("", 0, "")


BESIDE = """
import threading
stop = threading.Event()
def burn():
    while not stop.is_set():
        pass
def waits():
    stop.wait()
others = [threading.Thread(target=target) for target in (waits, burn)]
for other in others:
    other.start()
end = time.time() + 60
watched()
while not seen() and time.time() < end:
    sum(range(1000))
stop.set()
done()
for other in others:
    other.join()
"""


def test_a_thread_that_runs_beside_is_seen_at_its_line(tmp_path: Path) -> None:
    """It has the interpreter lock for half of the time; one that waits takes nothing."""
    writer = ProfileWriter(tmp_path / "profile", 0, "cpu", time.time())
    sampler = Sampler(writer, on_gpu=False)

    def look() -> None:
        while not sampler.beside() and time.monotonic() < end:
            time.sleep(0.05)
            sampler.look()

    end = time.monotonic() + HANG_S
    thread = threading.Thread(target=look)
    names = {"time": time, "watched": thread.start, "seen": sampler.beside}
    exec(compile(BESIDE, CELL, "exec"), {**names, "done": lambda: thread.join(HANG_S)})
    sampler.close()
    writer.end(time.time(), 0, {}, 0.0, sampler.beside())
    found = read((tmp_path / "profile").open())
    assert found is not None
    (place,) = (found.places[index] for index in found.beside)
    assert (place.file, place.line in (5, 6)) == (CELL, True)
