"""Which ends are read, and in which order; the ends are pipes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from ddp_magic.kernel.worker_group.open_ends import End, OpenEnds
from ddp_magic.wire.channel import Channel, Listener
from ddp_magic.wire.kernel_events import Note, RunEvent


@pytest.fixture
def pipes() -> Iterator[list[int]]:
    """The read ends of three pipes that are readable."""
    made = [os.pipe() for _ in range(3)]
    for _, write in made:
        os.write(write, b"x")
    yield [read for read, _ in made]
    for fd in (fd for pair in made for fd in pair):
        os.close(fd)


def _backwards(end: End) -> int:
    assert not isinstance(end, Channel | Listener)
    return -end


def _read(end: int) -> list[RunEvent]:
    return [Note(text=str(os.read(end, 1) and end))]


def _ends(pipes: list[int], read: Callable[[int], list[RunEvent]] = _read) -> OpenEnds:
    ends = OpenEnds(_backwards)
    for pipe in pipes:
        ends.add(pipe, read)
    return ends


def _texts(events: list[RunEvent]) -> list[int]:
    return [int(event.text) for event in events if isinstance(event, Note)]


def test_ends_are_read_in_their_order(pipes: list[int]) -> None:
    ends = _ends(pipes)
    assert ends.pending()
    assert _texts(ends.read(0)) == sorted(pipes, reverse=True)
    assert not ends.pending()
    assert ends.read(0) == []


def test_only_some_are_read(pipes: list[int]) -> None:
    """The others keep what they have."""
    ends = _ends(pipes)
    assert _texts(ends.read(0, only={pipes[1]})) == [pipes[1]]
    assert set(_texts(ends.read(0))) == {pipes[0], pipes[2]}


def test_an_end_that_another_removed_is_not_read(pipes: list[int]) -> None:
    """It was readable too, and has been closed meanwhile."""

    def read(end: int) -> list[RunEvent]:
        for other in {*ends} - {end}:
            ends.remove(other)
        return _read(end)

    ends = _ends(pipes, read)
    assert _texts(ends.read(0)) == [max(pipes)]
    assert [*ends] == [max(pipes)]


def test_a_descriptor_that_is_watched_ends_the_wait(pipes: list[int]) -> None:
    """Nothing is read from it; another may take its place."""
    ends = OpenEnds(_backwards)
    for pipe in (*pipes, -1):
        ends.watch(pipe)
        assert [*ends] == [pipe] * (pipe >= 0)
        assert ends.read(0) == []
        assert ends.pending() is (pipe >= 0)
