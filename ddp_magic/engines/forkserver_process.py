"""The process of a forkserver: started by this one, or forked by the forkserver of a notebook."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import psutil

from ddp_magic.engines.preload_record import PreloadRecord
from ddp_magic.system import libraries, processes
from ddp_magic.system.entry_points import write_start
from ddp_magic.system.environment import forkserver_environment
from ddp_magic.wire.channel import Channel


class StartedProcess:
    """A forkserver in a new interpreter.

    Args:
        command: What starts it.
        env: The environment of the ranks it is for.
        record: What earlier ones have shown of the libraries.
        log: Where its stdout and stderr go.

    Attributes:
        channel: The connection to it.
    """

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], record: PreloadRecord, log: BinaryIO
    ) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=forkserver_environment(env),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            start = {
                "channel": theirs.fileno(),
                "kernel_pid": os.getpid(),
                "sys_path": libraries.search_path(sys.path, libraries.current_directory()),
                "trusted": record.trusted,
                "left_out": record.left_out,
            }
            write_start(self._process, start)
        self.channel = Channel(ours)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def wait(self, timeout_s: float) -> int | None:
        """Return its exit code; None if it has not ended `timeout_s` seconds later."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None


class LentProcess:
    """A forkserver that the notebook's has forked for this process, which is a host.

    Args:
        fd: The connection to it.

    Attributes:
        channel: The connection to it.
    """

    def __init__(self, fd: int) -> None:
        self.channel = Channel(socket.socket(fileno=fd))
        self._process: psutil.Process | None = None

    @property
    def pid(self) -> int:
        """Its process id; 0 if it is not known yet."""
        return self._process.pid if self._process is not None else 0

    def is_up(self, pid: int) -> None:
        """Take its process id, which it says itself."""
        try:
            self._process = psutil.Process(pid)
        except psutil.NoSuchProcess:  # it has ended, as its connection shows
            self._process = None

    def kill(self) -> None:
        """End it at once; if it is not up yet, by its connection."""
        if self._process is None:
            self.channel.shutdown()
            return
        processes.kill(self._process)

    def wait(self, timeout_s: float) -> int | None:
        """Return 0; None if it has not ended `timeout_s` seconds later."""
        try:
            if self._process is not None:
                self._process.wait(timeout_s)
        except psutil.TimeoutExpired:
            return None
        return 0
