"""The kernel's handle of one forkserver process: start it, send it commands, read its reports."""

from __future__ import annotations

import asyncio
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import BinaryIO

import psutil

from ddp_magic.engines.forkserver_process import LentProcess, StartedProcess
from ddp_magic.engines.preload_record import PreloadRecord
from ddp_magic.system import libraries
from ddp_magic.system.environment import early_differences, rank_environment
from ddp_magic.system.processes import is_stopped
from ddp_magic.system.readable import readable
from ddp_magic.wire.commands import Command, ForkAgent, ForkServer, Preload
from ddp_magic.wire.events import Event, Forked, ForkObstacle, ForkserverHello, Importing, Preloaded
from ddp_magic.wire.forkserver_status import ForkserverStatus
from ddp_magic.wire.specs import AgentSpec


class Forkserver:
    """One forkserver process, from its start to its end.

    Args:
        process: The process.
        env: The environment of the ranks it is for; None for the environment of ranks that this
            process would start now.
        record: What to preload; updated with what the process reports.

    Attributes:
        ready: Whether it has imported all that it was asked to.
        importing: The module that it is importing; empty if none.
        obstacle: Why it must not be forked any more, once that is so.
        lent: Whether the forkserver of a notebook was to fork it for this process, a host.
    """

    def __init__(
        self,
        process: StartedProcess | LentProcess,
        env: dict[str, str] | None,
        record: PreloadRecord,
    ) -> None:
        self.ready = False
        self.importing = ""
        self._importing_since = time.monotonic()  # or waiting for it to be up
        self._stopped_since = math.inf  # as seen
        self.obstacle: ForkObstacle | None = None
        self.lent = isinstance(process, LentProcess)
        self._record = record
        self._notebook_env = current_rank_environment()
        self.env = self._notebook_env if env is None else env
        self._preloads = 0
        self._files: dict[str, list[object]] = {}
        self._failed: dict[str, str] = {}
        self._set_by_imports: dict[str, str] = {}
        self._unwatch: Callable[[], object] = lambda: None
        self._process = process
        self._channel = process.channel
        self.preload(record.wanted)

    def watch(self, on_readable: Callable[[], object]) -> None:
        """Call a function when the process has reported something, between cells too.

        Only in a thread with a running event loop that can watch descriptors.
        """
        try:
            loop = asyncio.get_running_loop()
            fd = self._channel.fileno()
            loop.add_reader(fd, on_readable)
        except (RuntimeError, NotImplementedError):
            return
        # Called before the descriptor is closed, whose number may then be another file's.
        self._unwatch = lambda: loop.is_closed() or loop.remove_reader(fd)

    # --- commands -----------------------------------------------------------------------------

    def preload(self, modules: Iterable[str]) -> None:
        """Ask it to import these libraries when it has nothing else to do."""
        names = tuple(modules)
        if names and not self._record.only_torch:
            self.ready = False
            self._preloads += 1
            path = tuple(libraries.search_path(sys.path, libraries.current_directory()))
            self._send(Preload(modules=names, number=self._preloads, sys_path=path))

    def fork_agent(self, spec: AgentSpec, env: dict[str, str]) -> None:
        """Ask it to fork an agent, in this process's present state."""
        cwd = libraries.current_directory()
        self._send(ForkAgent(spec=spec.to_json(), env=env, cwd=cwd, umask=_current_umask()))

    def lend(self, fd: int, host_pid: int) -> None:
        """Ask it to fork a forkserver for a host, which has the other end of this socket."""
        self._channel.send(ForkServer(kernel_pid=host_pid), fd=fd)

    def _send(self, command: Command) -> None:
        self._channel.send(command)

    def kill(self, obstacle: ForkObstacle | None = None) -> None:
        """End it at once; its agents go on.

        Args:
            obstacle: The reason, if a library is to blame.
        """
        self.obstacle = self.obstacle or obstacle
        self._process.kill()

    def close(self) -> None:
        """Close the connection. It ends once its agents have."""
        self._unwatch()
        self._unwatch = lambda: None
        self._channel.close()

    def wait(self, timeout_s: float) -> int | None:
        """Return its exit code; None if it has not ended `timeout_s` seconds later."""
        return self._process.wait(timeout_s)

    # --- reports ------------------------------------------------------------------------------

    def receive(self) -> list[tuple[Event | Command, int]] | None:
        """Return what it has reported since, without waiting.

        Returns:
            Pairs of an event and the descriptor that came with it, or -1; None once it has ended.

        Raises:
            ProtocolError: The descriptor did not arrive, since too many files are open.
        """
        if not readable([self._channel], 0):
            return []
        messages = self._channel.receive()
        if messages is None:
            return None
        return [(message, self._note(message)) for message in messages]

    def _note(self, message: Event | Command) -> int:
        match message:
            case ForkserverHello(pid=pid):
                if isinstance(self._process, LentProcess):
                    self._process.is_up(pid)
            case Importing(module=module):
                self._trust_import()
                self.importing, self._importing_since = module, time.monotonic()
            case Preloaded(files=files, failed=failed, environ=environ, number=number):
                self._trust_import()
                self._files, self._failed, self._set_by_imports = files, failed, environ
                self.ready = number == self._preloads  # else another Preload is on its way
                self._record.update(message)
            case ForkObstacle():
                self.obstacle = message
            case Forked():
                self._trust_import()
                return self._channel.take_fd()
            case _:
                pass
        return -1

    @property
    def importing_for_s(self) -> float:
        """How long it has been importing the module, or coming up, s."""
        busy = self.importing or not self._process.pid
        return time.monotonic() - self._importing_since if busy else 0.0

    @property
    def stopped_for_s(self) -> float:
        """How long it has been stopped (SIGSTOP, a debugger), since that was seen first, s."""
        pid = self._process.pid
        if not pid or not is_stopped(pid):
            self._stopped_since = math.inf
        else:
            self._stopped_since = min(self._stopped_since, time.monotonic())
        return max(time.monotonic() - self._stopped_since, 0.0)

    def _trust_import(self) -> None:
        if self.importing:
            self._record.trust(self.importing)
        self.importing = ""

    # --- is it still good for a start? --------------------------------------------------------

    def out_of_date(self, sys_path: Iterable[str], env: Mapping[str, str] | None = None) -> str:
        """Return why a fresh interpreter would import other libraries; empty if it would not.

        Args:
            sys_path: The ranks' module search path.
            env: Their environment; None if only what the notebook has changed counts.
        """
        names = self.changed_variables(env)
        return f"{', '.join(names)} changed" if names else self._changed_library(sys_path)

    def changed_variables(self, env: Mapping[str, str] | None = None) -> list[str]:
        """Return the variables that its libraries may have read in another state.

        Its own imports may have set a variable to the same value: that does not count.
        """
        then = self._notebook_env if env is None else self.env
        now = current_rank_environment() if env is None else env
        own = self._set_by_imports
        return [n for n in early_differences(now, then) if n not in own or now.get(n) != own[n]]

    def may_set_what_differs(self, env: Mapping[str, str], cell_words: Collection[str]) -> bool:
        """Return whether a library that is being imported may set the variables that differ.

        Args:
            env: The ranks' environment.
            cell_words: What the notebook's cells contain: it may have set these itself.
        """
        names = self.changed_variables(env)
        return bool(names) and not self.ready and not set(names) & set(cell_words)

    def _changed_library(self, sys_path: Iterable[str]) -> str:
        if not self.ready:
            return ""
        if upgraded := libraries.changed(self._files):
            return f"{upgraded} was reinstalled"
        # Not ddp_magic itself, which may be a checkout in front of what is installed.
        held = {n: str(f[0]) for n, f in self._files.items() if "." not in n and n != "ddp_magic"}
        if hidden := libraries.shadowed(held, sys_path, libraries.current_directory()):
            return f"{hidden[0]} is now found in {hidden[1]}"
        return ""

    def status(self) -> ForkserverStatus:
        """Return what `%ddp_status` shows."""
        pid = self._process.pid
        try:
            pss_mib = psutil.Process(pid).memory_full_info().pss / 2**20
        except psutil.Error:
            pss_mib = 0.0
        state = f"importing {self.importing}" if self.importing else "starting"
        tops = {name.partition(".")[0] for name in self._files}
        return ForkserverStatus(
            state="ready" if self.ready else state,
            pid=pid,
            pss_mib=pss_mib,
            libraries=tuple(sorted(tops, key=str.lower)),
            left_out={**self._failed, **self._record.left_out},
        )


def open_log() -> BinaryIO:
    """Open a file for the forkservers' output, in memory: no full disk can hinder them."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("forkserver-log"), "w+b")
    return tempfile.TemporaryFile()


def unsupported() -> str:
    """Return why there can be no forkserver on this system; empty if there can be one."""
    if sys.platform != "linux":
        return f"{sys.platform}, where a fork is unsafe"
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError):
        return "a system without pidfd"
    return ""


def current_rank_environment() -> dict[str, str]:
    """Return the environment of ranks that this process would start now."""
    return rank_environment(os.environ, None, 1)


def _current_umask() -> int:
    with open("/proc/self/status") as status:  # noqa: PTH123 -- os.umask can only set it
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022
