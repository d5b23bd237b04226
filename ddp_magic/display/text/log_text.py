"""What of a rank's text goes into its log: all, but of progress bars only the last state. Pure."""

from __future__ import annotations

import re

from ddp_magic.display.text.rank_lines import RankLines

AGE_S = 0.5  # after this long, a bar to which nothing has returned is finished
# A return, or a sequence that moves the cursor or erases.
_MOVES = re.compile(rb"\r(?!\n|\Z)|\x1b\[(?:[0-9]*[ABEFGJK]|\?[0-9]+[hl])")
_ANY_BYTES = "latin-1"  # every byte is a character, so that none is lost


class LogText:
    """Leaves the states of progress bars out of a rank's log, up to the last."""

    def __init__(self) -> None:
        self._lines: RankLines | None = None  # while there are bars
        self._aged = 0.0

    def feed(self, data: bytes, writer: int, now: float, *, begins: bool) -> bytes:
        """Return what to append to the log.

        Args:
            data: What the rank has written.
            writer: See `RankLines.feed`.
            now: Time, in seconds.
            begins: See `RankLines.feed`.
        """
        if self._lines is None:
            if not (b"\r" in data or b"\x1b[" in data) or not _MOVES.search(data):
                return data
            self._lines, self._aged = RankLines(), now
        lines = self._lines.feed(data.decode(_ANY_BYTES), writer, begins=begins)
        if now - self._aged > AGE_S:
            self._aged = now
            lines += self._lines.age()
        if self._lines.is_empty:
            self._lines = None
        return _joined(lines)

    def end(self) -> bytes:
        """Return what to append at the end of the rank's text."""
        lines = [] if self._lines is None else self._lines.end()
        self._lines = None
        return _joined(lines)


def _joined(lines: list[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode(_ANY_BYTES)
