"""With `--cold`: plain `torch.distributed.run`, and a keeper for each rank that it starts.

Only the rendezvous is ours (`elastic.OneNode`), because torch's own (c10d) listens on all
interfaces and unpickles what anyone has written to its store.

torchrun's agent has no connection to the kernel and does not report how a rank ended. So torchrun
starts a keeper for each rank: a small process without torch that forks the rank, and does for it
what an agent does: it reports, ends the rank when the kernel asks, and ends what the rank leaves.
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
from ddp_magic.node.ranks import TERM_GRACE_S, Ranks, run_worker
from ddp_magic.system import processes
from ddp_magic.wire.specs import SPEC_VARIABLE, AgentSpec

LOOK_S = 0.25
POLL_S = 0.02


def main() -> None:
    """Run torchrun, and end with the kernel. stdin says what to run."""
    start = json.loads(sys.stdin.read())
    threading.Thread(target=_end_with, args=(start["kernel_pid"],), daemon=True).start()
    from ddp_magic.node import elastic  # with torch: in the launcher, not in the keepers

    sys.argv[:] = ["torchrun", "--rdzv-backend", elastic.register_rendezvous(), *start["argv"]]
    runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)


def _end_with(kernel_pid: int) -> NoReturn:
    while os.getppid() == kernel_pid:
        time.sleep(LOOK_S)
    os._exit(1)  # the keepers and their ranks notice the end of the kernel themselves


def keep() -> NoReturn:
    """Run the keeper of the rank that torchrun's environment variables name."""
    spec = AgentSpec.from_json(os.environ.pop(SPEC_VARIABLE))
    processes.die_with_parent(os.getppid())
    sys.path[:] = spec.sys_path
    agent.serve(spec, _keep, attempt=int(os.environ["TORCHELASTIC_RESTART_COUNT"]))


def _keep(spec: AgentSpec, ranks: Ranks, _may_restart: agent.MayRestart) -> None:
    asked_to_end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked_to_end.set())  # torchrun: another rank failed
    ranks.fork(int(os.environ["LOCAL_RANK"]), functools.partial(run_worker, spec.worker, {}))
    while ranks.alive():
        ranks.wait(POLL_S)
        ranks.poll()
        if asked_to_end.is_set():
            ranks.end(signal.SIGTERM, TERM_GRACE_S)
            return
    # Stop was pressed: if the keeper ended now, torchrun would end ranks that are still saving.
    while ranks.interrupted and not asked_to_end.is_set():
        time.sleep(POLL_S)
