"""Splits a rank's text into finished lines, and the progress bar or partial line at its end."""

from __future__ import annotations

import re

_MAX_PARAMETERS = 10_000  # most digits in an escape sequence; a longer one is text
# "Cursor up"; also "show cursor", "hide cursor" and "erase in line", which have no effect in a
# notebook.
_DIGITS = f"[0-9]{{0,{_MAX_PARAMETERS}}}"
_CONTROL = re.compile(
    rf"\r+|\n|\x1b\[(?P<up>{_DIGITS})A|\x1b\[(?:\?(?=[0-9]){_DIGITS}[hl]|{_DIGITS}K)"
)
# A possible beginning of one of those.
_BEGINNING = re.compile(rf"\x1b(?:\[\??{_DIGITS})?\Z")
TAIL_CHARS = 1000
_MANY_DIGITS = 6  # more rows than any screen has


class Row:
    """One row of text, kept in pieces: joining each new piece would copy the row."""

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def add(self, piece: str) -> None:
        """Append text."""
        self._pieces.append(piece)

    def clear(self) -> None:
        """Remove all text."""
        self._pieces = []

    @property
    def text(self) -> str:
        """All text of the row."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def tail(self) -> str:
        """Return the last `TAIL_CHARS` characters, for the table."""
        end: list[str] = []
        size = 0
        for piece in reversed(self._pieces):
            end.insert(0, piece)
            size += len(piece)
            if size >= TAIL_CHARS:
                break
        return "".join(end)[-TAIL_CHARS:]


class LineAssembler:
    """Split a rank's text into finished lines and one live line.

    A carriage return overwrites the line, as on a terminal, so only the last state of a progress
    bar becomes a line. "Cursor up" (nested bars) returns to rows that are not finished. The text
    can be cut anywhere, even within an escape sequence. The cost is linear in the text, however
    long the lines are.
    """

    def __init__(self) -> None:
        self._rows = [Row()]
        self._row = 0
        self._overwrite = False
        self._is_bar = False
        self._beginning = ""  # of an escape sequence whose rest has not arrived

    def feed(self, text: str) -> list[str]:
        """Add text and return the lines that it finishes."""
        text = self._keep_beginning(self._beginning + text)
        if "\r" not in text and "\x1b" not in text and len(self._rows) == 1:
            return self._feed_plain(text)
        done = 0
        for control in _CONTROL.finditer(text):
            self._write(text[done : control.start()])
            done = control.end()
            if control[0] == "\n":
                self._newline()
            elif control[0][0] == "\r":
                self._overwrite = True
                self._is_bar = True
            elif (up := control["up"]) is not None:
                self._row = max(0, self._row - _number(up))
        self._write(text[done:])
        finished, self._rows = self._rows[: self._row], self._rows[self._row :]
        self._row = 0
        return [row.text for row in finished]

    def _keep_beginning(self, text: str) -> str:
        """Store a possible beginning of an escape sequence; return the text before it."""
        # Search only the end: a regular expression would scan all of the text.
        last = text.rfind("\x1b", max(0, len(text) - _MAX_PARAMETERS - 3))
        if last < 0 or not _BEGINNING.match(text, last):
            last = len(text)
        self._beginning = text[last:]
        return text[:last]

    def _feed_plain(self, text: str) -> list[str]:
        if self._overwrite and text and text[0] != "\n":
            self._rows[0].clear()
        if text:
            self._overwrite = False
        first, newline, rest = text.partition("\n")
        if first:
            self._rows[0].add(first)
        if not newline:
            return []
        *finished, last = rest.split("\n")
        finished.insert(0, self._rows[0].text)
        self._rows = [Row()]
        if last:
            self._rows[0].add(last)
        self._is_bar = False
        return finished

    def _newline(self) -> None:
        self._row += 1
        self._overwrite = False
        if self._row == len(self._rows):
            self._rows.append(Row())
            self._is_bar = False

    def _write(self, piece: str) -> None:
        if not piece:
            return
        if self._overwrite:
            self._rows[self._row].clear()
        self._rows[self._row].add(piece)
        self._overwrite = False

    @property
    def progress(self) -> str:
        """The live line if it is a progress bar; else empty."""
        if not self._is_bar:
            return ""
        return self._rows[-1].tail().rstrip() or self._rows[0].tail().rstrip()

    @property
    def partial(self) -> str:
        """The unfinished line if it is not a progress bar; else empty."""
        return "" if self._is_bar or len(self._rows) > 1 else self._rows[0].text

    def take_partial(self) -> str:
        """Return the unfinished line and remove it; later text continues after it."""
        if text := self.partial:
            self._rows[0].clear()
        return text

    def end(self) -> list[str]:
        """Return all remaining rows, at the end of the stream."""
        if self._beginning:
            self._write(self._beginning)
        rows, self._rows, self._row, self._beginning = self._rows, [Row()], 0, ""
        return [row.text for row in rows if row.text.strip()]


def _number(digits: str) -> int:
    """Return how many rows the cursor moves: at least one, as in terminals."""
    digits = digits.lstrip("0")
    return int(digits or 1) if len(digits) <= _MANY_DIGITS else 10**_MANY_DIGITS
