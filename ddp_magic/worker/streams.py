"""The text of a rank: descriptors 1 and 2 are a pipe whose read end the kernel holds.

A pipe keeps what was written to it, so that the last words before a SIGKILL arrive too.
"""

from __future__ import annotations

import fcntl
import io
import os
import resource
import secrets
import sys
from typing import Any

HIGH_FD = 900  # under the usual limit of 1024 open files
PIPE_BYTES = 2**20


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
        sys.stdout = sys.__stdout__ = text_stream(1)  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = text_stream(2)  # type: ignore[misc]

    def write_mark(self, number: int) -> None:
        """Mark the place of a rich output in the text."""
        os.write(self._write_end, f"{self.marker}{number}\a".encode())


class _Descriptor(io.FileIO):
    """A descriptor that writes all it is given; FileIO's own write may stop short at a signal."""

    def write(self, data: Any, /) -> int:  # noqa: ANN401 -- any buffer
        """Write everything, unbuffered."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += super().write(view[done:]) or 0
        return done


def text_stream(fd: int) -> io.TextIOWrapper:
    """Return an unbuffered stream: `print(".", end="")` is shown at once, as in a notebook."""
    return io.TextIOWrapper(
        _Descriptor(fd, "wb", closefd=False),  # as Python itself does for -u
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
        write_through=True,
    )


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


def _enlarge(pipe: int) -> None:
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except (OSError, AttributeError):
        pass  # over the user's limit: the default of 64 KB is enough
