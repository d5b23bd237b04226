"""The text of a rank: from the bytes of its descriptors to lines that a notebook can bear.

A rank's stdout and stderr are one pipe, so that their order is the order of writing. A figure
travels over the socket beside it; to keep it in its place, the rank writes a *mark* into the pipe
right after it has sent the figure: an operating system command (OSC) that holds a token known to
nobody else and the figure's number. This is exact also for what C code and child processes write,
whose bytes the rank cannot count.

Pure: bytes and times in, text out. `Throttle` keeps what is shown live below the limits of a
Jupyter server, which above 1 MB/s over 3 s drops everything, the final exception included.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator

# Widest that a mark's number and its closing BEL can be.
_MARK_TAIL_BYTES = 20


class MarkSplitter:
    """Split a rank's bytes at the marks in them.

    Args:
        marker: What every mark of this rank begins with.
    """

    def __init__(self, marker: bytes) -> None:
        """Begin with an empty buffer."""
        self._marker = marker
        self._buffer = b""

    def feed(self, data: bytes) -> Iterator[bytes | int]:
        """Yield text (bytes) and marks (their numbers) in order.

        Only what may be the beginning of a mark is kept back.
        """
        data = self._buffer + data
        self._buffer = b""
        while True:
            text, marker, rest = data.partition(self._marker)
            if not marker:
                keep = _overlap(text, self._marker)
                self._buffer = text[len(text) - keep :]
                if text[: len(text) - keep]:
                    yield text[: len(text) - keep]
                return
            if text:
                yield text
            number, bel, after = rest.partition(b"\a")
            if bel and number.isdigit() and len(number) < _MARK_TAIL_BYTES:
                yield int(number)
                data = after
            elif len(rest) <= _MARK_TAIL_BYTES and rest.isdigit() | (not rest):
                self._buffer = marker + rest
                return
            else:  # no mark of ours: text that quotes one
                yield marker
                data = rest

    def end(self) -> bytes:
        """Give back what was kept, at the end of the stream."""
        rest, self._buffer = self._buffer, b""
        return rest


def _overlap(text: bytes, marker: bytes) -> int:
    """Return how many bytes at the end of `text` are a beginning of `marker`."""
    for size in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0


_MAX_PARAMETERS = 10_000  # characters of an escape sequence's; beyond, it is text
# "Cursor up"; and show and hide the cursor, erase in the line, which mean nothing in a notebook.
_DIGITS = f"[0-9]{{0,{_MAX_PARAMETERS}}}"
_CONTROL = re.compile(
    rf"\r+|\n|\x1b\[(?P<up>{_DIGITS})A|\x1b\[(?:\?(?=[0-9]){_DIGITS}[hl]|{_DIGITS}K)"
)
# What may be the beginning of one of those.
_BEGINNING = re.compile(rf"\x1b(?:\[\??{_DIGITS})?\Z")
TAIL_CHARS = 1000
_MANY_DIGITS = 6  # more rows than any screen has


class Row:
    """One row of text, kept in the pieces that it came in: joining each would copy the row."""

    def __init__(self) -> None:
        """Begin empty."""
        self._pieces: list[str] = []

    def add(self, piece: str) -> None:
        """Append to it."""
        self._pieces.append(piece)

    def clear(self) -> None:
        """Make it empty."""
        self._pieces = []

    @property
    def text(self) -> str:
        """All of it."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def tail(self) -> str:
        """Return its end, which is all that a table has room for."""
        end: list[str] = []
        size = 0
        for piece in reversed(self._pieces):
            end.insert(0, piece)
            size += len(piece)
            if size >= TAIL_CHARS:
                break
        return "".join(end)[-TAIL_CHARS:]


class LineAssembler:
    r"""Turn a rank's text into finished lines and one live line.

    A carriage return starts the line afresh, as on a terminal, so that of a progress bar only the
    last state becomes a line; "cursor up" (nested bars) goes back to rows that are not yet
    finished. The text may be cut anywhere, also within an escape sequence. Its cost grows with the
    text, however long the lines are.
    """

    def __init__(self) -> None:
        """Begin with an empty row."""
        self._rows = [Row()]
        self._row = 0
        self._overwrite = False
        self._is_bar = False
        self._beginning = ""  # of an escape sequence, whose rest is still to come

    def feed(self, text: str) -> list[str]:
        """Take text and return the lines that it finishes."""
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
        """Hold back what may be the beginning of an escape sequence; return the text before it."""
        # Only the end is searched: a regular expression would look at all of the text.
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
        """The live line, where it is a progress bar; else empty."""
        if not self._is_bar:
            return ""
        return self._rows[-1].tail().rstrip() or self._rows[0].tail().rstrip()

    @property
    def partial(self) -> str:
        """The unfinished line, where it is no progress bar; else empty."""
        return "" if self._is_bar or len(self._rows) > 1 else self._rows[0].text

    def take_partial(self) -> str:
        """Give the unfinished line away: what follows is a new piece of text."""
        if text := self.partial:
            self._rows[0].clear()
        return text

    def end(self) -> list[str]:
        """Give all rows back, at the end of the stream."""
        if self._beginning:
            self._write(self._beginning)
        rows, self._rows, self._row, self._beginning = self._rows, [Row()], 0, ""
        return [row.text for row in rows if row.text.strip()]


def _number(digits: str) -> int:
    """Return how far a cursor is to go: at least one row, as terminals do."""
    digits = digits.lstrip("0")
    return int(digits or 1) if len(digits) <= _MANY_DIGITS else 10**_MANY_DIGITS


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
