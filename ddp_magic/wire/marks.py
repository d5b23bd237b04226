"""Marks: how a rank says where in its text a rich output belongs.

`worker.displays` writes the marks; `kernel.member` puts the outputs back in order.

A rank's stdout and stderr are one pipe, so that their order is the order of writing. A figure
travels over the socket beside it. To keep it in its place, the rank writes a *mark* into the pipe
right after it has sent the figure: an operating system command (OSC) that holds a token known to
nobody else and the figure's number. This is exact also for what C code and child processes write,
whose bytes the rank cannot count.
"""

from __future__ import annotations

from collections.abc import Iterator

# Widest that a mark's number and its closing BEL can be.
_MARK_TAIL_BYTES = 20


class MarkSplitter:
    """Split a rank's bytes at the marks in them.

    Args:
        marker: What every mark of this rank begins with.
    """

    def __init__(self, marker: bytes) -> None:
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
