"""The text of a rank: descriptors 1 and 2 are a pipe whose read end the kernel holds.

A pipe keeps what was written to it, so that the last words before a SIGKILL arrive too.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import resource
import secrets
import sys
from typing import Any

from ddp_magic.wire.marks import Writer

HIGH_FD = 900  # under the usual limit of 1024 open files
PIPE_BYTES = 2**20
STDERR = 2


class TextPipe:
    """The pipe that descriptors 1 and 2 write to.

    Attributes:
        read_end: The kernel's end. Close it with `close_read_end` once the kernel has it.
        marker: What each mark in the text begins with. It is random, so that no text of the user's
            is taken for a mark.
    """

    def __init__(self) -> None:
        self.read_end, self._write_end = map(move_high, os.pipe())
        _enlarge(self._write_end)
        self.marker = f"\x1b]ddp_magic;{secrets.token_hex(8)};"

    def close_read_end(self) -> None:
        """Close this process's copy of the read end."""
        os.close(self.read_end)

    def open_standard_streams(self) -> None:
        """Connect descriptors 1 and 2 to the pipe, and Python's streams to them.

        This is done before each cell: an earlier cell of the session may have closed or replaced
        them. Descriptor 0 reads from /dev/null.
        """
        os.dup2(self._write_end, 1)
        os.dup2(self._write_end, 2)
        nothing = os.open(os.devnull, os.O_RDONLY)
        if nothing != 0:
            os.dup2(nothing, 0)
            os.close(nothing)
        writes = Writes(self.marker)
        sys.stdout = sys.__stdout__ = text_stream(1, writes)  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = text_stream(2, writes)  # type: ignore[misc]

    def write_mark(self, number: int) -> None:
        """Mark the place of a rich output in the text."""
        os.write(self._write_end, f"{self.marker}{number}\a".encode())


# What only progress bars write: a return, or a sequence that moves the cursor or erases.
_MOVES = re.compile(rb"\r(?!\n)|\x1b\[(?:[0-9]*[ABEFGJK]|\?[0-9]+[hl])")


class Writes:
    """Puts a write between two marks if a progress bar could be in its way, or if it is one.

    Other text goes out as it is, at no cost.

    Args:
        marker: What each mark begins with.
    """

    def __init__(self, marker: str) -> None:
        self._marks = {writer.value: writer.mark(marker) for writer in Writer}
        self._bars: set[int] = set()  # the streams that end with a bar
        self._unfinished: set[int] = set()  # those that end with a part of a line
        self._has_open_line = False  # whether the text that is no bar ends with a part of a line

    def on_new_line(self, text: str) -> str:
        """Return text that is to begin a line, as what `display` shows does in a notebook."""
        return f"\n{text}" if self._has_open_line else text

    def marked(self, fd: int, data: bytes) -> bytes:
        """Return what to write to the descriptor 1 or 2 for this text."""
        moves = b"\r" in data or b"\x1b[" in data
        moves = moves and _MOVES.search(data) is not None
        # The first bar may begin with newlines, down to where it stands.
        moves = moves or (fd == STDERR and not data.strip(b"\n"))
        # Text without marks goes where stdout's goes: only a bar there can be in its way.
        beside = self._bars if fd == STDERR else self._bars - {STDERR}
        # `print("50%", end="\r")`: its return belongs where its text is.
        plain = not beside and (not moves or fd in self._unfinished)
        ends = data.endswith(b"\n")
        if plain or fd != STDERR:
            # Text beside a bar is a line of its own, unless the bar's last word is a return.
            self._has_open_line = not ends and (plain or not moves or data.endswith(b"\r"))
        if plain:
            (self._unfinished.discard if ends else self._unfinished.add)(fd)
            return data
        if ends:
            self._bars.discard(fd)
            self._unfinished.discard(fd)
        elif moves:
            self._bars.add(fd)
        return self._marks[fd] + data + self._marks[0]


class _Descriptor(io.FileIO):
    """A descriptor that writes all it is given; FileIO's own write may stop short at a signal."""

    def __init__(self, fd: int, writes: Writes) -> None:
        super().__init__(fd, "wb", closefd=False)
        self._number = fd
        self.writes = writes

    def write(self, data: Any, /) -> int:  # noqa: ANN401 -- any buffer
        """Write everything, unbuffered."""
        data = bytes(data)
        if not data:
            return 0
        view = memoryview(self.writes.marked(self._number, data))
        done = 0
        while done < len(view):
            done += super().write(view[done:]) or 0
        return len(data)


def text_stream(fd: int, writes: Writes) -> io.TextIOWrapper:
    """Return an unbuffered stream: `print(".", end="")` is shown at once, as in a notebook."""
    return io.TextIOWrapper(
        _Descriptor(fd, writes),  # unbuffered, as Python itself does for -u
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
        write_through=True,
    )


def print_on_new_line(text: str) -> None:
    """Print text that is to begin a line: where the cell has replaced stdout, as it is."""
    writes = getattr(getattr(sys.stdout, "buffer", None), "writes", None)
    print(writes.on_new_line(text) if isinstance(writes, Writes) else text)  # noqa: T201 -- the rank's text


def flush() -> None:
    """Flush `sys.stdout` and `sys.stderr`, whatever the cell has made of them."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue  # the cell closed or replaced it


def move_high(fd: int) -> int:
    """Move a descriptor to a high number, which no loop of the user's closes by accident.

    Returns:
        The new descriptor; `fd` itself if none is free.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    lowest = HIGH_FD if limit == resource.RLIM_INFINITY else min(HIGH_FD, limit * 3 // 4)
    try:
        moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)
    except OSError:  # too many are open
        return fd
    os.close(fd)
    return moved


def prepare_high_numbers() -> None:
    """Let the table of descriptors grow, before this process has threads.

    With threads, Linux waits until no processor can be reading the old table: some 20 ms.
    """
    os.close(move_high(os.open(os.devnull, os.O_RDONLY)))


def _enlarge(pipe: int) -> None:
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except (OSError, AttributeError):
        pass  # over the user's limit: the default of 64 KB is enough
