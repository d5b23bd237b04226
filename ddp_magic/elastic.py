"""torch's own elastic agent (`LocalElasticAgent`), with three things of ours in it.

- How a rank is started and watched (`ForkContext`): forked from this process, which has torch
  imported already; watched by waitpid; ended by SIGTERM, then SIGKILL. torch's function entry point
  waits for return values and hangs when a rank calls `os._exit`, and its grace is 30 s.
- The store behind MASTER_ADDR and MASTER_PORT: owned by the agent, on a port of the loopback
  interface that is never guessed and released; every attempt has its own. The ranks do
  without it (`process_group`), and what they start has another port (`WorkerSettings.master_port`).
- No name server is asked for this machine's full name (`Agent`), which torch notes with each step
  of a run, and which none of its logs here shows.

The cold way (`torchrun`) is torch's own launcher, but with our rendezvous and store too.

It leans on internals of torch (`PContext`, `start_processes`, `_construct_event`); a test for each
supported torch watches them. This is the only importer of `torch.distributed.elastic`.
"""

from __future__ import annotations

import functools
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]
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

from ddp_magic import worker
from ddp_magic.agent_spec import AgentSpec, WorkerSettings
from ddp_magic.ranks import TERM_GRACE_S, Ranks

MONITOR_INTERVAL_S = 0.001  # torch sleeps so long between looks, which wait themselves
WAIT_S = 1.0
HOST = "127.0.0.1"
BACKEND = "ddp_magic"
LISTEN_BACKLOG = 1024


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
        errors = {rank: str(Path(self._directory) / f"error{rank}.json") for rank in envs}
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
        listening = _listen()
        port = listening.getsockname()[1]
        for local_rank in range(self.nprocs):
            env = {**self.envs[local_rank], "MASTER_PORT": str(port)}
            main = functools.partial(_run_worker, env, self._settings, listening)
            self._ranks.fork(local_rank, main)
        # Only now, with all ranks forked: its server has threads, which could hold a lock at the
        # moment of a fork that nobody would release in the rank. And in a thread of its own: torch
        # may ask the DNS for names, while the ranks need the store only where they fork others.
        threading.Thread(target=self._serve_store, args=(listening,), daemon=True).start()

    def _serve_store(self, listening: socket.socket) -> None:
        self._store = _serve_store(listening)

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

    The ranks' store comes later (`ForkContext`): what is agreed here, the agent agrees with itself.
    torch's own handler (c10d) waits for up to 0.3 s for nodes that could still join, listens on all
    interfaces, and unpickles what anyone has written to its store.

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

    @property
    def use_agent_store(self) -> bool:
        """True: the ranks are clients of the store."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Return this node alone; `ForkContext` puts the port in."""
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


class OneNodeWithStore(OneNode):
    """The same for plain torchrun, which starts its ranks by itself: the store is served here."""

    def next_rendezvous(self) -> RendezvousInfo:
        """Return this node alone, with the port of a new store."""
        listening = _listen()
        address = RendezvousStoreInfo(HOST, listening.getsockname()[1])
        # In a thread, as above: the ranks connect to the socket, which listens already.
        threading.Thread(target=self._serve_store, args=(listening,), daemon=True).start()
        return RendezvousInfo(HashStore(), rank=0, world_size=1, bootstrap_store_info=address)

    def _serve_store(self, listening: socket.socket) -> None:
        self._store = _serve_store(listening)


def register_rendezvous() -> str:
    """Let torchrun have our rendezvous; return the name for its `--rdzv-backend`."""

    def create(parameters: RendezvousParameters) -> RendezvousHandler:
        return OneNodeWithStore(parameters.run_id)

    rendezvous_handler_registry.register(BACKEND, create)
    return BACKEND


def _listen() -> socket.socket:
    """Return a listening socket of the loopback interface."""
    listening = socket.socket()
    listening.bind((HOST, 0))
    listening.listen(LISTEN_BACKLOG)
    return listening


def _serve_store(listening: socket.socket) -> TCPStore:
    """Return the store behind a socket; left to itself, torch listens on all interfaces."""
    port = listening.getsockname()[1]
    return TCPStore(
        HOST,
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listening.detach(),
        use_libuv=False,  # its server asks the DNS for the name of each client, in turn
    )


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


def _run_worker(
    env: Mapping[str, str], settings: WorkerSettings, listening: socket.socket
) -> NoReturn:
    listening.close()
    os.environ.update(env)
    worker.main(settings)
