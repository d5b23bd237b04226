"""What Slurm says of a job, by srun and in its queue, in a few words of ours. Pure."""

from __future__ import annotations

import re

QUEUED = re.compile(r"srun: job (\d+) queued and waiting")
GRANTED = re.compile(r"srun: job \d+ has been allocated")
BUSY = re.compile(r"srun: .*[Ss]tep creation temporarily disabled, retrying \((.+)\)")

# Reasons in the queue that do not go away by themselves, and what to do.
_STAYS = {
    r"PartitionNodeLimit": "the partition has too few nodes: lower -N, or choose another by -p",
    r"PartitionTimeLimit": "lower -t, or choose another partition by -p",
    r"PartitionConfig": "the partition does not allow it: lower -N or -t, or choose another by -p",
    r"Partition(Down|Inactive)": "choose another partition by -p",
    r"BadConstraints": "no node has all that is asked for",
    r"ReqNodeNotAvail|Nodes required for job are DOWN|NodeDown": "too few nodes are up: see sinfo",
    r"JobHeldUser": "scontrol release {job} starts it",
    r"JobHeldAdmin": "an administrator holds it",
    r"DependencyNeverSatisfied": "omit -d",
    r".*account.*|(Account|QOS)NotAllowed|Invalid(Account|QOS)": "choose another by -A, -q or -p",
    r"\w+PerJob(Limit)?|\w+MaxWallDuration\w*|QOSMin\w+": "ask for less, or choose another by -q",
}
_OF_OTHERS = re.compile(r"(Assoc|QOS)(Max|Grp)")  # limits that the end of other jobs lifts

_FAILED = "failed on "  # a relay whose agent has reported its end has exit code 0
_CANCELLED = "was cancelled from outside, as by scancel"
# A step is cancelled for it, which the other nodes may tell first.
_NODE_FAILURE = re.compile(r"Node failure on (\S+)")
# What srun says at the end of a job; what comes first is what the rest follows from.
_ENDS = {
    r"launch (?:for \S+ )?failed on node (\S+): (.+)": "could not start on {}: {}",
    r"error: (\S+): tasks? \S+: Exited with (exit code \d+)": _FAILED
    + "{}: its relay ended with {}",
    r"error: (\S+): tasks? \S+: (?!Exited with)(.+)": "lost {}: its relay was ended ({})",
    r"srun: Job has been cancelled|Job allocation \d+ has been revoked": _CANCELLED,
    r"srun: forcing job termination": "was ended with its srun, by a signal",
    r"CANCELLED AT|Job step aborted|Force Terminated": _CANCELLED,
}
_DUE = re.compile(r"CANCELLED AT \S+ DUE TO ([A-Z ]+)")
_PREEMPTED = re.compile(r"\bPreemptTime=\d")
_HINTS = {
    "TIME LIMIT": ": -t in --engine-args asks for more time",
    "PREEMPTION": ": a job with a higher priority needs its nodes",
}


def queue_words(job: str, reason: str, start: str) -> str:
    """Return why a job waits in the queue, when it starts, and what to do if it never will.

    Args:
        job: Its id.
        reason: Slurm's reason, as of `squeue -o %r`.
        start: When it expects it to start, as of `%S`.
    """
    head = f"queued as Slurm job {job}: {reason}"
    for pattern, advice in _STAYS.items():
        if re.match(pattern, reason):
            return f"{head}; it does not start by itself: {advice.format(job=job)}"
    if start[:1].isdigit():
        return f"{head}, starts about {start.replace('T', ' ')}"
    return f"{head}: other jobs have to end first" if _OF_OTHERS.match(reason) else head


class Fate:
    """Collects what srun says of the end of its job."""

    def __init__(self) -> None:
        self.lost = ""  # the node that was lost first, or could not be used
        self._first = ""
        self._due = ""

    def hear(self, line: str) -> None:
        """Take a line of srun's."""
        if due := _DUE.search(line):
            self._due = due[1].strip()
            if self._first.startswith(_FAILED):  # it was the first to obey
                self.lost = ""
        if not self.lost and (failed := _NODE_FAILURE.search(line)):
            self.lost = failed[1]
            self._first = f"lost {self.lost}: node failure"
        for pattern, words in _ENDS.items():
            if not self._first and (found := re.search(pattern, line)):
                self._first = words.format(*found.groups())
                self.lost = found[1] if found.groups() else ""

    @property
    def gives_no_reason(self) -> bool:
        """Whether the job was cancelled, and srun does not say why."""
        return self._first == _CANCELLED and not self._due

    def words(self, record: str = "") -> str:
        """Return what became of the job, as the rest of a sentence; empty if nothing is known.

        Args:
            record: What `scontrol show job` says, if srun gives no reason: of a preemption with a
                grace time, it does not.
        """
        due = self._due or ("PREEMPTION" if _PREEMPTED.search(record) else "")
        if due and not self._first.startswith("lost"):
            return f"was cancelled by Slurm, due to {due.lower()}{_HINTS.get(due, '')}"
        return self._first
