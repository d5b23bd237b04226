"""The engine of a Slurm cluster: `srun` starts one agent on each node.

`slurm_options` makes the command, `program` starts it.

No Python package is needed, and no file system that the nodes share: what the agents run arrives
over the stdin of `srun`. The nodes need the notebook's Python, with ddp_magic, at the same path.

The notebook may run on a login node, or inside an allocation (`salloc`, `sbatch`, a step of one):
then the agents are a step beside it, and to end them ends that step, never the allocation.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from ddp_magic.engines import Choice
from ddp_magic.engines.program import Program
from ddp_magic.engines.slurm_options import command, environment, is_step, problem_of
from ddp_magic.engines.slurm_words import BUSY, GRANTED, QUEUED, Fate, queue_words

__all__ = ["START", "launch", "problem", "problem_of"]

START = {
    "node_name_variable": "SLURMD_NODENAME",
    "toward": "SLURM_LAUNCH_NODE_IPADDR",
    "job_variables": ["SLURM_JOB_ID", "SLURM_STEP_ID"],
    "node_count_variable": "SLURM_STEP_NUM_TASKS",  # one task a node
}
POLL_S = 2.0  # between two looks at the queue
QUERY_S = 10.0  # for an answer of the controller's


def problem() -> str:
    """Return why there can be no run here; empty if there can."""
    if shutil.which("srun") is None:
        return "there is no srun on the PATH: start the notebook on a login node or in a job"
    return ""


class SlurmJob(Program):
    """A running `srun`.

    Args:
        argv: Its command.
        env: Its environment.
        log: Is called with what it writes to its stderr.
        is_step: Whether it is a step of a job that was there before.
    """

    program = "srun"

    def __init__(
        self,
        argv: Sequence[str],
        env: dict[str, str],
        log: Callable[[bytes], None],
        *,
        is_step: bool = False,
    ) -> None:
        self._is_step = is_step
        self._job = ""  # and its step, once that is known
        self._fate = Fate()
        super().__init__(argv, env, log)

    def running(self, job: str) -> None:
        """Note that an agent is up, in this job and step."""
        self._job = job
        self.name = f"Slurm job {job}"
        self._waits_for = ""

    def _end_job(self) -> None:
        job = self._job if self._is_step else self._job.partition(".")[0]
        if job:
            self._ask("scancel", job)

    def fate(self) -> str:
        """Return what the cluster did to the job, as the rest of a sentence; empty if nothing."""
        record = ""
        if self._fate.gives_no_reason:
            record = self._ask("scontrol", "-o", "show", "job", self._job.partition(".")[0])
        return self._fate.words(record) or super().fate()

    def lost(self) -> str:
        """Return the node that Slurm has lost first; empty if none."""
        return self._fate.lost

    def _hear(self, text: str) -> bool:
        if not self._cancelled:
            self._fate.hear(text)
        if queued := QUEUED.search(text):
            self._job = queued[1]
            self.name = f"Slurm job {queued[1]}"
            self._waits_for = f"queued as {self.name}"
            threading.Thread(target=self._watch_queue, args=(queued[1],), daemon=True).start()
        elif GRANTED.search(text):
            self._waits_for = ""
        elif busy := BUSY.search(text):
            self._waits_for = f"queued in its allocation: {busy[1]}"
        return False

    def _watch_queue(self, job: str) -> None:
        """Say, as long as it is queued, why, and when Slurm expects it to start."""
        while self._waits_for.startswith("queued") and self._process.poll() is None:
            state, _, rest = self._ask("squeue", "-h", "-j", job, "-o", "%T|%S|%r").partition("|")
            start, _, reason = rest.partition("|")
            if state == "PENDING" and self._waits_for.startswith("queued"):
                self._waits_for = queue_words(job, reason, start)
            time.sleep(POLL_S)

    def _ask(self, *argv: str) -> str:
        try:
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=QUERY_S, check=False, env=self._env
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip()


def launch(
    agent: Sequence[str],
    *,
    nnodes: int,
    nproc: int,
    arguments: Sequence[str],
    env: Mapping[str, str],
    log: Callable[[bytes], None],
    choice: Choice | None = None,
) -> SlurmJob:
    """Start an agent on each node; returns before they are up.

    Args:
        agent: The agent's command; the name of the variable with its node's number follows it.
        nnodes: Number of nodes.
        nproc: Number of ranks on each.
        arguments: The user's own, for srun.
        env: The ranks' environment.
        log: Is called with what Slurm says.
        choice: Which other nodes will do. Slurm may notice after minutes that one was lost.
    """
    inside = "SLURM_JOB_ID" in env or "SLURM_JOBID" in env
    argv = command(agent, nnodes, nproc, arguments, inside=inside, choice=choice)
    step = is_step(arguments, inside=inside)
    return SlurmJob(argv, environment(env, inside=inside), log, is_step=step)
