"""What became of the other ranks of a run that failed or was stopped, in a few words each. Pure."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

from ddp_magic.display.diagnosis import first_failure as diagnose
from ddp_magic.display.diagnosis.first_failure import Failure
from ddp_magic.display.diagnosis.unrecorded import lost_partner
from ddp_magic.display.rank import Rank
from ddp_magic.display.rank_names import rank_names

MANY_RANKS = 8  # more than these are counted, not listed


def lost(rank: Rank, ranks: Sequence[Rank]) -> str:
    """Return how a rank lost those that left it without a failure; empty if none did."""
    if found := lost_partner(rank, ranks):
        return found
    left = gone(ranks)
    return f"{left}, and rank {rank.rank} lost its connection{rank.where}" if left else ""


def gone(ranks: Sequence[Rank]) -> str:
    """Return which ranks left the others without a failure; empty if none did."""
    if left := [rank.rank for rank in ranks if rank.left_early]:
        return f"{rank_names(left)} left early (os._exit(0) in the cell)"
    finished = [rank.rank for rank in ranks if rank.succeeded]
    return f"{rank_names(finished)} finished" if finished else ""


def fates(ranks: Sequence[Rank], first: Failure) -> list[str]:
    """Return a line for each rank that was not the first to fail; equal ones are joined."""
    found: dict[str, list[int]] = {}
    for rank in ranks:
        found.setdefault(_fate(rank, first), []).append(rank.rank)
    return [
        f"{rank_names(numbers)}: {_plural(fate) if len(numbers) > 1 else fate}"
        for fate, numbers in found.items()
    ]


def _plural(how: str) -> str:
    """Return how several ranks ended, from how one did; a rank's own error stays as it is."""
    if how.startswith("raised "):
        return how
    how = re.sub(r"(^|and |exit )was\b", r"\1were", how)
    return how.replace(" its ", " their ").replace(" it ", " they ")


def _fate(rank: Rank, first: Failure) -> str:  # noqa: PLR0911 -- one for each end
    """Return in a few words how a rank ended that was not the first to fail."""
    failure, where = rank.failure, rank.where
    if failure is None:
        if rank.left_early:
            return "left early: os._exit(0) in the cell"
        if rank.succeeded or rank.finished is not None:
            return "finished"
        return f"was lost{where}" if where else "had not started"  # with its node
    if rank.answered and failure.error is not None and failure.time > first.time:
        return f"was interrupted{where}"
    if failure.error is not None and failure.lost_its_peer:
        # Of two that lost theirs, neither is known to be the other's peer.
        to = "" if first.lost_its_peer else f" to rank {first.rank}"
        return f"lost its connection{to}{where} ({failure.error.ename})"
    if failure.error is not None:
        same = first.error is not None and failure.error.evalue == first.error.evalue
        text = "raised the same" if same else f"raised {failure.error.ename}"
        return text + where + ("" if same else f": {diagnose.headline(failure.error.evalue)}")
    sent = failure.code in (-signal.SIGTERM, -signal.SIGKILL)
    if failure.ended_by_us or (failure.finished is None and sent):
        return f"was stopped{where}"
    return diagnose.headline(diagnose.describe_end(failure))


def how_they_stopped(ranks: Sequence[Rank]) -> str:
    """Return where which ranks were stopped, or how many were where."""
    found: dict[str, list[int]] = {}
    for rank in ranks:
        found.setdefault(_how_it_stopped(rank), []).append(rank.rank)
    ends = list(found.items())
    if len(ranks) > MANY_RANKS:
        ends.sort(key=lambda end: -len(end[1]))
    return "; ".join(_of_several(numbers, how, len(ranks)) for how, numbers in ends)


def _of_several(numbers: Sequence[int], how: str, nproc: int) -> str:
    count = len(numbers)
    names = rank_names(numbers)
    if nproc > MANY_RANKS:
        names = f"{count} rank{'s' if count > 1 else ''}"
    return f"{names} {_plural(how) if count > 1 else how}"


def _how_it_stopped(rank: Rank) -> str:  # noqa: C901, PLR0911 -- one for each end
    where = rank.where if rank.finished is None else " after the end of its cell"
    if rank.quit and not rank.killed:
        return f"quit the debugger{where}"
    if rank.killed and not rank.ran:
        return "had not started its cell"
    if rank.killed and not rank.answered:
        return f"did not answer{where} and was killed"
    if rank.killed:
        return f"was killed{where} while it cleaned up"
    failure = rank.failure
    if rank.answered and failure is not None and failure.lost_its_peer:
        return f"stopped{where}"  # so did the ranks that it was connected with
    if rank.error is not None and rank.error.ename != "KeyboardInterrupt":
        return diagnose.summarize_error(rank.error)
    if not rank.ran:
        return "had not started its cell"
    if rank.error is not None:
        return f"stopped{where}"
    if rank.finished is not None and rank.answered:
        return "finished its cell and was interrupted at its exit"
    if rank.finished is not None or rank.left_early:
        return "finished"
    return f"ended{where}"
