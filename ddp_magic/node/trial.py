"""An import on trial: in a fork of the forkserver that is thrown away afterwards."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.machinery import ExtensionFileLoader, SourceFileLoader
from types import ModuleType
from typing import Any

from ddp_magic.node import imports
from ddp_magic.system import processes
from ddp_magic.system.readable import readable

TRIAL_S = 120.0
BEGINS_CUDA = "it begins CUDA while it is imported"


class Trial:
    """An import in a fork of this process, to which it does no harm.

    Args:
        module: What to import.
        close: Descriptors of this process that the fork must not hold.

    Attributes:
        module: What is imported.
        good: Modules that were imported in full before there was an obstacle, in that order.
        failed: Why it could not be imported; empty if it could.
        obstacle: Why a process that has imported it must not be forked; empty if it may be.
        environ: Environment variables that it has set.
    """

    def __init__(self, module: str, close: Iterable[int] = ()) -> None:
        self.module = module
        self.good: list[str] = []
        self.failed = self.obstacle = ""
        self.environ: dict[str, str] = {}
        self._deadline = time.monotonic() + TRIAL_S
        self._unread = b""
        self._reported = False
        self._pipe, write_end = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                processes.die_with_parent(parent)
                for fd in (self._pipe, *close):
                    os.close(fd)
                _try(module, write_end)
            finally:
                os._exit(0)
        os.close(write_end)
        os.set_blocking(self._pipe, False)
        self.pidfd = os.pidfd_open(self.pid)

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is news, for `select`."""
        return self._pipe

    @property
    def left_s(self) -> float:
        """The time that is left to it, s."""
        return max(0.0, self._deadline - time.monotonic())

    def over(self) -> bool:
        """Return whether it has ended or its time is up; if so, close it."""
        self._read()
        ended = self._reported or bool(readable([self.pidfd], 0))
        if not ended and self.left_s > 0:
            return False
        self._read()
        self.close()
        if not ended:
            self.obstacle = f"its import did not end within {TRIAL_S:g} s"
        return True

    def close(self) -> None:
        """Kill it and let go of it."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            status = os.waitpid(self.pid, 0)[1]
            if not self._reported:
                words = processes.exit_words(os.waitstatus_to_exitcode(status))
                self.obstacle = f"its import ended the process ({words})"
        os.close(self._pipe)
        os.close(self.pidfd)

    def _read(self) -> None:
        with suppress(BlockingIOError):
            while data := os.read(self._pipe, 2**16):
                self._unread += data
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            if line.startswith(b"{"):
                self._reported = True
                vars(self).update(json.loads(line))
            else:
                self.good.append(line.decode())

    def importable(self) -> list[str]:
        """Return the good modules whose packages were imported in full too."""
        there = {*self.good, *sys.modules}
        return [name for name in self.good if all(p in there for p in _packages(name))]


def _packages(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _try(module: str, pipe: int) -> None:
    """Import a module, and report what it does."""
    handlers = imports.signal_handlers()
    environ = dict(os.environ)
    obstacle = ""

    def finished(name: str) -> None:
        nonlocal obstacle
        obstacle = obstacle or imports.fork_obstacle([name], handlers)
        if not obstacle:
            os.write(pipe, name.encode() + b"\n")

    for loader in (SourceFileLoader, ExtensionFileLoader):
        _hook(loader, finished)
    failed, at_the_end = imports.import_library(module)
    if not obstacle and not at_the_end and not imports.cuda_survives_fork():
        obstacle = BEGINS_CUDA
    set_by_it = {n: v for n, v in os.environ.items() if environ.get(n) != v}
    obstacle = obstacle or at_the_end
    report: dict[str, Any] = {"failed": failed, "obstacle": obstacle, "environ": set_by_it}
    if obstacle == BEGINS_CUDA:  # and it is not known which of its modules does
        report["good"] = []
    os.write(pipe, json.dumps(report).encode() + b"\n")


def _hook(loader: Any, finished: Callable[[str], None]) -> None:  # noqa: ANN401 -- a loader's class
    execute = loader.exec_module

    def exec_module(self: Any, module: ModuleType) -> None:  # noqa: ANN401
        execute(self, module)
        finished(module.__name__)

    loader.exec_module = exec_module
