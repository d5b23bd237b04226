"""Shares, sizes and counts in the words of a verdict. Pure."""

from __future__ import annotations


def saves(share: float) -> str:
    """Return what a change can save, as a share of the time."""
    return f"saves at most {percent(share)} of the time"


def percent(share: float) -> str:
    """Return a share; below 1 it is not 100 %: nothing "saves at most 100 % of the time"."""
    return f"{100 * share if share >= 1 else min(99, 100 * share):.0f} %"


def size_of(size: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} bytes"


def ranks(count: int) -> str:
    """Return `1 rank`, or `4 ranks`."""
    return f"{count} rank{'s' if count > 1 else ''}"


def threads(count: int) -> str:
    """Return `1 thread`, or `4 threads`."""
    return f"{count} thread{'s' if count > 1 else ''}"
