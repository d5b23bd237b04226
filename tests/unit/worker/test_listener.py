"""What a rank does with each command."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ddp_magic.wire.commands import (
    Answer,
    Captured,
    Exit,
    HoldTimeouts,
    Interrupt,
    NewGroup,
    RunCell,
    SharedMemory,
)
from ddp_magic.wire.states import Phase
from ddp_magic.worker import interrupts
from ddp_magic.worker.listener import CommandListener
from ddp_magic.worker.watch.activity import Activity
from tests.unit.worker.fakes import FakeChannel

pytestmark = pytest.mark.usefixtures("signal_handlers")


class FakeValues:
    """Takes what the listener hands on."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def add_segment(self, number: int, fd: int, sizes: tuple[int, ...]) -> None:
        self.calls.append((number, fd, sizes))

    def announce(self, command: Captured) -> None:
        self.calls.append(command)


class Rank:
    """A listener and what is around it."""

    def __init__(self, phase: Phase = Phase.RUNNING) -> None:
        self.channel, self.values = FakeChannel(), FakeValues()
        self.progress = Activity(phase, cells=1)
        self.aborted = 0
        self.taken: list[object] = []
        self.listener = CommandListener(
            cast("Any", self.channel),
            self.progress,
            cast("Any", self.values),
            abort_collectives=lambda: setattr(self, "aborted", self.aborted + 1),
            hold_timeouts=lambda: self.taken.append("hold"),
            take_answer=self.taken.append,
        )


def test_the_main_threads_commands_are_queued_in_their_order() -> None:
    rank = Rank()
    commands = [NewGroup(number=1), RunCell(path="/c.py"), Exit()]
    for command in commands:
        rank.listener.take(command)
    assert [rank.listener.next_command() for _ in commands] == commands


def test_shared_memory_gets_the_descriptor_that_came_with_it() -> None:
    """The first of those that have arrived."""
    rank = Rank()
    rank.channel.received_fds = [70, 71]
    rank.listener.take(SharedMemory(number=5, sizes=(1, 2)))
    rank.listener.take(SharedMemory(number=6, sizes=(3,)))
    assert rank.values.calls == [(5, 70, (1, 2)), (6, 71, (3,))]


def _take_interrupt(rank: Rank, **fields: bool) -> BaseException | None:
    """Let the main thread be interrupted by a command; return what it raised."""
    interrupts.install(lambda: None)
    return interrupts.user_code(lambda: rank.listener.take(Interrupt(**fields)))[1]


def test_an_interrupt_reaches_the_users_code() -> None:
    assert isinstance(_take_interrupt(Rank()), KeyboardInterrupt)


@pytest.mark.parametrize(
    ("phase", "cells_later", "aborted"),
    [(Phase.RUNNING, 0, 1), (Phase.EXITING, 0, 0), (Phase.RUNNING, 1, 0)],
)
def test_collectives_are_aborted_only_for_the_cell_that_was_interrupted(
    phase: Phase, cells_later: int, aborted: int
) -> None:
    """It may be over when the timer fires, and another one of its session running."""
    rank = Rank()
    interrupted = rank.progress.cells
    rank.progress.phase = phase
    rank.progress.cells += cells_later
    rank.listener._abort(interrupted)
    assert rank.aborted == aborted


def test_an_interrupt_between_two_cells_does_not_reach_the_next_one() -> None:
    rank = Rank(Phase.IDLE)
    interrupts.install(lambda: None)
    signal.raise_signal(signal.SIGINT)  # no user's code runs
    rank.listener.take(RunCell(path="/c.py"))
    result = interrupts.user_code(lambda: SimpleNamespace(ran=True), heed_missed=True)[0]
    assert result is not None


def test_answers_and_held_timeouts_do_not_wait_for_the_main_thread() -> None:
    rank = Rank()
    rank.listener.take(HoldTimeouts())
    rank.listener.take(Answer(number=1, text="yes"))
    assert rank.taken == ["hold", Answer(number=1, text="yes")]
