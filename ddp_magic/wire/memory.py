"""Anonymous shared memory: written once by one process, mapped by others copy-on-write.

A segment is a file without a name (memfd): it does not use /dev/shm, which has 64 MB in a
container, and it disappears with the last process that holds it. A process that maps it shares the
pages of the writer; a page that it writes to becomes its own.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence

ALIGNMENT = 64  # bytes, for the widest vector instructions
_WRITE_BYTES = 2**30  # Linux writes at most 2 GiB at a time


class Segment:
    """One piece of shared memory, in the process that wrote it or received it.

    Args:
        fd: Its descriptor, which `close` closes.
        sizes: Sizes of the buffers in it, in bytes.

    Attributes:
        fd: Its descriptor; -1 once closed.
        sizes: Sizes of the buffers in it, in bytes.
    """

    def __init__(self, fd: int, sizes: Sequence[int]) -> None:
        self.fd = fd
        self.sizes = tuple(sizes)

    @classmethod
    def of(cls, buffers: Sequence[memoryview]) -> Segment:
        """Copy these buffers into a new segment.

        Args:
            buffers: Contiguous buffers of bytes.

        Raises:
            OSError: There is not enough memory.
        """
        fd = anonymous_file()
        try:
            for buffer, start in zip(buffers, _starts([b.nbytes for b in buffers]), strict=True):
                _write(fd, buffer, start)
        except OSError:
            os.close(fd)
            raise
        return cls(fd, [buffer.nbytes for buffer in buffers])

    def duplicate(self) -> Segment:
        """Return the same memory with a descriptor of its own."""
        return Segment(os.dup(self.fd), self.sizes)

    @property
    def nbytes(self) -> int:
        """Total size of its buffers, in bytes."""
        return sum(self.sizes)

    def views(self) -> list[memoryview]:
        """Map it, and return its buffers; what this process writes to them stays in it."""
        if not self.nbytes:
            return [memoryview(bytearray()) for _ in self.sizes]
        length = os.fstat(self.fd).st_size
        whole = memoryview(
            mmap.mmap(
                self.fd, length, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
            )
        )
        return [
            whole[start : start + size]
            for start, size in zip(_starts(self.sizes), self.sizes, strict=True)
        ]

    def holds(self, buffers: Sequence[memoryview]) -> bool:
        """Return whether it contains exactly these bytes."""
        if [buffer.nbytes for buffer in buffers] != list(self.sizes):
            return False
        pairs = zip(self.views(), buffers, strict=True)
        return all(_equal(ours, theirs) for ours, theirs in pairs)

    def close(self) -> None:
        """Close the descriptor; mappings stay."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _starts(sizes: Sequence[int]) -> Iterator[int]:
    start = 0
    for size in sizes:
        yield start
        start += -(-size // ALIGNMENT) * ALIGNMENT


def anonymous_file() -> int:
    """Make an empty segment; return its descriptor."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("ddp_magic")
    with tempfile.TemporaryFile() as file:  # macOS
        return os.dup(file.fileno())


def _write(fd: int, buffer: memoryview, start: int) -> None:
    done = 0
    while done < buffer.nbytes:
        # Writing is faster than copying into a mapping, whose pages the kernel clears first.
        done += os.pwrite(fd, buffer[done : done + _WRITE_BYTES], start + done)


_libc = ctypes.CDLL(None)
_libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def _equal(a: memoryview, b: memoryview) -> bool:
    """Compare bytes at memory bandwidth; Python compares memoryviews item by item."""
    if not a.nbytes:
        return True
    return int(_libc.memcmp(_address(a), _address(b), a.nbytes)) == 0


def _address(buffer: memoryview) -> int:
    import numpy as np

    return int(np.frombuffer(buffer, np.uint8).ctypes.data)


def size_words(nbytes: int) -> str:
    """Return a size as text: `1.2 GB`."""
    size = float(nbytes)
    for unit in ("bytes", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
