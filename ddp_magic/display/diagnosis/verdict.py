"""How a run ended: from what is known of its ranks to its state and its error. Pure.

A run has succeeded only if every rank reported success; a missing report is a failure.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ddp_magic.display.diagnosis import first_failure as diagnose
from ddp_magic.display.diagnosis.fates import fates, how_they_stopped, lost
from ddp_magic.display.diagnosis.first_failure import Failure
from ddp_magic.display.diagnosis.name_hints import Surroundings, name_hints
from ddp_magic.display.places import with_cell_names
from ddp_magic.display.rank import Rank
from ddp_magic.display.rank_names import rank_names
from ddp_magic.errors import (
    DDPMagicError,
    LaunchError,
    MismatchError,
    RunInterrupted,
    TimeLimitError,
    WorkerError,
    WorkerLostError,
    of_class,
)
from ddp_magic.system.processes import signal_name
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.system.tracebacks import text_without_ours
from ddp_magic.wire.events import NOT_STARTED
from ddp_magic.wire.kernel_events import GroupEnded
from ddp_magic.wire.states import State

AGENT_LINES = 20  # of the agent's log, in the error
OUTSIDE_S = 0.5  # the clocks of nodes differ a little
_AGENT_SIGNALED = re.compile(r"got signal: (\d+)")  # torch's SignalException


class StopReason(enum.Enum):
    """Why the kernel ended a run."""

    INTERRUPT = "Stop was pressed"
    KERNEL_ENDED = "the notebook's kernel ended"
    MISMATCH = "the ranks called different collectives"
    TIME_LIMIT = "the time limit passed"
    PEER_FAILED = "a rank of a session failed"
    DEBUGGER = "the debugger was quit"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of a run at its end.

    Attributes:
        ranks: What each rank reported, and how its process ended.
        stop: Why the kernel ended the run; None if it did not.
        stopped: When the kernel ended it, in seconds since the epoch.
        time_limit_s: The run's time limit, in seconds.
        restarts_left: Whether the ranks could have been restarted once more.
        group: How the group ended, if it ended.
        logs: Directory of the logs of the agent and the ranks.
        source: The cell's source.
        waits: Sentences on who waited for whom, when the first rank failed or the run was ended.
        mismatch: A sentence on the first collective on which the ranks differ; empty if there is
            none, or none was looked for.
        mismatch_lines: (ranks, line of the cell) from which it was called.
        around: Where its names could have come from.
        prelude: Names of ddp_magic's own (not torch's) that the cell uses from the prelude.
        cell_labels: What a person calls the cells, by the files of their code.
    """

    ranks: Sequence[Rank]
    stop: StopReason | None = None
    stopped: float = 0.0
    time_limit_s: float | None = None
    restarts_left: bool = False
    group: GroupEnded = field(default_factory=GroupEnded)
    logs: RunDirectory = field(default_factory=lambda: RunDirectory(Path()))
    source: str = ""
    waits: Sequence[str] = ()
    mismatch: str = ""
    mismatch_lines: Sequence[tuple[str, int]] = ()
    around: Surroundings = field(default_factory=Surroundings)
    prelude: Collection[str] = ()
    cell_labels: Mapping[str, str] = field(default_factory=dict)


def judge(  # noqa: PLR0911 -- one for each end
    evidence: Evidence,
) -> tuple[State, DDPMagicError | RunInterrupted | None]:
    """Return the state of a run at its end, and the error that explains it."""
    failures = [f for f in (rank.failure for rank in evidence.ranks) if f is not None]
    # A rank that failed before the kernel ended the run failed by itself.
    own = [f for f in failures if f.time < evidence.stopped and not f.ended_by_us]
    if evidence.mismatch and evidence.stop is not StopReason.INTERRUPT:
        return State.FAILED, _mismatch(evidence, own)
    # If the agent ended, its ranks died of that, and some reported the death of others before.
    agent_ended = evidence.group.agent_died or _AGENT_SIGNALED.search(evidence.group.agent_error)
    if evidence.stop in (None, StopReason.PEER_FAILED) and _is_from_outside(evidence, failures):
        return State.FAILED, _ended_from_outside(evidence)
    match evidence.stop:
        case StopReason.INTERRUPT | StopReason.DEBUGGER:
            return State.CANCELLED, _interrupted(evidence, own)
        case StopReason.KERNEL_ENDED:
            what = "the notebook's kernel ended, and this background run with it: "
            return State.CANCELLED, RunInterrupted(what + how_they_stopped(evidence.ranks))
        case StopReason.TIME_LIMIT if evidence.restarts_left or not own:
            limit = f"the run exceeded its time limit of {evidence.time_limit_s:g} s; "
            return State.FAILED, TimeLimitError(
                limit + how_they_stopped(evidence.ranks), details=evidence.waits
            )
        case StopReason.TIME_LIMIT | StopReason.PEER_FAILED | StopReason.MISMATCH if (
            not agent_ended
        ):
            return State.FAILED, _failed(evidence, own or failures)
    causes = [f for f in failures if not (f.is_victim if agent_ended else f.ended_by_us)]
    if causes and any(rank.pid is not None for rank in evidence.ranks):
        return State.FAILED, _failed(evidence, failures)
    if evidence.group.agent_error or not all(rank.succeeded for rank in evidence.ranks):
        return State.FAILED, _not_launched(evidence, failures)
    return State.SUCCEEDED, None


def _interrupted(evidence: Evidence, own: list[Failure]) -> RunInterrupted:
    message = how_they_stopped(evidence.ranks)
    culprits = [f for f in own if f.error is not None and f.error.ename != "KeyboardInterrupt"]
    found = [evidence.mismatch] if evidence.mismatch else []
    if not culprits:
        # The others waited for the rank in the debugger, which a person knows.
        waits = () if evidence.stop is StopReason.DEBUGGER else evidence.waits
        return RunInterrupted(message, details=found or waits)
    first = diagnose.first_failure(culprits)
    assert first.error is not None  # noqa: S101 -- `culprits` have one
    head = f"rank {first.rank} of {len(evidence.ranks)} had raised:"
    return RunInterrupted(message, details=[head, *first.error.traceback, *found])


def _mismatch(evidence: Evidence, own: list[Failure]) -> MismatchError:
    """Return the error of a run whose ranks differ in a collective: what follows is a consequence.

    Args:
        evidence: What is known of the run.
        own: How ranks failed before the run was ended.
    """
    source = dict(enumerate(evidence.source.splitlines(), 1))
    lines = [
        f"{names}, line {line}:  {source[line].strip()}"
        for names, line in evidence.mismatch_lines
        if line in source
    ]
    raised = [
        f"rank {failure.rank} {diagnose.summarize_error(failure.error)}"
        for failure in own
        if failure.error is not None and not failure.is_victim
    ]
    return MismatchError(evidence.mismatch, details=[*lines, *raised])


def _is_from_outside(evidence: Evidence, failures: list[Failure]) -> bool:
    """Return whether the cluster ended the run, and no rank had failed before."""
    outside = evidence.group.outside
    if outside is None:
        return False
    before = outside.time - OUTSIDE_S
    return all(f.is_victim or f.is_signaled or f.time > before for f in failures)


def _ended_from_outside(evidence: Evidence) -> LaunchError:
    outside = evidence.group.outside
    assert outside is not None  # noqa: S101 -- `_is_from_outside`
    were: dict[str, list[int]] = {}
    for rank in evidence.ranks:
        if rank.ran and not rank.succeeded:
            were.setdefault(rank.where or " running", []).append(rank.rank)
    lines = [
        f"{rank_names(ranks)} {'were' if len(ranks) > 1 else 'was'}{where}"
        for where, ranks in were.items()
    ]
    # What could not be started says why in the log.
    words = [] if were else evidence.group.agent_words.splitlines()[-AGENT_LINES:]
    return LaunchError(outside.text, details=[*words, *lines, *evidence.waits])


def _not_launched(evidence: Evidence, failures: list[Failure]) -> DDPMagicError:
    log = evidence.logs.agent_log
    lines = (evidence.group.agent_error or evidence.group.agent_words).splitlines()
    reasons = [x for x in evidence.group.agent_words.splitlines() if x.startswith(NOT_STARTED)]
    words = text_without_ours(lines)[-AGENT_LINES:]
    if found := _AGENT_SIGNALED.search(evidence.group.agent_error):
        name = signal_name(int(found.group(1)))
        what, words = f"the agent was ended by {name} from outside, and the ranks with it", []
    elif any(rank.pid is not None for rank in evidence.ranks):
        what = (
            "the agent died while the ranks were running (killed, or out of memory); "
            "the ranks died with it"
        )
    elif reasons:
        what, words = reasons[0], reasons[1:]
    elif own := [f for f in failures if not f.ended_by_us]:
        what = f"{diagnose.describe(diagnose.first_failure(own))}, before its cell began"
    else:
        what = "the ranks could not be started"
    return LaunchError(f"{what}; the agent's log is {log}", details=words)


def _failed(evidence: Evidence, failures: list[Failure]) -> DDPMagicError:
    first = diagnose.first_failure(failures)
    others = fates([rank for rank in evidence.ranks if rank.rank != first.rank], first)
    message = diagnose.describe(first)
    if first.error is None:
        code = first.finished.code if first.finished else first.code or 0
        rank = evidence.ranks[first.rank]
        if rank.place:
            message += f"; it was last seen at {rank.place}"
        stack = [f"    {frame}" for frame in rank.stack]
        if stack:
            stack = [f"rank {first.rank} was in, innermost first:", *stack]
        return WorkerLostError(
            message, rank=first.rank, code=code, details=[*stack, *others, *evidence.waits]
        )
    shown = f"{first.name} {diagnose.summarize_error(first.error)}"
    if first.lost_its_peer and (reason := lost(evidence.ranks[first.rank], evidence.ranks)):
        message = shown = reason
    hints = name_hints(first.error, evidence.source, evidence.around, evidence.prelude)
    head = f"rank {first.rank} of {len(evidence.ranks)} raised:"
    # A child of the rank has written its own traceback into the error's text.
    shown_lines = ["\n".join(text_without_ours(t.split("\n"))) for t in first.error.traceback]
    lines = [with_cell_names(line, evidence.cell_labels) for line in shown_lines]
    return of_class(WorkerError, first.error.classes, evidence.around.notebook)(
        message,
        rank=first.rank,
        ename=first.error.ename,
        evalue=first.error.evalue,
        traceback=lines,
        details=[head, *lines, *others, *evidence.waits, *hints],
        shown=shown,
        classes=first.error.classes,
    )
