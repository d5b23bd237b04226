"""Commands to ranks, those that are up and those that come later."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ddp_magic.kernel.worker_group.outbox import Outbox
from ddp_magic.wire.commands import Command, Exit, NewGroup, SharedMemory
from ddp_magic.wire.memory import Segment


class Ranks(dict[int, Any]):
    """Members whose channels record what is sent, and the descriptor's bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[int, list[Command]] = {}
        self.bytes: list[bytes] = []

    def connect(self, rank: int) -> None:
        self.sent[rank] = []
        self[rank] = SimpleNamespace(channel=SimpleNamespace(send=self._sender(rank)))

    def _sender(self, rank: int) -> Any:
        def send(command: Command, fd: int | None = None) -> None:
            self.sent[rank].append(command)
            if fd is not None:
                self.bytes.append(os.pread(fd, 100, 0))

        return send


def test_ranks_that_are_up_get_a_command_at_once() -> None:
    ranks = Ranks()
    outbox = Outbox(ranks, 2)
    for rank in range(2):
        ranks.connect(rank)
        outbox.welcome(rank)
    outbox.send(Exit())
    assert ranks.sent == {0: [Exit()], 1: [Exit()]}


def test_ranks_that_connect_at_once_all_get_what_was_sent() -> None:
    """The first that is welcomed takes nothing from the others."""
    ranks = Ranks()
    outbox = Outbox(ranks, 2)
    outbox.send(NewGroup(number=1))
    ranks.connect(0)
    ranks.connect(1)
    outbox.welcome(0)
    outbox.send(Exit())
    outbox.welcome(1)
    assert ranks.sent == {rank: [NewGroup(number=1), Exit()] for rank in range(2)}


def test_a_later_rank_gets_what_was_sent_before_it_connected() -> None:
    """In its order, once; each with its descriptor, which the sender has closed meanwhile."""
    ranks = Ranks()
    outbox = Outbox(ranks, 2)
    segment = Segment.of([memoryview(b"abc")])
    outbox.share(5, segment)
    segment.close()
    outbox.send(NewGroup(number=1))
    for rank in range(2):
        ranks.connect(rank)
        outbox.welcome(rank)
    memory = SharedMemory(number=5, sizes=(3,))
    assert ranks.sent == {rank: [memory, NewGroup(number=1)] for rank in range(2)}
    assert ranks.bytes == [b"abc", b"abc"]


def test_ranks_may_turn_out_to_be_fewer() -> None:
    """Then nothing is kept for others."""
    ranks = Ranks()
    outbox = Outbox(ranks, 4)
    outbox.send(NewGroup(number=1))
    outbox.resize(1)
    ranks.connect(0)
    outbox.welcome(0)
    outbox.send(Exit())
    assert ranks.sent == {0: [NewGroup(number=1), Exit()]}
    assert outbox._kept == []


def test_the_same_memory_is_sent_once() -> None:
    """A session's later cells name it by its number."""
    ranks = Ranks()
    ranks.connect(0)
    outbox = Outbox(ranks, 1)
    outbox.welcome(0)
    segment = Segment.of([memoryview(b"abc")])
    outbox.share(5, segment)
    outbox.share(5, segment)
    assert len(ranks.sent[0]) == 1
    segment.close()


def test_restarted_ranks_get_only_what_is_sent_again() -> None:
    """The same memory too: their predecessors had it, not they."""
    ranks = Ranks()
    ranks.connect(0)
    outbox = Outbox(ranks, 1)
    outbox.welcome(0)
    segment = Segment.of([memoryview(b"abc")])
    outbox.share(5, segment)
    outbox.send(Exit())
    outbox.restart()
    ranks.clear()
    outbox.share(5, segment)
    segment.close()
    ranks.connect(0)
    outbox.welcome(0)
    assert ranks.sent == {0: [SharedMemory(number=5, sizes=(3,))]}


def test_a_rank_that_has_ended_meanwhile_is_not_welcomed() -> None:
    outbox = Outbox(Ranks(), 1)
    outbox.send(Exit())
    outbox.welcome(0)


@pytest.mark.parametrize("how", ["all connect", "it is closed"])
def test_descriptors_are_kept_only_for_ranks_to_come(how: str) -> None:
    before = _open_segments()
    ranks = Ranks()
    outbox = Outbox(ranks, 1)
    segment = Segment.of([memoryview(b"abc")])
    outbox.share(5, segment)
    segment.close()
    if how == "all connect":
        ranks.connect(0)
        outbox.welcome(0)
    else:
        outbox.close()
    assert _open_segments() == before


def _open_segments() -> int:
    """Return how many descriptors of shared memory this process has; threads open other files."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += str(descriptor.readlink()).startswith("/memfd:")
    return count
