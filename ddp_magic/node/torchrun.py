"""The cold way: plain `torch.distributed.run`, and a keeper for each rank that it starts.

Plain but for the rendezvous, which is ours (`elastic.OneNode`): torch's own (c10d) listens
on all interfaces and unpickles what anyone has written to its store.

torchrun's agent cannot be reached from the kernel, and tells nobody how a rank ended. So what it
starts is not the rank but its keeper: a small process without torch, which forks the rank, and
does for it what an agent does: it reports, ends it when the kernel asks, and sweeps after it.
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import signal
import sys
import threading
import time
from typing import NoReturn

from ddp_magic.node import agent
from ddp_magic.node.ranks import TERM_GRACE_S, Ranks
from ddp_magic.system import entry_points, processes
from ddp_magic.wire.specs import SPEC_VARIABLE, AgentSpec, WorkerSettings

LOOK_S = 0.25
POLL_S = 0.02


def main() -> None:
    """Be torchrun, and end with the kernel; what to run is on stdin."""
    start = json.loads(sys.stdin.read())
    threading.Thread(target=_end_with, args=(start["kernel_pid"],), daemon=True).start()
    from ddp_magic.node import elastic  # with torch: in the launcher, not in the keepers

    sys.argv[:] = ["torchrun", "--rdzv-backend", elastic.register_rendezvous(), *start["argv"]]
    runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)


def _end_with(kernel_pid: int) -> NoReturn:
    while os.getppid() == kernel_pid:
        time.sleep(LOOK_S)
    os._exit(1)  # the keepers and their ranks have seen the end of the kernel themselves


def keep() -> NoReturn:
    """Be the keeper of the one rank that torchrun's variables name."""
    spec = AgentSpec.from_json(os.environ.pop(SPEC_VARIABLE))
    processes.die_with_parent(os.getppid())
    sys.path[:] = spec.sys_path
    agent.serve(spec, _keep)


def _keep(spec: AgentSpec, ranks: Ranks) -> None:
    told_to_end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told_to_end.set())  # torchrun: another rank failed
    ranks.fork(int(os.environ["LOCAL_RANK"]), functools.partial(_run_worker, spec.worker))
    while ranks.alive():
        ranks.wait(POLL_S)
        ranks.poll()
        if told_to_end.is_set():
            ranks.end(signal.SIGTERM, TERM_GRACE_S)
            return
    # Stop was pressed: if we ended now, torchrun would end ranks that are still saving.
    while ranks.interrupted and not told_to_end.is_set():
        time.sleep(POLL_S)


def _run_worker(settings: WorkerSettings) -> NoReturn:
    # With torch: in the rank, not in its keeper.
    entry_points.resolve(entry_points.WORKER)(settings)
    os._exit(1)  # the worker never returns
