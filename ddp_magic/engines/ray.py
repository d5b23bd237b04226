"""The engine of a Ray cluster: an actor on each node starts one agent there.

The kernel never imports ray: a process beside it (`engines.ray_driver`) is the cluster's driver,
whose stdin and stdout are the streams of all nodes, as those of `srun` are with Slurm. Its end ends
the actors, and their placement group with them; never the cluster.

The cluster is the one that RAY_ADDRESS names, or the one that runs on this machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from ddp_magic.engines.program import Program
from ddp_magic.system.entry_points import RAY_DRIVER, command

START = {
    "node_name_variable": "DDP_MAGIC_RAY_ADDRESS",  # a node's address is as good as its name
    "toward": "",
    "job_variables": ["DDP_MAGIC_RAY_JOB"],
}
WAITS = "ddp_magic waits for: "  # in a line of the driver's stderr


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read what each node is asked for, in the words of `ray start`."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--address", default="auto")
    parser.add_argument("--num-cpus", type=float)
    parser.add_argument("--num-gpus", type=float, default=0.0)
    parser.add_argument("--resources", type=json.loads, default={})
    return parser.parse_args(arguments)


def problem() -> str:
    """Return why there can be no run here; empty if there can."""
    if importlib.util.find_spec("ray") is None:
        return 'Ray is not installed: pip install "ddp-magic[ray]"'
    return ""


def problem_of(arguments: Sequence[str]) -> str:
    """Return which of these arguments cannot be used, and why; empty if all can."""
    try:
        asked = _parse(arguments)
    except ValueError as error:
        return f"{error}: use --address, and for each node --num-cpus, --num-gpus, --resources"
    if not isinstance(asked.resources, dict):
        return "--resources is not a JSON object, such as '{\"a\": 1}'"
    return ""


class RayJob(Program):
    """A running driver."""

    program = "driver"

    def running(self, job: str) -> None:
        """Note that an agent is up, in this job."""
        self.name = f"Ray job {job}"
        self._waits_for = ""

    def _hear(self, text: str) -> bool:
        if text.startswith(WAITS):
            self._waits_for = text.removeprefix(WAITS).strip()
        return text.startswith(WAITS)


def launch(
    agent: Sequence[str],
    *,
    nnodes: int,
    nproc: int,
    arguments: Sequence[str],
    env: Mapping[str, str],
    log: Callable[[bytes], None],
) -> RayJob:
    """Start an agent on each node; returns before they are up.

    Args:
        agent: The agent's command; the name of the variable with its node's number follows it.
        nnodes: Number of nodes.
        nproc: Number of ranks on each.
        arguments: The user's own; without `--num-cpus`, a node gives a processor for each rank.
        env: The ranks' environment.
        log: Is called with what Ray says.
    """
    asked = vars(_parse(arguments))
    if asked["num_cpus"] is None:
        asked["num_cpus"] = nproc
    words = json.dumps({**asked, "nnodes": nnodes, "agent": list(agent)})
    return RayJob([*command(RAY_DRIVER), words], dict(env), log)
