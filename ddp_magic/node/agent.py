"""The agent of one node: a process that runs the ranks and ends with its kernel.

torch's own elastic agent handles rendezvous, ranks and failures (`elastic`). This module has what
surrounds it: the connection to the kernel, and the end of the ranks. A thread waits for commands,
and for the end of the connection or of the kernel. The ranks carry PDEATHSIG, in case the agent
itself is killed. The agent adopts the processes that the ranks leave behind, and ends them.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

from ddp_magic.node.ranks import TERM_GRACE_S, Ranks
from ddp_magic.system import processes
from ddp_magic.system.readable import readable
from ddp_magic.wire.channel import Channel, connect
from ddp_magic.wire.commands import Command, DumpStack, Interrupt, Kill
from ddp_magic.wire.events import AgentDone, AgentHello, Event, WorkerExited
from ddp_magic.wire.specs import AgentSpec

LEFTOVER_GRACE_S = 1.0  # for what the ranks had started, after the ranks

# Called with the number of restarts, this one included; returns whether it may go on.
MayRestart: TypeAlias = Callable[[int], bool]


class Watcher(threading.Thread):
    """Obeys the kernel's commands, and ends everything when the kernel is gone."""

    def __init__(self, channel: Channel, spec: AgentSpec, ranks: Ranks) -> None:
        super().__init__(name="ddp_magic-watcher", daemon=True)
        self._channel = channel
        self._kernel_pid = spec.kernel_pid
        # Of torchrun's keepers each has one rank, but is told of all.
        self._own = range(spec.first_rank, spec.first_rank + spec.nproc)
        self._ranks = ranks

    def run(self) -> None:
        """Wait for commands, the end of the connection, or the end of the kernel."""
        try:
            kernel = os.pidfd_open(self._kernel_pid)
        except (OSError, AttributeError):  # gone, or no pidfd here: the connection ends as well
            kernel = -1
        waited_for: list[Any] = [self._channel, kernel] if kernel >= 0 else [self._channel]
        while True:
            ready = readable(waited_for, None)
            commands = self._channel.receive() if self._channel in ready else []
            if commands is None or kernel in ready:
                self._end_everything()
            for command in commands or []:
                self._obey(command)

    def _obey(self, command: Command | Event) -> None:
        match command:
            case Interrupt():
                self._ranks.interrupted = True
            case Kill(ranks=()):
                self._ranks.interrupted = False
                if not self._ranks.pids:
                    os._exit(1)  # no rank has been forked
                self._ranks.kill(())
            case Kill(ranks=ranks):
                if local := tuple(r - self._own[0] for r in ranks if r in self._own):
                    self._ranks.kill(local)
            case DumpStack(rank=rank) if rank in self._own:
                self._ranks.signal(signal.SIGUSR1, (rank - self._own[0],))

    def _end_everything(self) -> NoReturn:
        self._ranks.signal(signal.SIGKILL)
        processes.sweep(grace_s=0.0)
        os._exit(1)


def serve(
    spec: AgentSpec, launch: Callable[[AgentSpec, Ranks, MayRestart], None], attempt: int = 0
) -> NoReturn:
    """Run the ranks, report to the kernel, and exit.

    Args:
        spec: What to run.
        launch: Forks the ranks, asks before it forks others in their places, and returns when they
            have ended.
        attempt: How often the ranks were restarted before.
    """
    channel = connect(spec.worker.socket)
    channel.send(AgentHello(attempt=attempt))
    ranks = Ranks(functools.partial(_report_exit, channel, spec.first_rank))
    processes.adopt_orphans()
    Watcher(channel, spec, ranks).start()
    error, swept = "", 0

    def may_restart(restarts: int) -> bool:
        nonlocal swept
        swept += processes.sweep(LEFTOVER_GRACE_S)  # it may hold a port, a file, a GPU's memory
        if ranks.ending or ranks.alive():
            return False
        ranks.forget()
        channel.send(AgentHello(attempt=restarts))
        return True

    try:
        launch(spec, ranks, may_restart)
    except BaseException:  # noqa: BLE001 -- whatever ended torch's agent is reported to the kernel
        error = traceback.format_exc()
    ranks.end(signal.SIGTERM, TERM_GRACE_S)
    swept += processes.sweep(LEFTOVER_GRACE_S)
    channel.send(AgentDone(error=error, swept=swept))
    sys.stdout.flush()
    sys.stderr.flush()
    # torchrun restarts ranks whose keepers fail: not those that the kernel has killed.
    failed = not ranks.doomed and (error or any(ranks.codes.values()))
    os._exit(1 if failed else 0)  # without waiting for torch's threads


def _report_exit(channel: Channel, first: int, local: int, code: int, by_agent: bool) -> None:
    channel.send(WorkerExited(rank=first + local, time=time.time(), code=code, by_agent=by_agent))
