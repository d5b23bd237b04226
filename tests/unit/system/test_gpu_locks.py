"""Locks on GPUs, between real processes."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ddp_magic.system import gpu_locks
from ddp_magic.system.gpu_locks import GpuLocks, holder
from tests.limits import HANG_S

HOLD = """
import sys
from ddp_magic.system.gpu_locks import GpuLocks
locks = GpuLocks()
print(*[locks.take(uuid) for uuid in sys.argv[1:]], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def uuid(request: pytest.FixtureRequest) -> str:
    """A GPU that no other test has."""
    return f"GPU-test-{os.getpid()}-{request.node.name[:40]}"


@pytest.fixture
def locks() -> Iterator[GpuLocks]:
    made = GpuLocks()
    yield made
    made.release()


@contextmanager
def _notebook(*uuids: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, which holds these GPUs."""
    argv = [sys.executable, "-c", HOLD, *uuids]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().split() == ["True"] * len(uuids)
        yield process
        process.kill()


def test_one_process_holds_a_gpu(uuid: str, locks: GpuLocks) -> None:
    with _notebook(uuid):
        assert not locks.take(uuid)
        assert locks.take(uuid + "b")


def test_another_process_sees_who_holds_it(uuid: str) -> None:
    assert holder(uuid) is None
    with _notebook(uuid) as other:
        found = holder(uuid)
        assert found is not None
        assert (found.pid, found.user) == (other.pid, gpu_locks.user_name(os.getuid()))


def test_a_killed_process_holds_nothing(uuid: str, locks: GpuLocks) -> None:
    with _notebook(uuid) as other:
        os.kill(other.pid, signal.SIGKILL)
        other.wait(HANG_S)
        assert locks.take(uuid)


def test_a_released_gpu_can_be_taken_again(uuid: str, locks: GpuLocks) -> None:
    assert locks.take(uuid)
    locks.release()
    assert holder(uuid) is None
    assert locks.take(uuid)


def test_two_runs_of_one_process_do_not_share_a_gpu(uuid: str, locks: GpuLocks) -> None:
    other = GpuLocks()
    assert locks.take(uuid)
    assert not other.take(uuid)
    found = holder(uuid)
    assert found is not None
    assert found.pid == os.getpid()


def test_a_forked_child_does_not_hold_it(uuid: str, locks: GpuLocks) -> None:
    """A `DataLoader` worker of the notebook may outlive the run."""
    assert locks.take(uuid)
    ready, end = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover -- in the child
        os.close(end[1])
        os.write(ready[1], b".")
        os.read(end[0], 1)
        os._exit(0)
    try:
        os.read(ready[0], 1)
        locks.release()
        assert holder(uuid) is None
    finally:
        for fd in (*ready, *end):
            os.close(fd)
        os.waitpid(child, 0)


def test_a_program_that_is_started_does_not_hold_it(uuid: str, locks: GpuLocks) -> None:
    assert locks.take(uuid)
    with subprocess.Popen(["sleep", "600"], close_fds=False) as program:
        locks.release()
        assert holder(uuid) is None
        program.kill()


TAKE_OVER = """
import pickle, sys
locks = pickle.loads(bytes.fromhex(sys.argv[1]))
print(*locks.descriptors, flush=True)
sys.stdin.readline()
locks.release()
print("released", flush=True)
sys.stdin.read()
"""


def test_a_program_that_is_started_can_take_them_over(uuid: str, locks: GpuLocks) -> None:
    """The host of a background run does: it outlives the notebook that chose the GPUs."""
    assert locks.take(uuid)
    argv = [sys.executable, "-c", TAKE_OVER, pickle.dumps(locks).hex()]
    pipe, fds = subprocess.PIPE, tuple(locks.descriptors.values())
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, pass_fds=fds, text=True) as host:
        assert host.stdin is not None
        assert host.stdout is not None
        assert host.stdout.readline().split() == [uuid]
        locks.release()
        found = holder(uuid)
        assert found is not None
        assert found.pid == host.pid
        host.stdin.write("\n")
        host.stdin.flush()
        assert host.stdout.readline() == "released\n"
        assert holder(uuid) is None
        host.kill()


def test_locks_that_were_not_passed_on_are_not_taken_over(uuid: str, locks: GpuLocks) -> None:
    assert locks.take(uuid)
    argv = [sys.executable, "-c", TAKE_OVER, pickle.dumps(locks).hex()]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as host:
        assert host.communicate("", HANG_S)[0] == "\nreleased\n"


def test_a_copy_holds_nothing(uuid: str, locks: GpuLocks) -> None:
    assert locks.take(uuid)
    copy.deepcopy(locks).release()
    assert holder(uuid) is not None


def test_an_error_releases_them(uuid: str, locks: GpuLocks) -> None:
    locks.take(uuid)
    with pytest.raises(KeyboardInterrupt), locks.released_on_error():
        raise KeyboardInterrupt
    assert holder(uuid) is None


def test_the_holder_is_known_however_many_ask(uuid: str, locks: GpuLocks) -> None:
    """Nobody answers those who ask: the operating system keeps them in a short queue."""
    locks.take(uuid)
    for _ in range(500):
        assert holder(uuid) is not None


def test_one_at_a_time_chooses() -> None:
    inside: list[int] = []
    most: list[int] = []

    def choose() -> None:
        with gpu_locks.choosing():
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=choose) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    assert most == [1, 1, 1, 1]


def test_a_user_without_a_name() -> None:
    assert gpu_locks.user_name(2**31 - 5) == f"user {2**31 - 5}"
