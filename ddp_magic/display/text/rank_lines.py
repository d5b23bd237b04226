"""The lines of one rank: its stdout, and its stderr, to which progress bars are written."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ddp_magic.display.text.lines import LineAssembler

STDERR = 2
_COLOR = re.compile(r"\x1b\[[0-9;:]{0,100}m")
# What a terminal obeys without a trace, and a notebook shows as it is: links and titles, strings
# for devices, all of CSI but colors, sets of characters, saved cursors.
_UNSEEN = re.compile(
    r"\x1b(?:\][^\x07\x1b]{0,10000}(?:\x07|\x1b\\)|[PX^_][^\x1b]{0,10000}\x1b\\"
    r"|\[[0-?]{0,100}[ -/]{0,10}[@-ln-~]|[()*+][0-9A-Za-z]|[78=>])"
)


class RankLines:
    """Split a rank's text into finished lines, in order, and its progress bars.

    In a notebook a `print` does not meet a bar, because bars are written to stderr. So the two are
    kept apart where the rank says who writes; text of C code and child processes counts as stdout.
    Of escape sequences only colors stay.
    """

    def __init__(self) -> None:
        self._out = LineAssembler()
        self._bars = LineAssembler()
        self.continues = False

    def feed(self, text: str, writer: int = 0, *, begins: bool = False) -> list[str]:
        """Add text and return the lines that it finishes.

        Args:
            text: The text.
            writer: 1 for `sys.stdout`, 2 for `sys.stderr`, 0 for anybody else.
            begins: Whether it is the beginning of what this one writes.
        """
        own, other = (self._bars, self._out) if writer == STDERR else (self._out, self._bars)
        lines = own.feed(text, begins=begins)
        ended = other.settle() if lines else []
        self.continues = own.continues and not ended
        return _visible(ended + lines)

    def settle(self) -> list[str]:
        """Return the bars that have ended: something else is shown now, below them."""
        self.continues = False
        return _visible(self._bars.settle() + self._out.settle())

    def age(self) -> list[str]:
        """Return the bars that have ended a while ago."""
        self.continues = False
        return _visible(self._bars.age() + self._out.age())

    def end(self) -> list[str]:
        """Return all that remains, at the end of the rank's text."""
        lines = self._bars.end()
        rest = self._out.end()
        self.continues = self._out.continues and not lines
        return _visible(lines + rest)

    @property
    def bars(self) -> tuple[str, ...]:
        """The last states of the bars that have not ended, outer ones first, without colors."""
        return tuple(_COLOR.sub("", bar) for bar in _visible(self._out.bars + self._bars.bars))

    @property
    def is_empty(self) -> bool:
        """Whether all text has become lines."""
        return self._out.is_empty and self._bars.is_empty

    @property
    def partial(self) -> str:
        """The unfinished line; empty if there is none."""
        return _seen(self._out.partial or self._bars.partial)

    def take_partial(self) -> str:
        """Return the unfinished line and remove it; later text continues after it."""
        return _seen(self._out.take_partial() or self._bars.take_partial())


def _visible(lines: Iterable[str]) -> list[str]:
    return [_seen(line) for line in lines]


def _seen(line: str) -> str:
    return _UNSEEN.sub("", line) if "\x1b" in line else line
