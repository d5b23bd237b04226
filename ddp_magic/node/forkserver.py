"""The preloaded process: it has imported torch and the notebook's libraries, and forks agents.

There is one for each kernel. It has one thread and opens no device, so a fork of it is as good as a
fresh interpreter that has just imported the same libraries. It ends with its kernel. Its agents do
not depend on it once they are forked. For the host of a background run, which has a forkserver as a
kernel has, the notebook's forks one.

`preloader` imports, `trial` tries an import in a fork, `imports` knows what makes a process unsafe
to fork, `become_agent` is what a fork does first.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

import psutil

from ddp_magic.node.become_agent import become_agent
from ddp_magic.node.preloader import AGENTS_GRACE_S, ForkObstacleError, Preloader, freeze
from ddp_magic.system import processes
from ddp_magic.system.readable import readable
from ddp_magic.wire.channel import Channel
from ddp_magic.wire.commands import ForkAgent, ForkServer, Preload
from ddp_magic.wire.events import Forked, ForkObstacle, ForkserverHello
from ddp_magic.wire.specs import AgentSpec


class Forkserver:
    """The main loop: obeys the kernel, imports when there is nothing else to do, reaps agents.

    Args:
        channel: To the kernel.
        kernel: Its pidfd.
        preloader: What imports.
    """

    def __init__(self, channel: Channel, kernel: int, preloader: Preloader) -> None:
        self._channel = channel
        self._kernel = kernel
        self._preloader = preloader
        self._forks: dict[int, int] = {}  # pidfd -> pid

    def serve(self) -> NoReturn:
        """Import the base, then serve until the kernel is gone or this process unsafe to fork."""
        try:
            self._preloader.import_base()
            while True:
                ready = self._select([self._channel], self._preloader.patience_s())
                if self._channel in ready:
                    self._obey()
                else:
                    fds = [self._kernel, *self._forks]
                    self._preloader.step(fds, {*self._forks.values(), *self._preloader.of_hosts})
        except ForkObstacleError as error:
            self._channel.send(ForkObstacle(module=error.module, reason=error.reason))
            self._retire()

    def _select(self, more: list[Channel], timeout_s: float | None) -> list[Any]:
        """Wait; reap forks that have ended; end with the kernel."""
        waited_for: list[Any] = [*more, self._kernel, *self._forks]
        if (trial := self._preloader.trial) is not None:
            waited_for += [trial, trial.pidfd]
        ready = readable(waited_for, timeout_s)
        if self._kernel in ready:
            processes.sweep(AGENTS_GRACE_S, spare=self._preloader.of_hosts)
            os._exit(0)
        for pidfd in [fd for fd in self._forks if fd in ready]:
            self._reap(pidfd)
        return ready

    def _retire(self) -> NoReturn:
        """Fork no more, and end after the last agent."""
        self._channel.close()
        if self._preloader.trial is not None:
            self._preloader.trial.close()
            self._preloader.trial = None
        while set(self._forks.values()) - self._preloader.of_hosts:
            self._select([], None)
        os._exit(0)

    def _obey(self) -> None:
        commands = self._channel.receive()
        if commands is None:
            self._retire()
        for command in commands:
            match command:
                case Preload():
                    self._preloader.want(command)
                case ForkAgent():
                    self._fork(command)
                case ForkServer(kernel_pid=pid):
                    self._fork_forkserver(pid, self._channel.take_fd())
                case _:
                    pass

    def _fork(self, command: ForkAgent) -> None:
        spec = AgentSpec.from_json(command.spec)
        self._preloader.import_prelude(spec.prelude)
        if not self._preloader.reported:
            freeze()
        # As if the cell's imports had set them; what the notebook has set takes precedence.
        env = {**self._preloader.set_by_imports(), **command.env}
        pid = os.fork()
        if pid == 0:
            self._close_fds()
            become_agent(dataclasses.replace(command, env=env), spec)
        pidfd = os.pidfd_open(pid)
        self._forks[pidfd] = pid
        self._channel.send(Forked(run_id=spec.run_id), fd=pidfd)

    def _close_fds(self) -> None:
        """Close, in a fork, what is this process's own; channels close by themselves."""
        trial = self._preloader.trial
        more = () if trial is None else (trial.fileno(), trial.pidfd)
        for fd in (self._kernel, *self._forks, *more):
            os.close(fd)

    def _fork_forkserver(self, host_pid: int, fd: int) -> None:
        """Fork a forkserver for a host, with which it ends: not with this process or its kernel."""
        if not self._preloader.reported:
            freeze()
        pid = os.fork()
        if pid == 0:
            self._serve_host(host_pid, fd)
        os.close(fd)
        self._forks[os.pidfd_open(pid)] = pid
        self._preloader.of_hosts.add(pid)

    def _serve_host(self, host_pid: int, fd: int) -> NoReturn:
        try:
            self._close_fds()
            os.setsid()
            processes.adopt_orphans()
            host = os.pidfd_open(host_pid)
            channel = Channel(socket.socket(fileno=fd))
            channel.send(ForkserverHello(pid=os.getpid()))
            Forkserver(channel, host, self._preloader.forked(channel.send, host)).serve()
        except BaseException:  # noqa: BLE001 -- the frames below are this process's parent's
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(1)

    def _reap(self, pidfd: int) -> None:
        pid = self._forks.pop(pidfd)
        os.waitpid(pid, 0)
        os.close(pidfd)
        trial = self._preloader.trial
        known = {*self._forks.values(), *([] if trial is None else [trial.pid])}
        of_hosts = self._preloader.of_hosts
        # Who is killed leaves its processes to this one: a forkserver agents, which go on.
        if pid in of_hosts:
            of_hosts.remove(pid)
            of_hosts.update({p.pid for p in psutil.Process().children()} - known)
        else:
            processes.sweep(0.0, spare=known | of_hosts)


def main() -> NoReturn:
    """Serve the kernel, which starts this process by `python -c`; stdin has the rest."""
    start = json.loads(sys.stdin.read())
    sys.path[:] = start["sys_path"]
    sys.argv[:] = [""]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A kernel may ignore it, which is inherited; then no child can be waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    processes.adopt_orphans()
    processes.continue_after_parent()
    # Collections would touch, and so copy, the pages that agents and ranks share with this process.
    gc.disable()
    channel = Channel(socket.socket(fileno=start["channel"]))
    kernel = os.pidfd_open(start["kernel_pid"])
    preloader = Preloader(channel.send, kernel, start["trusted"], start["left_out"])
    Forkserver(channel, kernel, preloader).serve()
