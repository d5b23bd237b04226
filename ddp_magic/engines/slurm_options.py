"""srun's command line and environment: built here, and options that cannot be given refused.

Most of the user's own words are srun's affair: it knows which there are, in its version and at its
site. Those that it cannot be given here are refused.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence

from ddp_magic.engines import Choice

NODE_VARIABLE = "SLURM_PROCID"
# What srun keeps of an allocation that it is started in; the rest would be its own options.
_OF_ALLOCATION = ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS")
_OURS = re.compile(
    r"SLURM_(UNBUFFEREDIO|LABELIO|STD\w+MODE|WAIT|EXPORT_ENV|MPI_TYPE|EXIT_\w+"
    r"|BCAST|MULTI_PROG|N?NODES|N?TASKS|NPROCS|NTASKS_PER_\w+|STEP_\w+|OVERLAP|EXACT)"
)
_CPUS = re.compile(r"-c|--cpus-per-(task|gpu)|--exclusive|-B|--extra-node-info")
_COUNT = "-n and -N of %%ddp say how many ranks and nodes there are"
_SHOWN = "the notebook shows the ranks' output, and %ddp_logs all of it"
_ASKS = "ranks ask in the notebook"
_PRINTS = "srun would print something and start nothing; call it in a terminal"
# By name: options that would break the streams, hide the queue, or start something else.
_REFUSED = {
    **dict.fromkeys(("-n", "--ntasks", "-N", "--nodes", "--ntasks-per-node"), _COUNT),
    **dict.fromkeys(("-o", "--output", "-e", "--error"), _SHOWN),
    **dict.fromkeys(("-i", "--input", "--pty", "--interactive"), _ASKS),
    **dict.fromkeys(("-h", "--help", "--usage", "-V", "--version", "--test-only"), _PRINTS),
    **dict.fromkeys(("-u", "--unbuffered"), "it tears lines apart"),
    **dict.fromkeys(("-Q", "--quiet"), "it hides why a job waits; use -q of %%ddp"),
    **dict.fromkeys(("-M", "--clusters"), "set SLURM_CLUSTERS, which squeue and scancel heed too"),
    "--multi-prog": "every node starts the same program",
    "--bcast": "the nodes start their own Python, at its own place",
    "--batch": "use --detach of %%ddp",
}
_WITH_VALUE = "ABbCcDdGJLmMpqrStTwWx"  # short options of which what follows is the value


def problem_of(arguments: Sequence[str]) -> str:
    """Return which of these arguments of srun cannot be used, and why; empty if all can."""
    waiting = ""  # an option whose value comes next
    takes_word = False  # the next word may be the value of a long option
    for word in arguments:
        if waiting:
            waiting = ""
        elif word.startswith("--") and word != "--":
            name, equals, _ = word.partition("=")
            if refused := _refused(name):
                return refused
            takes_word = not equals
            continue
        elif word.startswith("-") and len(word) > 1 and word != "--":
            for place, letter in enumerate(word[1:], 2):
                if refused := _refused(f"-{letter}"):
                    return refused
                if letter in _WITH_VALUE:
                    waiting = "" if word[place:] else f"-{letter}"
                    break
        elif not takes_word:
            return f"{word} is not an option of srun, whose options begin with -, such as -p gpu"
        takes_word = False
    return f"{waiting} needs a value" if waiting else ""


def _refused(name: str) -> str:
    """Return why an option cannot be used; srun takes the beginning of a long name for it."""
    for full, why in _REFUSED.items():
        if name == full or (len(name) > len("--x") and full.startswith(name)):
            return f"{name} cannot be used: {why}"
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
    agent: Sequence[str],
    nnodes: int,
    nproc: int,
    arguments: Sequence[str],
    *,
    inside: bool,
    choice: Choice | None = None,
) -> list[str]:
    """Return the command that starts an agent on each node."""
    words = ["srun", "--job-name=ddp_magic", "--mpi=none"]
    if not inside and not any(_CPUS.match(word) for word in arguments):
        words.append(f"--cpus-per-task={nproc}")  # else Slurm gives the ranks of a node one
    if choice:  # without -n, there is one task on each of the nodes that Slurm chooses
        words += [*arguments, "-N", f"{choice.least}-{nnodes}"]
        words += _exclusion(arguments, choice.without)
    else:
        words += [*arguments, "-n", str(nnodes), "-N", str(nnodes), "--ntasks-per-node=1"]
    words += ["--kill-on-bad-exit=1", "--wait=0", "--export=ALL"]
    if is_step(arguments, inside=inside):
        words.append("--overlap")
    if shutil.which("setpriv"):  # it ends with the kernel, also while it is queued
        words = ["setpriv", "--pdeathsig", "TERM", *words]
    return [*words, *agent, NODE_VARIABLE]


def _exclusion(arguments: Sequence[str], nodes: Sequence[str]) -> list[str]:
    """Return the option that excludes these nodes, beside those that the user's own one does.

    A list of nodes that the user has in a file stays the only one.
    """
    if not nodes:
        return []
    own = [
        word.partition("=")[2] or following if word.startswith("--") else word[2:] or following
        for word, following in zip(arguments, [*arguments, ""][1:], strict=True)
        if re.match(r"-x|--exclude\b", word)
    ]
    if any("/" in names for names in own):
        return []
    return ["--exclude=" + ",".join([*own[-1:], *nodes])]


def is_step(arguments: Sequence[str], *, inside: bool) -> bool:
    """Return whether it starts a step of a job that was there before."""
    return inside or any(word.startswith("--jobid") for word in arguments)
