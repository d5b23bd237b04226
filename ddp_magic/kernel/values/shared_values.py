"""Values of the notebook's in shared memory, for the ranks of one cell or of many.

A name with large arrays gets shared memory of its own, which is kept as long as the notebook
defines the name: if its bytes have not changed, the next cell sends only its number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from ddp_magic.errors import CaptureError
from ddp_magic.kernel.values.value_stream import ValueStream, nbytes
from ddp_magic.wire.commands import Captured
from ddp_magic.wire.memory import Segment, size_words

OWN_SEGMENT_BYTES = 2**20  # from here on a name gets shared memory of its own


def available_bytes() -> int:
    """Return the free memory of this machine, or of this process's container, bytes."""
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        cache = int((group / "memory.stat").read_text().partition("inactive_file ")[2].split()[0])
    except (OSError, ValueError, IndexError):
        return free
    return free if limit == "max" else min(free, int(limit) - used + cache)


class SharedValues:
    """Copies streams of values into shared memory.

    Args:
        free_bytes: Returns the free memory, bytes.
    """

    def __init__(self, free_bytes: Callable[[], int] = available_bytes) -> None:
        self._free_bytes = free_bytes
        self._numbers = itertools.count()
        self._kept: dict[str, tuple[int, Segment]] = {}

    def pack(
        self, stream: ValueStream, sources: Mapping[str, list[Any]]
    ) -> tuple[Captured, dict[int, Segment]]:
        """Copy a stream and its buffers into shared memory.

        Args:
            stream: What to copy.
            sources: Text and cell number of the code of functions, by the file's name.

        Returns:
            The command for the ranks, and the shared memory that it names, by number. It is the
            caller's, also after another thread has had it given back here.

        Raises:
            CaptureError: There is not enough memory.
        """
        small: list[memoryview] = [memoryview(stream.file.getbuffer())]
        parts: list[list[int]] = []
        segments: dict[int, Segment] = {}
        common = next(self._numbers)
        fresh = {
            name: buffers
            for name, buffers in stream.buffers.items()
            if nbytes(buffers) >= OWN_SEGMENT_BYTES and not self._holds(name, buffers)
        }
        self._check_memory(stream, fresh)
        for name, buffers in stream.buffers.items():
            if nbytes(buffers) < OWN_SEGMENT_BYTES:
                parts.append([common, len(small), len(buffers)])
                small += buffers
                continue
            if name in fresh:
                self._keep(name, buffers)
            number, segment = self._kept[name]
            segments[number] = segment.duplicate()
            parts.append([number, 0, len(buffers)])
        segments[common] = _segment(small)
        command = Captured(
            names=tuple(stream.types),
            stream=common,
            parts=tuple(parts),
            sources=dict(sources),
            keep=tuple(number for number, _ in self._kept.values()),
        )
        return command, segments

    def number(self, name: str, buffers: Sequence[memoryview]) -> int | None:
        """Return the number of a name's own shared memory, if it holds these very bytes."""
        if nbytes(buffers) >= OWN_SEGMENT_BYTES and self._holds(name, buffers):
            return self._kept[name][0]
        return None

    def kept_names(self) -> set[str]:
        """Return the names that have shared memory of their own."""
        return set(self._kept)

    def free(self, names: Collection[str]) -> None:
        """Give back the shared memory of these names."""
        for name in names:
            self._kept.pop(name)[1].close()

    def _holds(self, name: str, buffers: Sequence[memoryview]) -> bool:
        return name in self._kept and self._kept[name][1].holds(buffers)

    def _keep(self, name: str, buffers: Sequence[memoryview]) -> None:
        if name in self._kept:
            self.free([name])
        self._kept[name] = (next(self._numbers), _segment(buffers))

    def _check_memory(self, stream: ValueStream, fresh: Mapping[str, Sequence[memoryview]]) -> None:
        """Reject what does not fit, before the kernel's out-of-memory killer ends processes.

        Raises:
            CaptureError: It does not fit.
        """
        needed = sum(map(nbytes, fresh.values()))
        if needed < OWN_SEGMENT_BYTES or needed < self._free_bytes():
            return
        self.free(self.kept_names() - stream.buffers.keys())
        if needed < (free := self._free_bytes()):
            return
        name = max(fresh, key=lambda name: nbytes(fresh[name]))
        raise CaptureError(
            f"cannot send `{name}` ({stream.types[name]}, {size_words(nbytes(fresh[name]))}) to "
            f"the ranks: it must be copied once, and only {size_words(free)} of memory is free; "
            "load it in the cell, or use numpy.memmap, of which only the file name is sent"
        )


def _segment(buffers: Sequence[memoryview]) -> Segment:
    try:
        return Segment.of(buffers)
    except OSError as error:
        size = size_words(nbytes(buffers))
        raise CaptureError(f"cannot allocate {size} of shared memory: {error}") from error
