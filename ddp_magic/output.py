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
            if bel and number.isdigit():
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


_CONTROL = re.compile(r"(\r|\n|\x1b\[\d*A)")
# Show and hide the cursor, erase in the line: they mean nothing in a notebook's output.
_NOISE = re.compile(r"\x1b\[(?:\?\d+[hl]|\d*K)")


class LineAssembler:
    r"""Turn a rank's text into finished lines and one live line.

    A carriage return starts the line afresh, as on a terminal, so that of a progress bar only the
    last state becomes a line; "cursor up" (nested bars) goes back to rows that are not yet
    finished.
    """

    def __init__(self) -> None:
        """Begin with an empty row."""
        self._rows = [""]
        self._row = 0
        self._overwrite = False
        self._is_bar = False

    def feed(self, text: str) -> list[str]:
        """Take text and return the lines that it finishes."""
        if "\r" not in text and "\x1b" not in text and len(self._rows) == 1:
            return self._feed_plain(text)
        for piece in _CONTROL.split(_NOISE.sub("", text)):
            if piece == "\n":
                self._newline()
            elif piece == "\r":
                self._overwrite = True
                self._is_bar = True
            elif piece.startswith("\x1b[") and piece.endswith("A"):
                self._row = max(0, self._row - int(piece[2:-1] or 1))
            elif piece:
                self._write(piece)
        finished, self._rows = self._rows[: self._row], self._rows[self._row :]
        self._row = 0
        return finished

    def _feed_plain(self, text: str) -> list[str]:
        if self._overwrite and text and text[0] != "\n":
            self._rows[0] = ""
        *finished, last = text.split("\n")
        if text:
            self._overwrite = False
        if not finished:
            self._rows[0] += last
            return []
        finished[0] = self._rows[0] + finished[0]
        self._rows = [last]
        self._is_bar = False
        return finished

    def _newline(self) -> None:
        self._row += 1
        self._overwrite = False
        if self._row == len(self._rows):
            self._rows.append("")
            self._is_bar = False

    def _write(self, piece: str) -> None:
        kept = "" if self._overwrite else self._rows[self._row]
        self._rows[self._row] = kept + piece
        self._overwrite = False

    @property
    def progress(self) -> str:
        """The live line, where it is a progress bar; else empty."""
        return self._rows[-1].rstrip() or self._rows[0].rstrip() if self._is_bar else ""

    @property
    def partial(self) -> str:
        """The unfinished line, where it is no progress bar; else empty."""
        return "" if self._is_bar or len(self._rows) > 1 else self._rows[0]

    def take_partial(self) -> str:
        """Give the unfinished line away: what follows is a new piece of text."""
        text, self._rows[0] = self.partial, ""
        return text

    def end(self) -> list[str]:
        """Give all rows back, at the end of the stream."""
        rows, self._rows, self._row = self._rows, [""], 0
        return [row for row in rows if row.strip()]


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

    def _shorten(self, line: str) -> str:
        if len(line) <= LINE_BYTES:
            return line
        return (
            f"{line[:LINE_BYTES]} ... ({len(line):,} characters; the whole line is in {self._log})"
        )
