"""What Slurm says, as real ones have said it, and what becomes of it."""

from __future__ import annotations

import re

import pytest

from ddp_magic.engines.slurm_words import Fate, queue_words

AT = "*** STEP 2.0 ON n1 CANCELLED AT 2026-11-28T09:42:31"


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("PartitionNodeLimit", "lower -N"),
        ("PartitionTimeLimit", "lower -t"),
        ("PartitionConfig", "lower -N or -t"),
        ("PartitionDown", "choose another partition"),
        ("BadConstraints", "no node has all"),
        ("ReqNodeNotAvail, UnavailableNodes:n2", "see sinfo"),
        (
            "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority "
            "partitions",
            "see sinfo",
        ),
        ("JobHeldUser", "scontrol release 7 starts it"),
        ("DependencyNeverSatisfied", "omit -d"),
        (
            "Job's account not known, so it can't use this partition (acct allows foo)",
            "choose another by -A",
        ),
        ("AssocMaxNodePerJobLimit", "ask for less"),
        ("QOSMaxWallDurationPerJobLimit", "ask for less"),
    ],
)
def test_a_reason_that_stays(reason: str, advice: str) -> None:
    """The user has to do something, and is told what."""
    words = queue_words("7", reason, "N/A")
    assert words.startswith(f"queued as Slurm job 7: {reason}; it does not start by itself: ")
    assert advice in words


@pytest.mark.parametrize("reason", ["Resources", "Priority", "BeginTime", "Dependency", "Licenses"])
def test_a_reason_that_goes_away(reason: str) -> None:
    words = f"queued as Slurm job 7: {reason}"
    assert queue_words("7", reason, "N/A") == words
    starts = queue_words("7", reason, "2026-11-28T10:51:00")
    assert starts == f"{words}, starts about 2026-11-28 10:51:00"


@pytest.mark.parametrize("reason", ["AssocMaxJobsLimit", "QOSGrpNodeLimit", "AssocGrpGRES"])
def test_a_limit_that_the_end_of_other_jobs_lifts(reason: str) -> None:
    assert queue_words("7", reason, "N/A").endswith(f"{reason}: other jobs have to end first")


def test_a_reason_that_srun_does_not_give() -> None:
    """Slurm's record of the job has it."""
    fate = Fate()
    fate.hear("srun: Job step aborted: Waiting up to 7 seconds")
    assert fate.gives_no_reason
    none, record = "PreemptTime=None", "JobId=3 PreemptTime=2026-11-28T11:00:18 SuspendTime=None"
    assert fate.words(none) == "was cancelled from outside, as by scancel"
    assert fate.words(record).startswith("was cancelled by Slurm, due to preemption")
    fate.hear(f"slurmstepd-n1: error: {AT} DUE TO TIME LIMIT ***")
    assert not fate.gives_no_reason


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], ""),
        (["srun: job 2 queued and waiting for resources", "W1128 torch warns"], ""),
        (  # its Python does not start
            ["srun: error: n2: task 1: Exited with exit code 5",
             "srun: launch/slurm: _step_signal: Terminating StepId=2.0",
             f"slurmstepd-n1: error: {AT} ***", "srun: error: n1: task 0: Terminated",
             "srun: Force Terminated StepId=2.0"],
            "failed on n2: its relay ended with exit code 5",
        ),
        (
            [f"slurmstepd-n1: error: {AT} ***", "srun: error: n1: task 0: Exited with exit code 1"],
            "was cancelled from outside, as by scancel",
        ),
        (  # it ended at once when Slurm asked it to
            ["srun: error: n2: task 1: Exited with exit code 1",
             f"slurmstepd-n1: error: {AT} DUE TO TIME LIMIT ***"],
            "was cancelled by Slurm, due to time limit: -t in --engine-args asks for more time",
        ),
        (
            ["srun: Job step aborted: Waiting up to 7 seconds", f"slurmstepd-n1: error: {AT} ***",
             "srun: error: n1: task 0: Killed"],
            "was cancelled from outside, as by scancel",
        ),
        (  # an administrator sets the node down, or its slurmd answers no more
            [f"slurmstepd-n1: error: {AT} DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***",
             "srun: error: Node failure on n2", "srun: error: Node failure on n2",
             "srun: Job step aborted: Waiting up to 7 seconds"],
            "lost n2: node failure",
        ),
        (
            ["srun: error: n1: task 0: Killed", "srun: error: Node failure on n2"],
            "lost n1: its relay was ended (Killed)",
        ),
        (["srun: Job has been cancelled"], "was cancelled from outside, as by scancel"),
        (
            [f"slurmstepd-n1: error: {AT} DUE TO TIME LIMIT ***", "srun: Job step aborted:"],
            "was cancelled by Slurm, due to time limit: -t in --engine-args asks for more time",
        ),
        (
            ["srun: Job step aborted:", f"slurmstepd-n1: error: {AT} DUE TO PREEMPTION ***"],
            "was cancelled by Slurm, due to preemption: a job with a higher priority needs its "
            "nodes",
        ),
        (
            ["srun: error: Node failure on n2", "srun: Job step aborted: Waiting",
             f"slurmstepd-n1: error: {AT} DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***"],
            "lost n2: node failure",
        ),
        (
            ["srun: error: n2: task 1: Killed", f"slurmstepd-n1: error: {AT} ***"],
            "lost n2: its relay was ended (Killed)",
        ),
        (
            ["srun: error: n2: task 1: Out Of Memory", f"slurmstepd-n1: error: {AT} ***"],
            "lost n2: its relay was ended (Out Of Memory)",
        ),
        (
            [
                "srun: error: Task launch for StepId=1.0 failed on node n2: Communication failure",
                "srun: error: Application launch failed: Communication failure",
                "srun: Job step aborted",
            ],
            "could not start on n2: Communication failure",
        ),
        (
            ["srun: forcing job termination", "srun: Job step aborted: Waiting up to 7 seconds"],
            "was ended with its srun, by a signal",
        ),
    ],
)  # fmt: skip
def test_how_a_job_ends(lines: list[str], words: str) -> None:
    """What comes first is the cause; why Slurm cancelled it comes when it comes."""
    fate = Fate()
    for line in lines:
        fate.hear(line)
    assert fate.words() == words
    found = re.match(r"(?:lost|failed on|could not start on) (\w+):", words)
    assert fate.lost == (found[1] if found else "")
