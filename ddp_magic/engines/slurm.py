"""The engine of a Slurm cluster: its own `srun` starts one agent on each node.

No Python package is needed, and no file system that the nodes share: what the agents run arrives
over the stdin of `srun`. The nodes need the notebook's Python, with ddp_magic, at the same path.

The notebook may run on a login node, or inside an allocation (`salloc`, `sbatch`, a step of one):
then the agents are a step beside it, and to end them ends that step, never the allocation.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from ddp_magic.engines.program import Program
from ddp_magic.engines.slurm_options import problem_of
from ddp_magic.engines.slurm_words import BUSY, GRANTED, QUEUED, Fate, queue_words

__all__ = ["START", "launch", "problem", "problem_of"]

START = {
    "node_name_variable": "SLURMD_NODENAME",
    "toward": "SLURM_LAUNCH_NODE_IPADDR",
    "job_variables": ["SLURM_JOB_ID", "SLURM_STEP_ID"],
}
NODE_VARIABLE = "SLURM_PROCID"
POLL_S = 2.0  # between two looks at the queue
QUERY_S = 10.0  # for an answer of the controller's
# What srun keeps of an allocation that it is started in; the rest would be its own options.
_OF_ALLOCATION = ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS")
_OURS = re.compile(
    r"SLURM_(UNBUFFEREDIO|LABELIO|STD\w+MODE|WAIT|EXPORT_ENV|MPI_TYPE|EXIT_\w+"
    r"|BCAST|MULTI_PROG|N?NODES|N?TASKS|NPROCS|NTASKS_PER_\w+|STEP_\w+|OVERLAP|EXACT)"
)
_CPUS = re.compile(r"-c|--cpus-per-(task|gpu)|--exclusive|-B|--extra-node-info")


def problem() -> str:
    """Return why there can be no run here; empty if there can."""
    if shutil.which("srun") is None:
        return "there is no srun on the PATH: start the notebook on a login node or in a job"
    return ""


def environment(env: Mapping[str, str], *, inside: bool) -> dict[str, str]:
    """Return the environment of srun, which its tasks get too.

    Args:
        env: The ranks' own.
        inside: Whether it starts a step in an allocation. What Slurm has set there are options of
            another step. Elsewhere such variables are the user's own defaults, such as
            SLURM_PARTITION.
    """
    kept = {}
    for name, value in env.items():
        if name.startswith("SLURM_"):
            if inside and not name.startswith(_OF_ALLOCATION):
                continue
            if _OURS.fullmatch(name):
                continue
        if not name.startswith(("PMI_", "PMI2_", "PMIX_", "SLURMD_", "SRUN_")):
            kept[name] = value
    return kept


def command(
    agent: Sequence[str], nnodes: int, nproc: int, arguments: Sequence[str], *, inside: bool
) -> list[str]:
    """Return the command that starts an agent on each node."""
    count = str(nnodes)
    words = ["srun", "--job-name=ddp_magic", "--mpi=none"]
    if not inside and not any(_CPUS.match(word) for word in arguments):
        words.append(f"--cpus-per-task={nproc}")  # else Slurm gives the ranks of a node one
    words += [*arguments, "-n", count, "-N", count, "--ntasks-per-node=1"]
    words += ["--kill-on-bad-exit=1", "--wait=0", "--export=ALL"]
    if _is_step(arguments, inside=inside):
        words.append("--overlap")
    if shutil.which("setpriv"):  # it ends with the kernel, also while it is queued
        words = ["setpriv", "--pdeathsig", "TERM", *words]
    return [*words, *agent, NODE_VARIABLE]


def _is_step(arguments: Sequence[str], *, inside: bool) -> bool:
    return inside or any(word.startswith("--jobid") for word in arguments)


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
        """Return what the cluster did to the job, in words for the rest of a sentence."""
        return self._fate.words() or super().fate()

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
) -> SlurmJob:
    """Start an agent on each node; returns before they are up.

    Args:
        agent: The agent's command; the name of the variable with its node's number follows it.
        nnodes: Number of nodes.
        nproc: Number of ranks on each.
        arguments: The user's own, for srun.
        env: The ranks' environment.
        log: Is called with what Slurm says.
    """
    inside = "SLURM_JOB_ID" in env or "SLURM_JOBID" in env
    argv = command(agent, nnodes, nproc, arguments, inside=inside)
    is_step = _is_step(arguments, inside=inside)
    return SlurmJob(argv, environment(env, inside=inside), log, is_step=is_step)
