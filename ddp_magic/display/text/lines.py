"""Splits a stream's text into finished lines, and the progress bars or partial line at its end."""

from __future__ import annotations

import re

from ddp_magic.display.text.controls import CONTROL, begins_at, rows_of
from ddp_magic.display.text.rows import Row

MAX_ROWS = 100  # a program that never ends its rows gets no more
_CURSOR = "25"  # the mode "show cursor"


class LineAssembler:
    """Split the text of one stream into finished lines and live rows, as a terminal does.

    A carriage return overwrites the row, so only the last state of a progress bar becomes a line.
    Nested bars move the cursor up and down. A row below which the cursor is has not been left for
    good: the next text may return to it. A bar is therefore finished when plain text follows it,
    when `settle` or twice `age` finds the cursor below it, or at the end. The text can be cut
    anywhere, even within an escape sequence. The cost is linear in the text, however long the
    lines are.

    Attributes:
        continues: Whether the first of the lines that were returned last is the rest of one whose
            beginning was taken.
    """

    def __init__(self) -> None:
        self._rows = [Row()]
        self._row = 0  # where the cursor is
        self._highest = 0  # the highest row that it was in since the last `age`
        self._fed = False  # whether text has come since the last `age`
        self._at_start = True  # whether it is in the first column
        self._returned = False  # whether text that follows replaces what stands there
        self._to_redraw = 0  # rows below the cursor over which it has moved up
        self._erased = False
        self._is_new_line = False  # whether a newline was the last that came
        self._hidden = False  # the cursor: rich hides it while it draws bars
        self._rests_below = False  # between two updates it stands below the bars
        self._aside: list[str] = []  # an unfinished line that is none of the rows
        self._is_aside = False  # whether the present write belongs to it
        self._in_pieces = False  # whether a bar is written by several writes, after a return
        self._beginning = ""  # of an escape sequence whose rest has not arrived
        self.continues = False

    def feed(self, text: str, *, begins: bool = False) -> list[str]:
        """Add text and return the lines that it finishes.

        Args:
            text: The text.
            begins: Whether it is the beginning of a write. A bar is written by a write of its own:
                other text, also where the cursor stands behind a bar, is a line of its own.
        """
        text = self._keep_beginning(self._beginning + text)
        self._fed = True
        row = self._rows[self._row]
        if begins:
            self._is_aside = bool(text) and self._is_other_text(text)
        elif text and self._in_pieces:
            self._in_pieces = self._rows[self._row].is_bar and not self._at_start
        if self._is_aside:
            return self._feed_aside(text)
        # A newline alone may be a bar's, which moves the cursor down to where it stands.
        moves = begins and not text.strip("\n")
        plain = len(self._rows) == 1 and not (row.is_bar or self._returned or self._hidden)
        plain = plain and not moves
        if plain and not any(control in text for control in "\r\b\x1b"):
            return self._feed_plain(text)
        finished: list[Row] = []
        done = 0
        for control in CONTROL.finditer(text):
            self._write(text[done : control.start()], finished)
            done = control.end()
            self._obey(control)
        self._write(text[done:], finished)
        if moves:
            for row in self._rows[: self._row]:
                row.is_held = row.is_blank
        return self._texts(finished + self._take_left())

    def _is_other_text(self, text: str) -> bool:
        """Return whether a write is text beside the bars; after a blank one it takes its row."""
        row = self._rows[self._row]
        if self._moves(text) or text[0] == "\r":
            # What follows a return alone is drawn in pieces, but not after a bar was wiped out.
            self._in_pieces = text == "\r" and not (row.is_bar and row.is_blank)
            return False
        if self._in_pieces:
            self._in_pieces = "\n" not in text
            return False
        if self._aside:
            return True
        if text[0] == "\n":
            return False
        if row.is_blank and self._at_start:
            row.clear()
            row.is_bar = self._returned = False
        return row.is_bar and not self._at_start

    @staticmethod
    def _moves(text: str) -> bool:
        control = CONTROL.match(text) if text[0] == "\x1b" else None
        return control is not None or "\r" in text.replace("\r\n", "")

    def _feed_aside(self, text: str) -> list[str]:
        first, newline, rest = text.partition("\n")
        self._aside.append(first)
        if not newline:
            return []
        lines = self.settle()
        *finished, last = rest.split("\n")
        finished.insert(0, "".join(self._aside))
        self._aside = [last] if last else []
        return lines + finished

    def _keep_beginning(self, text: str) -> str:
        """Store a possible beginning of an escape sequence; return the text before it."""
        last = begins_at(text)
        self._beginning = text[last:]
        return text[:last]

    def _feed_plain(self, text: str) -> list[str]:
        first, newline, rest = text.partition("\n")
        row = self._rows[0]
        self._is_new_line = False
        if first:
            row.add(first)
            self._at_start = False
        if not newline:
            return []
        *finished, last = rest.split("\n")
        finished.insert(0, row.text)
        self.continues = row.taken
        self._rows = [Row()]
        if last:
            self._rows[0].add(last)
        self._at_start = not last
        return finished

    # --- the cursor -------------------------------------------------------------------------

    def _write(self, piece: str, finished: list[Row]) -> None:
        if not piece:
            return
        rests = self._rests_below or not self._erased
        if not rests and all(row.is_blank for row in self._rows[self._row :]):
            # The bars are drawn anew from here on: what stands above is not theirs.
            finished += self._take(self._row)
        row = self._rows[self._row]
        if self._at_start:
            row.clear()
            row.is_bar = False
        row.is_bar = row.is_bar or self._returned or self._hidden
        row.add(piece)
        self._at_start = self._returned = self._erased = self._is_new_line = False

    def _obey(self, control: re.Match[str]) -> None:
        self._is_new_line = False
        if control[0] == "\n":
            self._newline()
        elif control[0][0] == "\r":
            self._at_start = self._returned = True
        elif control[0][0] == "\b":
            self._back(len(control[0]))
        elif control["mode"]:
            if control["mode"].lstrip("0") == _CURSOR:
                self._hidden = control["on"] == "l"
        else:
            self._move_or_erase(control["name"], control["count"])

    def _back(self, count: int) -> None:
        """Remove characters, as a notebook does, but none of what stands before the row."""
        if not self._at_start:
            self._rows[self._row].erase(count)

    def _move_or_erase(self, name: str, digits: str) -> None:
        if name in "AF":
            self._up(rows_of(digits))
        elif name in "BE":
            self._row = min(self._row + rows_of(digits), len(self._rows) - 1)
        elif name in "KJ" and (self._at_start or digits.lstrip("0") == "2"):
            self._rows[self._row].clear()
            self._erased = self._returned = True
            if name == "J":
                del self._rows[self._row + 1 :]
        if name in "EF" or (name == "G" and digits.lstrip("0") in ("", "1")):
            self._at_start = self._returned = True

    def _newline(self) -> None:
        self._row += 1
        self._at_start = self._is_new_line = True
        self._returned = self._to_redraw > 0
        self._to_redraw = max(0, self._to_redraw - 1)
        if self._row == len(self._rows):
            self._rows.append(Row())

    def _up(self, count: int) -> None:
        bottom = self._rows[self._row]
        written = bottom.is_bar or self._returned or not bottom.is_blank
        if self._row == len(self._rows) - 1 and not written:
            self._rests_below = True
        above = max(0, self._row - count)
        for row in self._rows[above : self._row + 1]:
            row.is_bar = True
        self._to_redraw = min(self._to_redraw + count, MAX_ROWS)
        self._row = above
        self._highest = min(self._highest, above)
        self._returned = True

    # --- finished rows ----------------------------------------------------------------------

    def _take(self, count: int) -> list[Row]:
        """Remove the first rows; return those that are lines: what a bar leaves blank is none."""
        rows, self._rows = self._rows[:count], self._rows[count:]
        self._row -= count
        self._highest = max(0, self._highest - count)
        if [row.is_bar for row in self._rows] == [False]:
            self._rests_below, self._to_redraw = False, 0
        return [row for row in rows if not (row.is_bar and row.is_blank)]

    def _texts(self, rows: list[Row]) -> list[str]:
        self.continues = bool(rows) and rows[0].taken
        return [row.text.rstrip(" ") if row.is_bar else row.text for row in rows]

    def _take_left(self) -> list[Row]:
        """Remove the rows to which the cursor does not return: all above a plain line."""
        above = self._rows[: self._row]
        if self._hidden:
            return self._take(max(0, len(self._rows) - MAX_ROWS))
        bars = [i for i, row in enumerate(above) if row.is_bar or row.is_held]
        printed = [i for i, row in enumerate(above) if not (row.is_bar or row.is_blank)]
        count = bars[0] if bars else len(above)
        if printed:
            count = max(count, printed[-1] + 1)
        return self._take(max(count, min(self._row, len(self._rows) - MAX_ROWS)))

    def settle(self) -> list[str]:
        """Return the rows above the cursor: something else is shown now, below them."""
        row = self._rows[self._row]
        ended = self._row == len(self._rows) - 1 and row.is_blank and not row.is_bar
        if self._rests_below or (self._hidden and not ended):
            return []
        return self._texts(self._take(self._row))

    def age(self) -> list[str]:
        """Return the rows above which the cursor has not been since the last call.

        Call it when bars have had the time for an update: a fraction of a second.
        """
        fed, self._fed = self._fed, False
        if self._rests_below or self._hidden:
            return [] if fed else self.settle()
        finished = self._texts(self._take(self._highest))
        self._highest = self._row
        return finished

    @property
    def bars(self) -> tuple[str, ...]:
        """The progress bars that stand in the live rows, from the top."""
        current = self._rows[self._row] if self._returned else None
        changing = [row for row in self._rows if row.is_bar or row.is_edited or row is current]
        rows = [row for row in changing if not row.is_blank]
        return tuple(row.tail().rstrip() for row in rows)

    @property
    def is_empty(self) -> bool:
        """Whether all text has become lines."""
        blank = all(row.is_blank and not row.is_held for row in self._rows)
        return blank and not (self._aside or self._beginning or self._hidden or self._rests_below)

    @property
    def partial(self) -> str:
        """The unfinished line if it is not a progress bar; else empty."""
        if self._aside:
            return "".join(self._aside)
        row = self._rows[0]
        live = len(self._rows) > 1 or row.is_bar or row.is_edited or self._returned
        return "" if live else row.text

    def take_partial(self) -> str:
        """Return the unfinished line and remove it; later text continues after it."""
        if text := self.partial:
            if self._aside:
                self._aside = []
            else:
                self._rows[0].clear()
                self._rows[0].taken = True
        return text

    def end(self) -> list[str]:
        """Return all remaining rows, at the end of the stream: no text may follow."""
        if self._beginning:
            self._write(self._beginning, [])
        aside = "".join(self._aside)
        if self._is_new_line:
            del self._rows[self._row :]  # what has not been drawn again since is no longer true
        while self._rows and self._rows[-1].is_blank:
            self._rows.pop()
        return self._texts(self._take(len(self._rows))) + [aside] * bool(aside)
