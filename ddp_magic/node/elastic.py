"""torch's own elastic agent (`LocalElasticAgent`), with three things of ours in it.

- How a rank is started and watched (`ForkContext`): forked from this process, which has torch
  imported already; watched by waitpid; ended by SIGTERM, then SIGKILL. torch's function entry point
  waits for return values and hangs when a rank calls `os._exit`, and its grace is 30 s.
- The rendezvous (`OneNode`): without a server, since there is one node. The ranks' groups have a
  store of their own (`process_group`), and what the ranks start a free port
  (`WorkerSettings.master_port`).
- No name server is asked for this machine's full name (`Agent`), which torch notes with each step
  of a run, and which none of its logs here shows.

The cold way (`torchrun`) is torch's own launcher, but with our rendezvous too.

It leans on internals of torch (`PContext`, `start_processes`, `_construct_event`); a test for each
supported torch watches them. This is the only importer of `torch.distributed.elastic`.
"""

from __future__ import annotations

import functools
import gc
import os
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server import api, local_elastic_agent
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.multiprocessing.api import (
    LogsDest,
    LogsSpecs,
    PContext,
    RunProcsResult,
    Std,
)
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from ddp_magic.node.ranks import TERM_GRACE_S, Ranks
from ddp_magic.system import entry_points
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.specs import AgentSpec, WorkerSettings

MONITOR_INTERVAL_S = 0.001  # torch sleeps so long between looks, which wait themselves
WAIT_S = 1.0
HOST = "127.0.0.1"
BACKEND = "ddp_magic"


class Agent(local_elastic_agent.LocalElasticAgent):
    """torch's agent, which does not wait for a name server.

    Where that does not answer and the machine's name is not in /etc/hosts, as on a laptop without
    its VPN, an empty run of four ranks took 25 s.

    Args:
        start: Stands in for torch's `start_processes`.
        args: torch's own.
        kwargs: torch's own.
    """

    def __init__(self, *args: Any, start: Callable[..., PContext], **kwargs: Any) -> None:  # noqa: ANN401
        """Take what torch gives."""
        super().__init__(*args, **kwargs)
        self._start_ranks = start

    def _start_workers(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- torch's own
        start = local_elastic_agent.start_processes  # type: ignore[attr-defined]

        def start_ranks(**given: Any) -> PContext:  # noqa: ANN401 -- torch's own
            # Before the fork: ranks have torch as it is, and may launch others with it.
            setattr(local_elastic_agent, "start_processes", start)  # noqa: B010
            return self._start_ranks(**given)

        setattr(local_elastic_agent, "start_processes", start_ranks)  # noqa: B010 -- not in its types
        try:
            return super()._start_workers(*args, **kwargs)
        finally:
            setattr(local_elastic_agent, "start_processes", start)  # noqa: B010

    def _construct_event(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- torch's own
        full_name = api._get_fq_hostname
        api._get_fq_hostname = socket.gethostname  # for this call: ranks have torch as it is
        try:
            return super()._construct_event(*args, **kwargs)
        finally:
            api._get_fq_hostname = full_name


class NoLogs(LogsSpecs):
    """Redirects nothing: the ranks' output goes to the kernel.

    Args:
        directory: Where torch may write.
    """

    def __init__(self, directory: str) -> None:
        """Redirect nothing."""
        super().__init__(redirects=Std.NONE, tee=Std.NONE)
        self._directory = directory

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Name no file but those for torch's own error records."""
        nowhere = dict.fromkeys(envs, "")
        errors = {rank: str(RunDirectory(Path(self._directory)).torch_error(rank)) for rank in envs}
        return LogsDest(nowhere, nowhere, {}, {}, errors)

    @property
    def root_log_dir(self) -> str:
        """Where torch may write."""
        return self._directory


class ForkContext(PContext):
    """The ranks as forks of this process.

    Args:
        ranks: The processes, shared with the agent's watcher.
        settings: What the ranks have in common.
        kwargs: torch's own.
    """

    def __init__(self, ranks: Ranks, settings: WorkerSettings, **kwargs: Any) -> None:  # noqa: ANN401
        """Take what torch gives; `start` forks."""
        super().__init__(**kwargs)
        self._ranks = ranks
        self._settings = settings

    def _start(self) -> None:
        gc.collect()
        gc.freeze()  # shared pages stay shared: the collector does not touch what is frozen
        for local_rank in range(self.nprocs):
            main = functools.partial(_run_worker, self.envs[local_rank], self._settings)
            self._ranks.fork(local_rank, main)

    def _poll(self) -> RunProcsResult | None:
        self._ranks.wait(WAIT_S)
        self._ranks.poll()
        failed = {r: code for r, code in self._ranks.codes.items() if code}
        if self._ranks.alive() and (self._ranks.interrupted or not failed):
            return None
        failures = {
            r: ProcessFailure(r, self._ranks.pids[r], code, self.error_files[r])
            for r, code in failed.items()
        }
        return RunProcsResult(
            return_values=dict.fromkeys(self._ranks.codes),
            failures=failures,
            stdouts=self.stdouts,
            stderrs=self.stderrs,
        )

    def pids(self) -> dict[int, int]:
        """Return the pids by local rank."""
        return dict(self._ranks.pids)

    def _close(self, death_sig: signal.Signals, timeout: int = 30) -> None:
        del timeout  # torch's is for programs that nobody waits for
        self._ranks.end(death_sig, TERM_GRACE_S)


class OneNode(RendezvousHandler):
    """The rendezvous of a single node: nobody to wait for, and no server.

    What is agreed here, the agent agrees with itself. torch's own handler (c10d) waits for up to
    0.3 s for nodes that could still join, listens on all interfaces, and unpickles what anyone has
    written to its store.

    Args:
        run_id: The run's name.
    """

    def __init__(self, run_id: str) -> None:
        """Open."""
        self._run_id = run_id
        self._closed = False

    def get_backend(self) -> str:
        """Return its name, for torch's log and torchrun's registry."""
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        """Return this node alone."""
        address = RendezvousStoreInfo(HOST, 0)
        return RendezvousInfo(HashStore(), rank=0, world_size=1, bootstrap_store_info=address)

    def is_closed(self) -> bool:
        """Tell whether there will be no other attempt."""
        return self._closed

    def set_closed(self) -> None:
        """Let there be no other attempt."""
        self._closed = True

    def num_nodes_waiting(self) -> int:
        """Return 0: no other node can join."""
        return 0

    def get_run_id(self) -> str:
        """Return the run's name."""
        return self._run_id

    def shutdown(self) -> bool:
        """Close."""
        self._closed = True
        return True


def register_rendezvous() -> str:
    """Let torchrun have our rendezvous; return the name for its `--rdzv-backend`."""

    def create(parameters: RendezvousParameters) -> RendezvousHandler:
        return OneNode(parameters.run_id)

    rendezvous_handler_registry.register(BACKEND, create)
    return BACKEND


def run(spec: AgentSpec, ranks: Ranks) -> None:
    """Run torch's agent until every rank has ended.

    Args:
        spec: What to run.
        ranks: Where the processes are kept.
    """

    def fork_ranks(**kwargs: Any) -> PContext:  # noqa: ANN401 -- torch's own
        for unused in ("start_method", "numa_options"):
            kwargs.pop(unused, None)
        context = ForkContext(ranks, spec.worker, **kwargs)
        context.start()
        return context

    workers = WorkerSpec(
        role="default",
        local_world_size=spec.nproc,
        rdzv_handler=OneNode(spec.run_id),
        entrypoint="ddp_magic",  # a name for torch's log: `worker.main` is what runs
        max_restarts=0,
        monitor_interval=MONITOR_INTERVAL_S,
        local_addr=HOST,
    )
    logs = NoLogs(spec.worker.directory)
    Agent(workers, logs_specs=logs, start=fork_ranks).run()


def _run_worker(env: Mapping[str, str], settings: WorkerSettings) -> NoReturn:
    os.environ.update(env)
    entry_points.resolve(entry_points.WORKER)(settings)
    os._exit(1)  # the worker never returns
