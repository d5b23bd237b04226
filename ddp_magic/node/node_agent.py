"""What the agent of one of several nodes runs: the far relay has started it (`agent_child`)."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from ddp_magic.system import processes
from ddp_magic.wire.specs import AgentSpec


def main() -> NoReturn:
    """Run the ranks of this node. stdin says what to run, once the nodes know of each other."""
    processes.die_with_parent(os.getppid())
    for sig in (signal.SIGUSR1, signal.SIGUSR2):  # to all of a job, for the ranks
        signal.signal(sig, lambda *_: None)
    from ddp_magic.node import agent, elastic  # with torch, while the nodes come together

    spec = AgentSpec.from_json(sys.stdin.read())
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.path[:] = spec.sys_path
    agent.serve(spec, elastic.run, attempt=spec.attempt)
