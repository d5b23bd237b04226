"""Ranks as the subject of a sentence, and clauses in a list. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ddp_magic.display.rank_names import rank_names

MAX_CLAUSES = 4  # in one sentence


def names(numbers: Iterable[int]) -> str:
    """Return `rank 1`, or `ranks 0, 2-4`; two neighbors read better without a dash here."""
    return rank_names(numbers, span=3)


def verb(who: Sequence[int], word: str) -> str:
    """Return the form of a verb for one or several ranks: `wait` or `waits`, `have` or `has`."""
    if word == "has":
        return "have" if len(who) > 1 else "has"
    return word if len(who) > 1 else f"{word}s"


def listed(clauses: list[str]) -> str:
    """Return clauses as a list, without more than a few."""
    more = len(clauses) - MAX_CLAUSES
    return "; ".join([*clauses[:MAX_CLAUSES], *([f"and {more} more"] if more > 0 else [])])
