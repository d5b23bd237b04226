"""Run directories of the tests' own; a real worker group with fake ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.limits import HANG_S
from tests.unit.kernel.scene import Scene


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where a shell started the tests in its background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def run_directories(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs keep their files where they are removed after the test; the path must be short."""
    # A thread that looks for old runs may write there at the end.
    with tempfile.TemporaryDirectory(prefix="ddp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("XDG_CACHE_HOME", folder)
        yield


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A group whose agent and two ranks are connected."""
    scene = Scene(tmp_path)
    yield scene
    scene.close()


@pytest.fixture
def stopped_kernel() -> Iterator[Callable[[Path], int]]:
    """Start processes that listen as kernels do, in a given directory, and are stopped."""
    program = """
        import os, signal, socket, sys

        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{sys.argv[1]}/kernel-{os.getpid()}.control")
        listener.listen()
        os.kill(os.getpid(), signal.SIGSTOP)
    """
    started = []

    def start(root: Path) -> int:
        argv = [sys.executable, "-c", textwrap.dedent(program), str(root)]
        process = subprocess.Popen(argv)
        started.append(process)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.wait(HANG_S)
