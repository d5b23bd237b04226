"""The state of one rank's text on the screen: lines, page, limits."""

from __future__ import annotations

from ddp_magic.display.text.page import Page
from ddp_magic.display.text.rank_lines import RankLines
from ddp_magic.display.text.throttle import Bucket, Throttle


class RankText:
    """The state of one rank's text on the screen."""

    def __init__(self, rank: int, log: str, size: Bucket) -> None:
        self.rank = rank
        self.log = log
        self.lines = RankLines()
        self.throttle = Throttle(log, size)
        self.last_text = self.last_age = 0.0
        self.displays = 0
        self.page: Page | None = None  # since the first `clear_output()`
        self.has_old_output = False  # from before that, which the first page replaces

    @property
    def is_settled(self) -> bool:
        """Whether all that has come has become lines, and none of these is held back."""
        return self.lines.is_empty and not self.throttle.holds

    def end(self) -> None:
        """Forget what was displayed: the rank's next output is that of a new process."""
        self.lines = RankLines()
        self.page, self.has_old_output = None, False
