"""torch's own elastic agent (`LocalElasticAgent`), with three things of ours in it.

- How a rank is started and watched (`ForkContext`): forked from this process, which has already
  imported torch; watched by waitpid; ended by SIGTERM, then SIGKILL. torch's function entry point
  waits for return values and hangs when a rank calls `os._exit`, and its grace is 30 s.
- The rendezvous (`OneNode`): no server, since there is one node. The ranks' process groups have a
  store of their own (`process_group`), and what the ranks start gets a free port, MASTER_PORT.
  With several nodes (`rendezvous.SeveralNodes`) node 0 owns the stores.
- The machine's full name is not looked up. torch records it with each step of a run, in logs that
  are not shown here. Where the name server does not answer and the name is not in /etc/hosts, as
  on a laptop without its VPN, the look-ups of an empty run of four ranks took 25 s.

With `--cold`, torch's own launcher runs the ranks (`torchrun`), with our rendezvous too.

This module and `rendezvous` alone import `torch.distributed.elastic`. All private names of torch
that an agent uses are here. They hold in torch 2.6 to 2.13; `tests/unit/node/test_elastic.py` fails
on a torch in which they change:

- `local_elastic_agent.start_processes`, called with keywords only, by `_start_workers`;
- `LocalElasticAgent._exit_barrier`, called without arguments when all ranks of the node are done;
- `SimpleElasticAgent._remaining_restarts`, an attribute, read when a rank has failed;
- `api._get_fq_hostname`, called by `_construct_event`;
- `PContext`: `_start`, `_poll`, `_close` are abstract, `envs` and `error_files` are attributes.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import signal
import socket
import sys
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
    SignalException,
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

from ddp_magic.node.ranks import TERM_GRACE_S, Ranks, run_worker
from ddp_magic.node.rendezvous import BACKEND, SeveralNodes
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.specs import AgentSpec

MONITOR_INTERVAL_S = 0.001  # torch's sleep between two polls; `ForkContext._poll` waits itself
WAIT_S = 1.0
NODES_WAIT_S = 0.2  # where another node may want to restart the ranks
HOST = "127.0.0.1"


class NoLogs(LogsSpecs):
    """Redirects nothing: the ranks send their output to the kernel.

    Args:
        directory: Where torch may write.
    """

    def __init__(self, directory: str) -> None:
        super().__init__(redirects=Std.NONE, tee=Std.NONE)
        self._directory = directory

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Return no file but those for torch's own error records."""
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
        ranks: The ranks' processes, shared with the agent's watcher.
        run_rank: What a rank runs, with its own environment variables.
        all_done: Returns, when the ranks here are done, whether those of other nodes are too.
        wait_s: How long to wait for news of the ranks, in seconds.
        kwargs: Passed to `PContext`.
    """

    def __init__(
        self,
        ranks: Ranks,
        run_rank: Callable[[Mapping[str, str]], NoReturn],
        all_done: Callable[[], bool],
        wait_s: float = WAIT_S,
        **kwargs: Any,  # noqa: ANN401 -- torch's own
    ) -> None:
        super().__init__(**kwargs)
        self._ranks = ranks
        self._run_rank = run_rank
        self._all_done = all_done
        self._wait_s = wait_s

    def _start(self) -> None:
        gc.collect()
        gc.freeze()  # shared pages stay shared: the collector does not touch what is frozen
        for local_rank in range(self.nprocs):
            if self._ranks.ending:
                break  # Stop was pressed: hundreds of forks take seconds
            env = self.envs[local_rank]
            self._ranks.fork(local_rank, functools.partial(self._run_rank, env))

    def _poll(self) -> RunProcsResult | None:
        self._ranks.wait(self._wait_s)
        self._ranks.poll()
        failed = {r: code for r, code in self._ranks.codes.items() if code}
        if self._ranks.alive() and (self._ranks.interrupted or not failed):
            return None
        if not failed and not self._ranks.ending and not self._all_done():
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
        # After a rank's failure nobody waits so long in a notebook. If this process is told to
        # end, a cluster ends the job: the ranks may save, until it kills them.
        asked = isinstance(sys.exc_info()[1], SignalException)
        self._ranks.end(death_sig, timeout if asked else TERM_GRACE_S)


class OneNode(RendezvousHandler):
    """The rendezvous of a single node: there is no other node to wait for, and no server.

    torch's own handler (c10d) waits up to 0.3 s for nodes that could still join, listens on all
    interfaces, and unpickles what anyone has written to its store.

    Args:
        run_id: The run's name.
        attempt: How often the ranks have been restarted already.
    """

    def __init__(self, run_id: str, attempt: int = 0) -> None:
        self._run_id = run_id
        self._closed = False
        self._port: socket.socket | None = None
        self.restarts = attempt - 1  # how often the ranks have been restarted, once they start

    def get_backend(self) -> str:
        """Return the name of this rendezvous in torch's log and torchrun's registry."""
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        """Return a group of this node alone, with another MASTER_PORT at each restart."""
        self.restarts += 1
        # Bound and not listening: ours to keep, and free for the store of what the ranks start.
        port = socket.socket()
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port.bind((HOST, 0))
        self.close_port()
        self._port = port
        address = RendezvousStoreInfo(HOST, port.getsockname()[1])
        return RendezvousInfo(HashStore(), rank=0, world_size=1, bootstrap_store_info=address)

    def close_port(self) -> None:
        """Close MASTER_PORT, which a forked rank must not hold."""
        if self._port is not None:
            self._port.close()

    def all_done(self) -> bool:
        """Return True: there is no other node whose ranks could still run."""
        return True

    def is_closed(self) -> bool:
        """Return whether the rendezvous is closed."""
        return self._closed

    def set_closed(self) -> None:
        """Close the rendezvous."""
        self._closed = True

    def num_nodes_waiting(self) -> int:
        """Return 0: no other node can join."""
        return 0

    def get_run_id(self) -> str:
        """Return the run's name."""
        return self._run_id

    def shutdown(self) -> bool:
        """Close the rendezvous."""
        self._closed = True
        return True


def register_rendezvous() -> str:
    """Register our rendezvous with torchrun; return the name for its `--rdzv-backend`."""

    def create(parameters: RendezvousParameters) -> RendezvousHandler:
        return OneNode(parameters.run_id)

    rendezvous_handler_registry.register(BACKEND, create)
    return BACKEND


class Agent(local_elastic_agent.LocalElasticAgent):
    """torch's own, which waits for the other nodes as long as they take."""

    def _exit_barrier(self) -> None:
        """Do nothing: `ForkContext` has waited; torch gives up after 300 s."""


class NoRestartError(Exception):
    """The ranks are not restarted: Stop was pressed, or one of them cannot be killed."""


def run(spec: AgentSpec, ranks: Ranks, may_restart: Callable[[int], bool]) -> None:
    """Run torch's agent until every rank has ended. The process ends afterwards.

    Args:
        spec: What to run.
        ranks: The ranks' processes.
        may_restart: Called before a restart, when every rank has ended, with its number.
    """
    start_processes: Any = local_elastic_agent.start_processes  # type: ignore[attr-defined]
    full_name = api._get_fq_hostname
    alone = spec.nnodes == 1
    rendezvous = OneNode(spec.run_id, spec.attempt) if alone else SeveralNodes(spec)
    wait_s = NODES_WAIT_S if spec.nnodes > 1 and spec.max_restarts else WAIT_S

    def run_rank(env: Mapping[str, str]) -> NoReturn:
        rendezvous.close_port()
        run_worker(spec.worker, env)

    def fork_ranks(**given: Any) -> PContext:  # noqa: ANN401 -- torch's own
        for unused in ("start_method", "numa_options"):
            given.pop(unused, None)
        restarts = rendezvous.restarts
        for env in given["envs"].values():  # torch's own count differs between the nodes
            env["TORCHELASTIC_RESTART_COUNT"] = str(restarts)
        if restarts > spec.attempt and not may_restart(restarts):
            raise NoRestartError
        agent._remaining_restarts = spec.max_restarts - restarts  # of all nodes together
        context = ForkContext(ranks, run_rank, rendezvous.all_done, wait_s, **given)
        # The ranks have torch as it is, and may launch others with it.
        _put_into_torch(start_processes, full_name)
        context.start()
        _put_into_torch(fork_ranks, socket.gethostname)
        return context

    workers = WorkerSpec(
        role="default",
        local_world_size=spec.nproc,
        rdzv_handler=rendezvous,
        entrypoint="ddp_magic",  # a name for torch's log: `ranks.run_worker` is what runs
        max_restarts=spec.max_restarts,
        monitor_interval=MONITOR_INTERVAL_S,
        local_addr=spec.head or HOST,
    )
    logs = NoLogs(spec.worker.directory)
    _put_into_torch(fork_ranks, socket.gethostname)
    with contextlib.suppress(NoRestartError):
        agent = Agent(workers, logs_specs=logs)
        agent.run()


def _put_into_torch(start_processes: Callable[..., PContext], full_name: Callable[[], str]) -> None:
    setattr(local_elastic_agent, "start_processes", start_processes)  # noqa: B010 -- untyped there
    api._get_fq_hostname = full_name
