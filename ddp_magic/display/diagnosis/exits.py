"""Ranks that have finished their cell, and do not end. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ddp_magic.display.diagnosis.words import names, verb
from ddp_magic.display.rank import Rank
from ddp_magic.wire.states import Phase


def held_exits(ranks: Sequence[Rank], wait_s: float) -> list[str]:
    """Return a sentence for each wait of ranks at their exit.

    Args:
        ranks: What is known of the ranks.
        wait_s: A shorter wait is left out, in seconds.
    """
    alike: dict[str, list[Rank]] = defaultdict(list)
    for rank in ranks:
        exits = rank.busy and rank.phase is Phase.EXITING and rank.exit_wait
        if exits and _exit_s(rank) >= wait_s:
            alike[rank.exit_wait].append(rank)
    return [_wait(what, who) for what, who in alike.items()]


def _exit_s(rank: Rank) -> float:
    """Return how long the exit has taken, in seconds."""
    return rank.heard - rank.finished.time if rank.finished is not None else 0.0


def _wait(what: str, who: list[Rank]) -> str:
    numbers = [rank.rank for rank in who]
    seconds = f"{max(map(_exit_s, who)):.0f} s"
    return (
        f"{names(numbers)} {verb(numbers, 'has')} finished, and {verb(numbers, 'wait')} at the "
        f"exit for {seconds} for {what}"
    )
