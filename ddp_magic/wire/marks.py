"""Marks: how a rank says where in its text a rich output belongs, and which text is one write.

`worker.console` (`displays`, `streams`) writes the marks; `kernel.worker_group.member` puts the
outputs back in order.

A rank's stdout and stderr are one pipe, so that their order is the order of writing. A figure
travels over the socket beside it. To keep it in its place, the rank writes a *mark* into the pipe
right after it has sent the figure: an operating system command (OSC) that holds a token known to
nobody else and the figure's number. This is exact also for what C code and child processes write,
whose bytes the rank cannot count.

A write of `sys.stdout` or `sys.stderr` that belongs to a progress bar, or meets one, stands between
two marks: otherwise nobody could tell where a bar ends, and where the words of a `print` begin.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum

# What follows a marker: the number of a rich output, or who writes.
_TAIL = re.compile(rb"(?:(?P<number>[0-9]{1,19})|w(?P<writer>[012]))\a")
_TAIL_BEGINNING = re.compile(rb"(?:[0-9]{0,19}|w[012]?)\Z")


class Writer(Enum):
    """Whose text follows."""

    ANYBODY = 0
    STDOUT = 1
    STDERR = 2

    def mark(self, marker: str) -> bytes:
        """Return the mark that says so."""
        return f"{marker}w{self.value}\a".encode()


class MarkSplitter:
    """Split a rank's bytes at the marks in them.

    Args:
        marker: What every mark of this rank begins with.
    """

    def __init__(self, marker: bytes) -> None:
        self._marker = marker
        self._buffer = b""

    def feed(self, data: bytes) -> Iterator[bytes | int | Writer]:
        """Yield text (bytes), marks of rich outputs (their numbers) and of writers in order.

        Only what may be the beginning of a mark is kept back.
        """
        data = self._buffer + data
        self._buffer = b""
        done = 0
        while (found := data.find(self._marker, done)) >= 0:
            if found > done:
                yield data[done:found]
            done = found + len(self._marker)
            if tail := _TAIL.match(data, done):
                writer = tail["writer"]
                yield int(tail["number"]) if writer is None else Writer(int(writer))
                done = tail.end()
            elif _TAIL_BEGINNING.match(data, done):
                self._buffer = data[found:]
                return
            else:  # no mark of ours: text that quotes one
                yield self._marker
        rest = data[done:]
        keep = _overlap(rest, self._marker)
        self._buffer = rest[len(rest) - keep :]
        if keep < len(rest):
            yield rest[: len(rest) - keep]

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
