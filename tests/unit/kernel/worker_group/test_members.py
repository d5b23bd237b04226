"""The ranks of a group, what they write, and their logs, without a group."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddp_magic.kernel.worker_group.members import Members
from ddp_magic.kernel.worker_group.open_ends import OpenEnds
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.channel import Channel
from ddp_magic.wire.kernel_events import Note, Stream
from ddp_magic.wire.worker_events import WorkerHello
from tests.unit.fakes import hello


class Scene:
    """Members, and the ranks' ends of their connections and pipes."""

    def __init__(self, directory: Path) -> None:
        self.directory = RunDirectory(directory)
        self.ends = OpenEnds(lambda _end: 0)
        self.members = Members(self.directory, self.ends)
        self.channels: list[Channel] = []
        self.pipes: list[int] = []

    def connect(self, rank: int) -> Channel:
        """Let a rank connect; return the group's end."""
        ours, theirs = map(Channel, socket.socketpair())
        read_end, write_end = os.pipe()
        theirs.send(hello(rank), read_end)
        os.close(read_end)
        (said,) = ours.receive() or []
        assert isinstance(said, WorkerHello)
        self.members.welcome(said, ours)
        self.channels.append(theirs)
        self.pipes.append(write_end)
        return ours

    def close(self) -> None:
        self.members.close()
        self.ends.close()
        for channel in self.channels:
            channel.close()
        for pipe in self.pipes:
            os.close(pipe)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


def test_a_rank_is_known_by_its_connection(scene: Scene) -> None:
    channels = [scene.connect(rank) for rank in (1, 0)]
    assert [scene.members.rank_of(channel) for channel in channels] == [1, 0]
    assert scene.members.rank_of(scene.channels[0]) is None
    assert scene.members.connected() == [1, 0]


def test_when_a_connection_was_lost_is_known(scene: Scene) -> None:
    channel = scene.connect(0)
    scene.members.lose(scene.channels[0])  # nobody's
    assert scene.members.by_rank[0].unconnected_since is None
    channel.close()
    scene.members.lose(channel)
    assert scene.members.by_rank[0].unconnected_since is not None
    assert scene.members.connected() == []


def test_what_a_rank_writes_is_read_and_logged(scene: Scene) -> None:
    """To the end of its pipe."""
    scene.connect(0)
    os.write(scene.pipes[0], b"text\n")
    assert scene.ends.read(0) == [Stream(rank=0, text="text\n", log_bytes=5)]
    assert scene.directory.rank_log(0).read_text() == "text\n"
    os.close(scene.pipes.pop())
    assert scene.ends.read(0) == []
    assert [*scene.ends] == []
    assert list(scene.members.take_ends()) == []


def test_a_log_that_is_incomplete_is_told_once(scene: Scene) -> None:
    for rank in range(2):
        scene.directory.rank_log(rank).symlink_to("/dev/full")
        scene.connect(rank)
        os.write(scene.pipes[rank], b"text\n")
    events = scene.ends.read(0)
    assert [event.text for event in events if isinstance(event, Stream)] == ["text\n"] * 2
    (note,) = [event.text for event in events if isinstance(event, Note)]
    assert note.endswith("are incomplete: No space left on device")


def test_another_attempt_begins_without_ranks(scene: Scene) -> None:
    """Their logs have a mark, also those of ranks that had not connected."""
    channel = scene.connect(0)
    assert scene.members.open_ends() == {scene.members.by_rank[0].pipe}
    seen = scene.members.by_rank
    scene.members.begin_attempt(2, "--- restart 1 of 2 ---")
    assert seen == {}
    assert channel.closed
    assert [*scene.ends] == []
    for rank in range(2):
        assert scene.directory.rank_log(rank).read_text() == "\n--- restart 1 of 2 ---\n"
