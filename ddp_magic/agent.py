"""One node's agent: torch's own elastic agent, in a process of its own.

Rendezvous, ranks and failure handling are torch's (`LocalElasticAgent`). Two things are ours,
because torch's own break our promises:

- how a rank is started and watched (`ForkContext`): forked from this process, which has torch
  imported already, watched by waitpid, ended by SIGTERM, then SIGKILL. torch's function entry
  point waits for return values and hangs when a rank calls `os._exit`, and its grace is 30 s;
- the store of the worker group: owned by the agent, on port 0, so no port is guessed and released.

The agent ends with its kernel: a thread waits for the end of the connection, and the ranks carry
PDEATHSIG should the agent itself be killed. It adopts what the ranks leave behind and ends it.

This is the only importer of `torch.distributed.elastic`.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from ddp_magic import processes
from ddp_magic.agent_spec import AgentSpec
from ddp_magic.channel import Channel, connect
from ddp_magic.events import AgentDone, AgentHello, Interrupt, Kill, WorkerExited

TERM_GRACE_S = 0.5  # between SIGTERM and SIGKILL, for ranks whose peer has failed
STACK_S = 0.03  # for the ranks to write where they are, before SIGTERM
LEFTOVER_GRACE_S = 1.0  # for what the ranks had started, after the ranks
MONITOR_INTERVAL_S = 0.02


class Ranks:
    """The processes of the ranks on this node.

    The main thread starts and polls them; the watcher thread may kill them. The lock makes sure
    that no signal goes to a pid that has been reaped.
    """

    def __init__(self, on_exit: Callable[[int, int], None]) -> None:
        """Begin without a process.

        Args:
            on_exit: Called with local rank and exit code once for each that has ended.
        """
        self._lock = threading.Lock()
        self._on_exit = on_exit
        self.pids: dict[int, int] = {}
        self.codes: dict[int, int] = {}
        # Stop was pressed: ranks that answered may finish what they are saving, so that one
        # rank's end no longer ends the others.
        self.interrupted = False
        self._doomed = False

    def add(self, local_rank: int, pid: int) -> None:
        """Take up a process that has just been forked."""
        with self._lock:
            self.pids[local_rank] = pid
            if self._doomed:
                os.kill(pid, signal.SIGKILL)

    def kill(self, local_ranks: tuple[int, ...]) -> None:
        """SIGKILL some of the ranks, or all where none is named: those still to come too."""
        self._doomed = self._doomed or not local_ranks
        self.signal(signal.SIGKILL, local_ranks)

    def poll(self) -> None:
        """Collect the exit codes of the ranks that have ended."""
        ended = []
        with self._lock:
            for local_rank, pid in self.pids.items():
                if local_rank in self.codes:
                    continue
                waited, status = os.waitpid(pid, os.WNOHANG)
                if waited:
                    self.codes[local_rank] = os.waitstatus_to_exitcode(status)
                    ended.append(local_rank)
        for local_rank in ended:
            self._on_exit(local_rank, self.codes[local_rank])

    def alive(self) -> list[int]:
        """Return the local ranks whose process has not been seen to end."""
        return [r for r in self.pids if r not in self.codes]

    def signal(self, sig: int, local_ranks: tuple[int, ...] = ()) -> None:
        """Send a signal to some of the ranks, or to all where none is named."""
        with self._lock:
            for local_rank, pid in self.pids.items():
                if local_rank not in self.codes and (not local_ranks or local_rank in local_ranks):
                    os.kill(pid, sig)

    def end(self, sig: int, grace_s: float) -> None:
        """Send a signal, and SIGKILL to those that have not ended `grace_s` seconds later."""
        self.poll()
        if self.alive():
            # Each tells first where it is (faulthandler, in C): the kernel reads it afterwards.
            self.signal(signal.SIGUSR1)
            time.sleep(STACK_S)
        self.signal(sig)
        deadline = time.monotonic() + grace_s
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.01)
            self.poll()
        self.signal(signal.SIGKILL)
        deadline = time.monotonic() + 5.0  # a process in uninterruptible sleep cannot be killed
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.005)
            self.poll()


class Watcher(threading.Thread):
    """Listens to the kernel and ends everything when the kernel is gone."""

    def __init__(self, channel: Channel, kernel_pid: int, ranks: Ranks) -> None:
        """Watch a connection and the kernel's pid; `start` begins."""
        super().__init__(name="ddp_magic-watcher", daemon=True)
        self._channel = channel
        self._kernel_pid = kernel_pid
        self._ranks = ranks

    def run(self) -> None:
        """Wait for commands, the end of the connection, or the end of the kernel."""
        try:
            kernel = os.pidfd_open(self._kernel_pid)
        except OSError:  # gone already, or a system without pidfd: the connection tells as well
            kernel = -1
        waited_for = [self._channel, kernel] if kernel >= 0 else [self._channel]
        while True:
            ready = select.select(waited_for, [], [])[0]
            commands = self._channel.receive() if self._channel in ready else []
            if commands is None or kernel in ready:
                self._end_everything()
            for command in commands or []:
                match command:
                    case Interrupt():
                        self._ranks.interrupted = True
                    case Kill(ranks=ranks):
                        self._ranks.interrupted = self._ranks.interrupted and bool(ranks)
                        if not ranks and not self._ranks.pids:
                            os._exit(1)  # still importing: there is nothing to end but us
                        self._ranks.kill(ranks)

    def _end_everything(self) -> NoReturn:
        self._ranks.signal(signal.SIGKILL)
        processes.sweep(grace_s=0.0)
        os._exit(1)


def _run_elastic(spec: AgentSpec, ranks: Ranks, in_rank: Callable[[], NoReturn]) -> None:
    """Run torch's agent until every rank has ended."""
    from torch.distributed import TCPStore
    from torch.distributed.elastic.agent.server import WorkerSpec, local_elastic_agent
    from torch.distributed.elastic.multiprocessing.api import (
        LogsDest,
        LogsSpecs,
        PContext,
        ProcessFailure,
        RunProcsResult,
        Std,
    )
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    class NoLogs(LogsSpecs):
        """The ranks' output goes to the kernel; torch is to redirect nothing."""

        def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
            nowhere = dict.fromkeys(envs, "")
            errors = {rank: str(Path(spec.worker.directory) / f"error{rank}.json") for rank in envs}
            return LogsDest(nowhere, nowhere, {}, {}, errors)

        @property
        def root_log_dir(self) -> str:
            return spec.worker.directory

    class ForkContext(PContext):
        """Ranks as forks of this process."""

        def _start(self) -> None:
            gc.collect()
            gc.freeze()  # shared pages stay shared: the collector does not touch what is frozen
            for local_rank in range(self.nprocs):
                pid = os.fork()
                if pid == 0:
                    _become_rank(self.envs[local_rank], in_rank)
                ranks.add(local_rank, pid)

        def _poll(self) -> RunProcsResult | None:
            ranks.poll()
            failed = {r: code for r, code in ranks.codes.items() if code}
            if ranks.alive() and (ranks.interrupted or not failed):
                return None
            failures = {
                r: ProcessFailure(r, ranks.pids[r], code, self.error_files[r])
                for r, code in failed.items()
            }
            return RunProcsResult({}, self.stdouts, self.stderrs, failures)

        def pids(self) -> dict[int, int]:
            return dict(ranks.pids)

        def _close(self, death_sig: signal.Signals, timeout: int = 30) -> None:
            del timeout  # torch's is for programs that nobody waits for
            ranks.end(death_sig, TERM_GRACE_S)

    class Agent(local_elastic_agent.LocalElasticAgent):
        def _rendezvous(self, worker_group: Any) -> None:  # noqa: ANN401: torch's own signature
            super()._rendezvous(worker_group)
            # A store for this attempt alone, on a port that it owns from the first moment.
            self._group_store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            worker_group.master_addr = "127.0.0.1"
            worker_group.master_port = self._group_store.port

    def fork_ranks(**kwargs: Any) -> PContext:
        for unused in ("start_method", "numa_options"):
            kwargs.pop(unused, None)
        context = ForkContext(**kwargs)
        context.start()
        return context

    local_elastic_agent.start_processes = fork_ranks  # type: ignore[assignment]
    rendezvous = RendezvousParameters(
        backend="c10d",
        endpoint="127.0.0.1:0",
        run_id=spec.run_id,
        min_nodes=1,
        max_nodes=1,
        local_addr="127.0.0.1",
        is_host=True,
    )
    agent = Agent(
        WorkerSpec(
            role="default",
            local_world_size=spec.nproc,
            rdzv_handler=get_rendezvous_handler(rendezvous),
            entrypoint="ddp_magic",  # a name for torch's log: `in_rank` is what runs
            max_restarts=0,
            monitor_interval=MONITOR_INTERVAL_S,
            local_addr="127.0.0.1",
        ),
        logs_specs=NoLogs(redirects=Std.NONE, tee=Std.NONE),
    )
    agent.run()


def _become_rank(env: Mapping[str, str], in_rank: Callable[[], NoReturn]) -> NoReturn:
    """Turn this fork of the agent into a rank. Nothing of the agent's may run in it any more."""
    try:
        agent_pid = os.getppid()
        os.setsid()
        processes.die_with_parent(agent_pid)
        for sig in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(sig, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.environ.update(env)
        in_rank()
    except BaseException:  # the agent's frames below must never run on in a rank
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(1)


def run(spec: AgentSpec) -> int:
    """Run the ranks of one node, and report to the kernel.

    Returns:
        The agent's exit code.
    """
    channel = connect(spec.worker.socket)
    channel.send(AgentHello(pid=os.getpid()))
    ranks = Ranks(lambda r, code: _report_exit(channel, r, code))
    processes.adopt_orphans()
    Watcher(channel, spec.kernel_pid, ranks).start()

    from ddp_magic import worker  # imports IPython once, for all ranks

    error = ""
    try:
        _run_elastic(spec, ranks, lambda: worker.main(spec.worker))
    except BaseException:  # whatever ended torch's agent is told to the kernel
        error = traceback.format_exc()
    ranks.end(signal.SIGTERM, TERM_GRACE_S)
    swept = processes.sweep(LEFTOVER_GRACE_S)
    channel.send(AgentDone(error=error, swept=swept))
    return 1 if error else 0


def _report_exit(channel: Channel, local_rank: int, code: int) -> None:
    channel.send(WorkerExited(rank=local_rank, time=time.time(), code=code))


def main() -> NoReturn:
    """Read the spec from standard input and run; the kernel starts this by `python -c`."""
    spec = AgentSpec.from_json(sys.stdin.read())
    sys.path[:] = spec.sys_path
    code = run(spec)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # torch's rendezvous threads are of no use any more
