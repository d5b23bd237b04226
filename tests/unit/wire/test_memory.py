"""Shared memory without a name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ddp_magic.wire.memory import ALIGNMENT, Segment


def _bytes(*texts: bytes) -> list[memoryview]:
    return [memoryview(text) for text in texts]


def test_what_was_written_is_there() -> None:
    """Buffers of any size, empty ones too, each aligned."""
    buffers = _bytes(b"abc", b"", b"x" * 200, b"end")
    segment = Segment.of(buffers)
    assert [bytes(view) for view in segment.views()] == [bytes(b) for b in buffers]
    starts = [np.frombuffer(v, np.uint8).ctypes.data % ALIGNMENT for v in segment.views() if v]
    assert starts == [0, 0, 0]
    assert segment.nbytes == 206


def test_a_view_is_written_for_itself_only() -> None:
    segment = Segment.of(_bytes(b"abc"))
    mine, other = segment.views()[0], segment.views()[0]
    mine[0] = ord("X")
    assert (bytes(mine), bytes(other)) == (b"Xbc", b"abc")


def test_a_change_is_noticed() -> None:
    """In content, in sizes, in number."""
    segment = Segment.of(_bytes(b"abc", b"de"))
    assert segment.holds(_bytes(b"abc", b"de"))
    assert not segment.holds(_bytes(b"abc", b"dX"))
    assert not segment.holds(_bytes(b"ab", b"cde"))
    assert not segment.holds(_bytes(b"abc"))


def test_nothing_stays_open() -> None:
    """Mappings live on without the descriptor."""

    def open_ones() -> set[str]:
        links = [link for link in Path("/proc/self/fd").iterdir() if link.exists()]
        return {f"{link.readlink()} {link.stat().st_ino}" for link in links if link.is_symlink()}

    before = open_ones()
    segment = Segment.of(_bytes(b"abc"))
    assert segment.holds(_bytes(b"abc"))
    segment.close()
    segment.close()
    # What tests before this one have left to the collector may go meanwhile.
    assert [name for name in open_ones() - before if "memfd" in name] == []


def test_empty() -> None:
    segment = Segment.of(_bytes(b"", b""))
    assert [len(view) for view in segment.views()] == [0, 0]
    assert segment.holds(_bytes(b"", b""))


@pytest.mark.parametrize("size", [10**6, 3 * 2**20 + 7])
def test_many_sizes(size: int) -> None:
    data = np.random.default_rng(0).integers(0, 255, size, np.uint8)
    assert bytes(Segment.of([memoryview(data)]).views()[0]) == data.tobytes()
