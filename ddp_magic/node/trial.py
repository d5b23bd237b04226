"""An import on trial: in a fork of the forkserver, which is thrown away afterwards."""

from __future__ import annotations

import json
import os
import select
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

TRIAL_S = 120.0
BEGINS_CUDA = "it begins CUDA while it is imported"


class Trial:
    """An import in a fork of this process, which ends with it: whatever it does is of no harm.

    Attributes:
        module: What is imported.
        good: Modules that were there in full before the process was unfit, in that order.
        failed: Why it could not be imported; empty where it could.
        unfit: Why a process that has imported it must not be forked from; empty where it may.
        environ: Environment variables that it has set.
    """

    def __init__(self, module: str, close: Iterable[int] = ()) -> None:
        """Begin.

        Args:
            module: What to import.
            close: Descriptors of this process that are none of the fork's.
        """
        self.module = module
        self.good: list[str] = []
        self.failed = self.unfit = ""
        self.environ: dict[str, str] = {}
        self._deadline = time.monotonic() + TRIAL_S
        self._unread = b""
        self._told = False
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
        """The time that it still has, s."""
        return max(0.0, self._deadline - time.monotonic())

    def over(self) -> bool:
        """Take what it has told; once it has ended, or its time has, close it and return True."""
        self._read()
        ended = self._told or bool(select.select([self.pidfd], [], [], 0)[0])
        if not ended and self.left_s > 0:
            return False
        self._read()
        self.close()
        if not ended:
            self.unfit = f"its import did not end within {TRIAL_S:g} s"
        return True

    def close(self) -> None:
        """End it."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            status = os.waitpid(self.pid, 0)[1]
            if not self._told:
                words = processes.exit_words(os.waitstatus_to_exitcode(status))
                self.unfit = f"its import ended the process ({words})"
        os.close(self._pipe)
        os.close(self.pidfd)

    def _read(self) -> None:
        with suppress(BlockingIOError):
            while data := os.read(self._pipe, 2**16):
                self._unread += data
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            if line.startswith(b"{"):
                self._told = True
                vars(self).update(json.loads(line))
            else:
                self.good.append(line.decode())

    def importable(self) -> list[str]:
        """Return of what was good all that can be imported without what was not."""
        there = {*self.good, *sys.modules}
        return [name for name in self.good if all(p in there for p in _packages(name))]


def _packages(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _try(module: str, pipe: int) -> None:
    """Import a module, and tell what comes of it."""
    handlers = imports.signal_handlers()
    environ = dict(os.environ)
    bad = ""

    def finished(name: str) -> None:
        nonlocal bad
        bad = bad or imports.fork_obstacle([name], handlers)
        if not bad:
            os.write(pipe, name.encode() + b"\n")

    for loader in (SourceFileLoader, ExtensionFileLoader):
        _hook(loader, finished)
    failed, bad_at_the_end = imports.import_library(module)
    if not bad and not bad_at_the_end and not imports.cuda_survives_fork():
        bad = BEGINS_CUDA
    set_by_it = {n: v for n, v in os.environ.items() if environ.get(n) != v}
    told: dict[str, Any] = {"failed": failed, "unfit": bad or bad_at_the_end, "environ": set_by_it}
    if bad == BEGINS_CUDA:  # and nobody knows which of its modules does
        told["good"] = []
    os.write(pipe, json.dumps(told).encode() + b"\n")


def _hook(loader: Any, finished: Callable[[str], None]) -> None:  # noqa: ANN401 -- a loader's class
    execute = loader.exec_module

    def exec_module(self: Any, module: ModuleType) -> None:  # noqa: ANN401
        execute(self, module)
        finished(module.__name__)

    loader.exec_module = exec_module
