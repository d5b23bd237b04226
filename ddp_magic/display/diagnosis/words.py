"""Ranks as the subject of a sentence. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ddp_magic.display.rank_names import rank_names


def names(numbers: Iterable[int]) -> str:
    """Return `rank 1`, or `ranks 0, 2-4`; two neighbors read better without a dash here."""
    return rank_names(numbers, span=3)


def verb(who: Sequence[int], word: str) -> str:
    """Return the form of a verb for one or several ranks: `wait` or `waits`, `have` or `has`."""
    if word == "has":
        return "have" if len(who) > 1 else "has"
    return word if len(who) > 1 else f"{word}s"
