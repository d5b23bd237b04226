"""Anonymous shared memory: written once by one process, mapped by others copy-on-write.

A segment is a file without a name (memfd), so that nothing is left in /dev/shm, which is 64 MB in a
container, and nothing needs to be removed: it is gone with the last process that holds it. Whoever
maps it sees the writer's bytes and shares their pages, until it writes: then it has its own.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence

ALIGNMENT = 64  # bytes; what the widest vector instructions like
_WRITE_BYTES = 2**30  # Linux writes at most 2 GiB at a time


class Segment:
    """One piece of shared memory, in the process that wrote it or has received it.

    Attributes:
        fd: Its descriptor.
        sizes: Of the buffers in it, bytes.
    """

    def __init__(self, fd: int, sizes: Sequence[int]) -> None:
        """Take over a descriptor."""
        self.fd = fd
        self.sizes = tuple(sizes)

    @classmethod
    def of(cls, buffers: Sequence[memoryview]) -> Segment:
        """Copy these buffers into a new segment.

        Args:
            buffers: Contiguous, of bytes.

        Raises:
            OSError: There is not enough memory.
        """
        fd = _anonymous_file()
        try:
            for buffer, start in zip(buffers, _starts([b.nbytes for b in buffers]), strict=True):
                _write(fd, buffer, start)
        except OSError:
            os.close(fd)
            raise
        return cls(fd, [buffer.nbytes for buffer in buffers])

    @property
    def nbytes(self) -> int:
        """Size of its buffers together, bytes."""
        return sum(self.sizes)

    def views(self) -> list[memoryview]:
        """Map it: what is written there stays in this process."""
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
        """Tell whether these very bytes are in it."""
        if [buffer.nbytes for buffer in buffers] != list(self.sizes):
            return False
        pairs = zip(self.views(), buffers, strict=True)
        return all(_equal(ours, theirs) for ours, theirs in pairs)

    def close(self) -> None:
        """Let go of it; mappings stay."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _starts(sizes: Sequence[int]) -> Iterator[int]:
    start = 0
    for size in sizes:
        yield start
        start += -(-size // ALIGNMENT) * ALIGNMENT


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("ddp_magic")
    with tempfile.TemporaryFile() as file:  # macOS
        return os.dup(file.fileno())


def _write(fd: int, buffer: memoryview, start: int) -> None:
    done = 0
    while done < buffer.nbytes:
        # Written, and not copied into a mapping: the kernel then need not clear the pages first.
        done += os.pwrite(fd, buffer[done : done + _WRITE_BYTES], start + done)


_libc = ctypes.CDLL(None)
_libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def _equal(a: memoryview, b: memoryview) -> bool:
    """Compare bytes as fast as memory can be read; Python would compare one by one."""
    if not a.nbytes:
        return True
    return int(_libc.memcmp(_address(a), _address(b), a.nbytes)) == 0


def _address(buffer: memoryview) -> int:
    import numpy as np

    return int(np.frombuffer(buffer, np.uint8).ctypes.data)


def size_words(nbytes: int) -> str:
    """Say a size: `1.2 GB`."""
    size = float(nbytes)
    for unit in ("bytes", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
