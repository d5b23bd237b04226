"""The engine of a Ray cluster: an actor on each node starts one agent there.

The kernel never imports ray: a process beside it (`engines.ray_driver`) is the cluster's driver,
whose stdin and stdout are the streams of all nodes, as those of `srun` are with Slurm. Its end ends
the actors, and their placement group with them; never the cluster.

The cluster is the one that RAY_ADDRESS names, or the one that runs on this machine.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence

from ddp_magic.engines import Choice
from ddp_magic.engines.program import Program
from ddp_magic.engines.ray_options import parse, problem_of
from ddp_magic.system.entry_points import RAY_DRIVER, command

__all__ = ["START", "launch", "problem", "problem_of"]

START = {
    "node_name_variable": "DDP_MAGIC_RAY_ADDRESS",  # a node's address is as good as its name
    "toward": "",
    "job_variables": ["DDP_MAGIC_RAY_JOB"],
    "node_count_variable": "DDP_MAGIC_RAY_NODES",
}
# At the beginning of a line of the driver's stderr.
WAITS = "ddp_magic waits for: "
LOST = "ddp_magic has lost "


def problem() -> str:
    """Return why there can be no run here; empty if there can."""
    if importlib.util.find_spec("ray") is None:
        return 'Ray is not installed: pip install "ddp-magic[ray]"'
    return ""


class RayJob(Program):
    """A running driver."""

    program = "driver"
    _lost = ""

    def running(self, job: str) -> None:
        """Note that an agent is up, in this job."""
        self.name = f"Ray job {job}"
        self._waits_for = ""

    def fate(self) -> str:
        """Return what Ray did to the job, as the rest of a sentence; empty if nothing."""
        return self._lost or super().fate()

    def lost(self) -> str:
        """Return the node that Ray has lost first; empty if none."""
        return self._lost.partition(":")[0].removeprefix("lost ")

    def _hear(self, text: str) -> bool:
        if text.startswith(WAITS):
            self._waits_for = text.removeprefix(WAITS).strip()
        elif text.startswith(LOST) and not self._lost and not self._cancelled:
            self._lost = f"lost {text.removeprefix(LOST).strip()}"
        return text.startswith(WAITS)


def launch(
    agent: Sequence[str],
    *,
    nnodes: int,
    nproc: int,
    arguments: Sequence[str],
    env: Mapping[str, str],
    log: Callable[[bytes], None],
    choice: Choice | None = None,
) -> RayJob:
    """Start an agent on each node; returns before they are up.

    Args:
        agent: The agent's command; the name of the variable with its node's number follows it.
        nnodes: Number of nodes.
        nproc: Number of ranks on each.
        arguments: The user's own; without `--num-cpus`, a node gives a processor for each rank.
        env: The ranks' environment.
        log: Is called with what Ray says.
        choice: Which other nodes will do. Ray knows by itself which were lost.
    """
    asked = vars(parse(arguments))
    if asked["num_cpus"] is None:
        asked["num_cpus"] = nproc
    least = choice.least if choice else nnodes
    asked |= {"nnodes": nnodes, "min_nodes": least, "agent": list(agent)}
    words = json.dumps(asked)
    return RayJob([*command(RAY_DRIVER), words], dict(env), log)
