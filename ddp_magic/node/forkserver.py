"""The preloaded process: it has imported torch and the notebook's libraries, and forks agents.

There is one for each kernel. It has one thread and opens no device, so a fork of it is as good as a
fresh interpreter that has just imported the same libraries. It ends with its kernel. Its agents do
not depend on it once they are forked.

`preloader` imports, `trial` tries an import in a fork, `imports` knows what makes a process unsafe
to fork, `become_agent` is what a fork does first.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import select
import signal
import socket
import sys
from typing import Any, NoReturn

from ddp_magic.node.become_agent import become_agent
from ddp_magic.node.preloader import AGENTS_GRACE_S, ForkObstacleError, Preloader, freeze
from ddp_magic.system import processes
from ddp_magic.wire.channel import Channel
from ddp_magic.wire.messages import ForkAgent, Forked, ForkObstacle, Preload
from ddp_magic.wire.specs import AgentSpec


class Forkserver:
    """The main loop: obeys the kernel, imports when there is nothing else to do, reaps agents.

    Args:
        channel: To the kernel.
        kernel_pid: Its pid, which is the parent's.
        preloader: What imports.
    """

    def __init__(self, channel: Channel, kernel_pid: int, preloader: Preloader) -> None:
        self._channel = channel
        self._kernel = os.pidfd_open(kernel_pid)
        self._preloader = preloader
        self._agents: dict[int, int] = {}  # pidfd -> pid

    def serve(self) -> NoReturn:
        """Import the base, then serve until the kernel is gone or this process unsafe to fork."""
        try:
            self._preloader.import_base()
            while True:
                ready = self._select([self._channel], self._preloader.patience_s())
                if self._channel in ready:
                    self._obey()
                else:
                    fds = [self._kernel, *self._agents]
                    self._preloader.step(fds, self._agents.values())
        except ForkObstacleError as error:
            self._channel.send(ForkObstacle(module=error.module, reason=error.reason))
            self._retire()

    def _select(self, more: list[Channel], timeout_s: float | None) -> list[Any]:
        """Wait; reap agents that have ended; end with the kernel."""
        waited_for: list[Any] = [*more, self._kernel, *self._agents]
        if (trial := self._preloader.trial) is not None:
            waited_for += [trial, trial.pidfd]
        ready = select.select(waited_for, [], [], timeout_s)[0]
        if self._kernel in ready:
            processes.sweep(AGENTS_GRACE_S)
            os._exit(0)
        for pidfd in [fd for fd in self._agents if fd in ready]:
            self._reap(pidfd)
        return ready

    def _retire(self) -> NoReturn:
        """Fork no more, and end after the last agent."""
        self._channel.close()
        if self._preloader.trial is not None:
            self._preloader.trial.close()
            self._preloader.trial = None
        while self._agents:
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
                case _:
                    pass

    def _fork(self, command: ForkAgent) -> None:
        spec = AgentSpec.from_json(command.spec)
        self._preloader.import_prelude(spec.prelude)
        if not self._preloader.reported:
            freeze()
        # As if the cell's imports had set them; what the notebook has set takes precedence.
        env = {**self._preloader.set_by_imports(), **command.env}
        trial = self._preloader.trial
        pid = os.fork()
        if pid == 0:
            more = () if trial is None else (trial.fileno(), trial.pidfd)
            for fd in (self._kernel, *self._agents, *more):
                os.close(fd)
            become_agent(dataclasses.replace(command, env=env), spec)
        pidfd = os.pidfd_open(pid)
        self._agents[pidfd] = pid
        self._channel.send(Forked(run_id=spec.run_id), fd=pidfd)

    def _reap(self, pidfd: int) -> None:
        os.waitpid(self._agents.pop(pidfd), 0)
        os.close(pidfd)
        # An agent that was killed leaves its processes to this one.
        trial = self._preloader.trial
        spare = [*self._agents.values(), *([] if trial is None else [trial.pid])]
        processes.sweep(0.0, spare=spare)


def main() -> NoReturn:
    """Serve the kernel, which starts this process by `python -c`; stdin has the rest."""
    start = json.loads(sys.stdin.read())
    sys.path[:] = start["sys_path"]
    sys.argv[:] = [""]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A kernel may ignore it, which is inherited; then no child can be waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    processes.adopt_orphans()
    # Collections would touch, and so copy, the pages that agents and ranks share with this process.
    gc.disable()
    channel = Channel(socket.socket(fileno=start["channel"]))
    kernel_pid = start["kernel_pid"]
    preloader = Preloader(channel.send, kernel_pid, start["trusted"], start["left_out"])
    Forkserver(channel, kernel_pid, preloader).serve()
