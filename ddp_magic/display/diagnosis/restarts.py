"""Restarts of a run's ranks (`--max-restarts`): why each was needed, and the words for them. Pure.

In an attempt, all ranks run the cell once. torch counts the restarts: in the first attempt,
TORCHELASTIC_RESTART_COUNT is 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ddp_magic.display.diagnosis.first_failure import headline
from ddp_magic.errors import DDPMagicError, RunInterrupted

MAX_REASONS = 2  # in the closing line
TIMED_OUT = re.compile(r"(?i)timed? ?out")  # a collective: the rank that raised is a victim
MAX_ATTEMPTS = 8  # listed below an error, a line each


@dataclass(frozen=True, kw_only=True)
class Restart:
    """One restart of all ranks.

    Attributes:
        number: Its number, from 1: the next attempt's TORCHELASTIC_RESTART_COUNT.
        rank: The rank that failed first; None if it is not known.
        reason: How it failed, in one line: `rank 1 raised RuntimeError at line 12: boom`.
        error: The error that the run would have ended with.
        elapsed_s: Time from the start of the run to this restart, in seconds.
    """

    number: int
    rank: int | None
    reason: str
    error: DDPMagicError | RunInterrupted
    elapsed_s: float

    def __str__(self) -> str:
        return f"restart {self.number} after {self.elapsed_s:.1f} s: {self.reason}"


def restart_after(
    error: DDPMagicError | RunInterrupted | None,
    *,
    number: int,
    elapsed_s: float,
) -> Restart:
    """Return the restart that follows an attempt.

    Args:
        error: The error that the run would have ended with.
        number: Number of the restart, from 1.
        elapsed_s: Time since the start of the run, in seconds.
    """
    error = error or DDPMagicError("a rank failed")
    rank: int | None = getattr(error, "rank", None)
    reason = headline(getattr(error, "shown", "") or str(error))
    return Restart(number=number, rank=rank, reason=reason, error=error, elapsed_s=elapsed_s)


def restart_line(restart: Restart, max_restarts: int) -> str:
    """Return the line that is shown when the ranks are restarted."""
    return f"{restart.reason} · {count_words(restart.number, max_restarts)}"


def count_words(number: int, max_restarts: int) -> str:
    """Return which restart it is, and how many there can be."""
    return f"restart {number} of {max_restarts}"


def closing_words(restarts: Sequence[Restart], *, with_reasons: bool) -> str:
    """Return what the closing line says of the restarts; empty if there were none.

    Args:
        restarts: All restarts of the run.
        with_reasons: Whether to add the reasons: no error shows them.
    """
    if not restarts:
        return ""
    count = f"{len(restarts)} restart{'s' if len(restarts) > 1 else ''}"
    if not with_reasons:
        return count
    reasons = Counter(restart.reason for restart in restarts)
    words = [reason + (f" ({n} times)" if n > 1 else "") for reason, n in reasons.items()]
    if (more := len(words) - MAX_REASONS) > 0:
        words = [*words[:MAX_REASONS], f"{more} more reason{'s' if more > 1 else ''}"]
    return f"{count}: {'; '.join(words)}"


def earlier_attempts(restarts: Sequence[Restart], max_restarts: int) -> list[str]:
    """Return a line for each attempt that was followed by a restart."""
    lines = [
        f"attempt {restart.number} of {max_restarts + 1}: {restart.reason}" for restart in restarts
    ]
    if (more := len(lines) - MAX_ATTEMPTS) > 0:
        lines = [*lines[:MAX_ATTEMPTS], f"and {more} more: see the Run's restarts"]
    return lines
