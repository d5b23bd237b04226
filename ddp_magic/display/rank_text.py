"""One rank's text on its way to the screen."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ddp_magic.display.lines import LineAssembler
from ddp_magic.display.throttle import Bucket, Throttle

PAGE_LINES = 100
PAGE_CHARS = 20_000


class RankText:
    """One rank's text on its way to the screen."""

    def __init__(self, rank: int, log: str, size: Bucket) -> None:
        """Begin with none."""
        self.rank = rank
        self.log = log
        self.lines = LineAssembler()
        self.throttle = Throttle(log, size)
        self.last_text = 0.0
        self.last_display: str | None = None
        self.displays = 0
        self.replace_last = False
        self.page: Page | None = None


class Page:
    """What a rank prints between two `clear_output()`: one output, which the next one replaces.

    Args:
        log: Where the rank's whole text is, for the word that says so.
    """

    def __init__(self, log: str) -> None:
        """Begin empty."""
        self._log = log
        self._lines: deque[str] = deque()
        self._left_out = 0
        self._cleared = False
        self.changed = False
        self.shown = False

    def clear(self) -> None:
        """Let the next line be the first. Until then, the page stays (`wait=True`)."""
        self._cleared = True

    def add(self, lines: Iterable[str]) -> None:
        """Put lines below the others."""
        for line in lines:
            if self._cleared:
                self._lines.clear()
                self._cleared, self._left_out = False, 0
            self._lines.append(line[:PAGE_CHARS])
            self.changed = True
        size = sum(map(len, self._lines))
        while len(self._lines) > PAGE_LINES or size > PAGE_CHARS:
            size -= len(self._lines.popleft())
            self._left_out += 1

    def text(self, rank: int) -> str:
        """Return the page as it is now."""
        lines = list(self._lines)
        if self._left_out:
            lines.insert(0, f"... {self._left_out:,} lines left out here; all are in {self._log}")
        return "\n".join(f"[rank {rank}] {line}" for line in lines)
