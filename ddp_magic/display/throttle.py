"""Keeps what is shown live below the limits of a Jupyter server. Pure.

A server drops everything above 1 MB/s over 3 s, the final exception included.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class Bucket:
    """A token bucket.

    Args:
        capacity: Tokens when full, which it is at first.
        per_s: Tokens that flow in each second.
    """

    def __init__(self, capacity: float, per_s: float) -> None:
        """Begin full."""
        self._capacity = capacity
        self._per_s = per_s
        self._tokens = capacity
        self._time: float | None = None

    def has(self, tokens: float, now: float) -> bool:
        """Tell whether that many tokens are there."""
        if self._time is not None:
            self._tokens = min(self._capacity, self._tokens + (now - self._time) * self._per_s)
        self._time = now
        return self._tokens >= tokens

    def take(self, tokens: float) -> None:
        """Use that many tokens; debts are allowed."""
        self._tokens -= tokens


LINES_BURST = 1000
LINES_PER_S = 50
TAIL_LINES = 100
BYTES_BURST = 800_000
BYTES_PER_S = 400_000
LINE_BYTES = 200_000  # a longer line is shown up to here; the log has it whole


class Throttle:
    """Decide which of one rank's lines are shown live.

    A flood shows its beginning, then every few seconds a word on how much is left out and its
    last lines. What is left out is in the rank's log, always.

    Args:
        log: Where the rank's whole text is, for the word that says so.
        size: The bucket of bytes that all ranks of a run share.
    """

    def __init__(self, log: str, size: Bucket) -> None:
        """Begin with nothing held back."""
        self._log = log
        self._size = size
        self._lines = Bucket(LINES_BURST, LINES_PER_S)
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._held = 0

    def admit(self, lines: Iterable[str], now: float) -> list[str]:
        """Return those of `lines` that are to be shown now; hold back the others."""
        shown = []
        for line in lines:
            short = self._shorten(line)
            if not self._held and self._lines.has(1, now) and self._size.has(len(short), now):
                self._lines.take(1)
                self._size.take(len(short))
                shown.append(short)
            else:
                self._held += 1
                self._tail.append(short)
        return shown

    def release(self, now: float, *, final: bool = False) -> list[str]:
        """Return what was held back: a word on what is left out, and the last lines.

        Args:
            now: Time, s.
            final: Nothing will follow: do not wait until there is room.
        """
        if not self._held:
            return []
        size = sum(map(len, self._tail))
        room = self._lines.has(len(self._tail), now) and self._size.has(size, now)
        if not (room or final):
            return []
        self._lines.take(len(self._tail))
        self._size.take(size)
        left_out = self._held - len(self._tail)
        word = [f"... {left_out:,} lines left out here; all are in {self._log}"] if left_out else []
        lines = word + list(self._tail)
        self._tail.clear()
        self._held = 0
        return lines

    def admit_partial(self, piece: str, now: float) -> str:
        """Return what is to be shown now of an unfinished line; empty if there is no room."""
        short = self._shorten(piece)
        if self._held or not self._size.has(len(short), now):
            return ""
        self._size.take(len(short))
        return short

    def _shorten(self, line: str) -> str:
        if len(line) <= LINE_BYTES:
            return line
        return (
            f"{line[:LINE_BYTES]} ... ({len(line):,} characters; the whole line is in {self._log})"
        )
