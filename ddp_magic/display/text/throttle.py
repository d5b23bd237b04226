"""Limits the live output to what a Jupyter server accepts. Pure.

A server drops all messages above 1 MB/s over 3 s, including the final exception.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class Bucket:
    """A token bucket.

    Args:
        capacity: Most tokens that it holds; it starts full.
        per_s: Tokens added each second.
    """

    def __init__(self, capacity: float, per_s: float) -> None:
        self._capacity = capacity
        self._per_s = per_s
        self._tokens = capacity
        self._time: float | None = None

    def has(self, tokens: float, now: float) -> bool:
        """Return whether that many tokens are available."""
        if self._time is not None:
            self._tokens = min(self._capacity, self._tokens + (now - self._time) * self._per_s)
        self._time = now
        return self._tokens >= tokens

    def take(self, tokens: float) -> None:
        """Remove that many tokens; the balance may become negative."""
        self._tokens -= tokens


LINES_BURST = 1000
LINES_PER_S = 50
TAIL_LINES = 100
BYTES_BURST = 800_000
BYTES_PER_S = 400_000
LINE_BYTES = 200_000  # a longer line is cut here; the log has all of it


class Throttle:
    """Decides which lines of one rank are shown live.

    Of a flood it shows the beginning, then every few seconds the number of lines left out and the
    last lines. The rank's log always has every line.

    Args:
        log: Path of the rank's log, for the message.
        size: The bucket of bytes that all ranks of a run share.
    """

    def __init__(self, log: str, size: Bucket) -> None:
        self._log = log
        self._size = size
        self._lines = Bucket(LINES_BURST, LINES_PER_S)
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._held = 0

    def admit(self, lines: Iterable[str], now: float) -> list[str]:
        """Return the lines to show now; hold back the others."""
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

    @property
    def holds(self) -> bool:
        """Whether lines are held back."""
        return self._held > 0

    def release(self, now: float, *, final: bool = False) -> list[str]:
        """Return a message on the lines left out, and the last of the lines held back.

        Args:
            now: Time, in seconds.
            final: Whether nothing will follow: then do not wait for room.
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
        lines = list(self._tail)
        if left_out:
            lines.insert(0, f"... {left_out:,} lines left out here; all are in {self._log}")
        self._tail.clear()
        self._held = 0
        return lines

    def admit_partial(self, piece: str, now: float) -> str:
        """Return the part of an unfinished line to show now; empty if there is no room."""
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
