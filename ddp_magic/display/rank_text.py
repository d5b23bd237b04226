"""The state of one rank's text on the screen: lines, pages, limits."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ddp_magic.display.rank_lines import RankLines
from ddp_magic.display.throttle import Bucket, Throttle

PAGE_LINES = 100
PAGE_CHARS = 20_000


class RankText:
    """The state of one rank's text on the screen."""

    def __init__(self, rank: int, log: str, size: Bucket) -> None:
        self.rank = rank
        self.log = log
        self.lines = RankLines()
        self.throttle = Throttle(log, size)
        self.last_text = self.last_age = 0.0
        self.last_display: str | None = None
        self.displays = 0
        self.replace_last = False
        self.page: Page | None = None

    def end(self) -> None:
        """Forget what was displayed: the rank's next output is that of a new process."""
        self.lines = RankLines()
        self.last_display, self.replace_last, self.page = None, False, None


class Page:
    """The text a rank prints between two calls of `clear_output()`, shown as one output.

    The next page replaces it.

    Args:
        log: Path of the rank's log, for the message on lines left out.
    """

    def __init__(self, log: str) -> None:
        self._log = log
        self._lines: deque[str] = deque()
        self._left_out = 0
        self._cleared = False
        self.changed = False
        self.shown = False

    def clear(self) -> None:
        """Remove all lines when the next line arrives (`wait=True`)."""
        self._cleared = True

    def add(self, lines: Iterable[str]) -> None:
        """Append lines."""
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
        """Return the page, each line with its rank."""
        lines = list(self._lines)
        if self._left_out:
            lines.insert(0, f"... {self._left_out:,} lines left out here; all are in {self._log}")
        return "\n".join(f"[rank {rank}] {line}" for line in lines)
