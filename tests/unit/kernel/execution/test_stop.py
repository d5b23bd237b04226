"""From the press of Stop to the end of the ranks, by a clock of the test's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ddp_magic.display.diagnosis.verdict import StopReason
from ddp_magic.display.rank import Rank
from ddp_magic.kernel.execution.stop import (
    ANSWER_S,
    FINISH_S,
    STACK_S,
    Stop,
    Stopper,
    reason_to_stop,
)
from ddp_magic.wire.kernel_events import Doing, Killed, Note, RunEvent, StackDumped
from ddp_magic.wire.worker_events import DebuggerQuit, Interrupted
from tests.unit.fakes import EARLY, LATE, FakeGroup, error, exited, hello, idle, ready

GOES_ON: dict[str, Any] = {"presses": 0, "elapsed_s": 5.0, "time_limit_s": None, "kept": False}


@pytest.mark.parametrize(
    ("how", "failed", "reason"),
    [
        ({}, EARLY, None),  # torch's agent ends the other ranks
        ({"presses": 1}, EARLY, StopReason.INTERRUPT),
        ({"time_limit_s": 4.0}, EARLY, StopReason.TIME_LIMIT),
        ({"time_limit_s": 6.0}, EARLY, None),
        ({"presses": 1, "time_limit_s": 4.0, "kept": True}, EARLY, StopReason.INTERRUPT),
        ({"kept": True}, EARLY, StopReason.PEER_FAILED),
        ({"kept": True}, LATE, None),  # its peers may have only to finish
        ({"kept": True}, None, None),
        ({"mismatch": True, "time_limit_s": 4.0}, EARLY, StopReason.MISMATCH),
        ({"mismatch": True, "presses": 1}, None, StopReason.INTERRUPT),
    ],
)
def test_why_a_run_ends(
    how: dict[str, Any], failed: float | None, reason: StopReason | None
) -> None:
    """A press of Stop, a time limit; in a session a rank that has failed a while ago."""
    ranks = [Rank(rank=0), Rank(rank=1)]
    if failed is not None:
        ranks[1].take(error(1, time=failed))
    assert reason_to_stop(ranks, **{**GOES_ON, **how}) is reason


def test_a_debugger_that_is_quit_ends_the_run() -> None:
    """Like Stop, and before a mismatch that the debugging has brought."""
    ranks = [Rank(rank=0), Rank(rank=1)]
    ranks[1].take(DebuggerQuit(rank=1, time=EARLY))
    assert reason_to_stop(ranks, **GOES_ON) is StopReason.DEBUGGER
    assert reason_to_stop(ranks, **{**GOES_ON, "mismatch": True}) is StopReason.DEBUGGER
    assert reason_to_stop(ranks, **{**GOES_ON, "presses": 1}) is StopReason.INTERRUPT


class Scene:
    """A run of two ranks that is stopped at second 0."""

    def __init__(self, directory: Path, *, up: bool = True, keep: bool = False, **how: Any) -> None:
        self.group = FakeGroup(directory)
        self.ranks = [Rank(rank=0), Rank(rank=1)]
        self.stacks: dict[int, StackDumped] = {}
        for rank in self.ranks if up else ():
            rank.take(hello(rank.rank))
            rank.take(ready(rank.rank))
        self.stop = Stop(
            self.group,
            self.ranks,
            stack_of=self.stacks.get,
            keep=keep,
            now=0.0,
            **{"reason": StopReason.INTERRUPT, **how},
        )

    def answer(self, rank: int) -> None:
        self.ranks[rank].take(Interrupted(rank=rank, time=0.1))

    def step(self, now: float, presses: int = 1) -> list[RunEvent]:
        """Return what happens at that second, without the headline; the ranks know of it."""
        events = self.stop.step(presses, now)
        for event in events:
            if isinstance(event, (Killed, StackDumped)):
                self.ranks[event.rank].take(event)
        return [event for event in events if not isinstance(event, Doing)]


def test_ranks_are_asked_first(tmp_path: Path) -> None:
    """Each of them, at once; and nobody is killed before its time."""
    scene = Scene(tmp_path)
    assert scene.step(ANSWER_S) == []
    assert scene.group.commands == [("interrupt", (0, 1), False)]


def test_the_headline_says_that_it_stops(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    assert scene.stop.step(1, 0.1) == [Doing(text="stopping")]


def test_ranks_that_end_are_not_killed(tmp_path: Path) -> None:
    """However late it is."""
    scene = Scene(tmp_path)
    for rank in scene.ranks:
        rank.take(exited(rank.rank, 1))
    assert scene.step(100.0) == []
    assert scene.group.names == ["interrupt"]


def test_a_silent_rank_shows_its_stack_and_is_killed(tmp_path: Path) -> None:
    """After 2 s; its peer that has answered is not."""
    scene = Scene(tmp_path)
    scene.answer(0)
    scene.stacks[1] = StackDumped(rank=1, frames=("Cell In[1], line 7",), line=7)
    assert scene.step(ANSWER_S + 0.1) == []
    assert scene.group.commands[1:] == [("dump_stack", 1)]
    assert scene.step(ANSWER_S + 0.1 + STACK_S / 2) == []
    assert scene.step(ANSWER_S + 0.2 + STACK_S) == [
        Killed(rank=1),
        scene.stacks[1],
        Note(text="rank 1 was in, innermost first:"),
        Note(text="    Cell In[1], line 7"),
    ]
    assert scene.group.commands[2:] == [("kill", (1,))]


def test_ranks_that_are_stuck_at_one_place_show_it_once(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    for rank in (0, 1):
        scene.stacks[rank] = StackDumped(rank=rank, frames=("Cell In[1], line 7",), line=7)
    scene.step(ANSWER_S + 0.1)
    events = scene.step(ANSWER_S + 0.2 + STACK_S)
    assert [event.text for event in events if isinstance(event, Note)] == [
        "ranks 0-1 were in, innermost first:",
        "    Cell In[1], line 7",
    ]


def test_a_killed_rank_without_a_stack_says_nothing(tmp_path: Path) -> None:
    """It held no frame of the cell, or wrote no stack."""
    scene = Scene(tmp_path)
    scene.stacks[0] = StackDumped(rank=0, frames=(), line=None)
    scene.step(ANSWER_S + 0.1)
    events = scene.step(ANSWER_S + 0.2 + STACK_S)
    assert events == [Killed(rank=0), scene.stacks[0], Killed(rank=1)]


def test_ranks_that_answered_have_30_s(tmp_path: Path) -> None:
    """That is said, once."""
    scene = Scene(tmp_path)
    scene.answer(0)
    scene.answer(1)
    (note,) = scene.step(ANSWER_S + 0.1)
    assert note == Note(
        text="stopping: ranks 0-1 answered and may take 30 s to finish; "
        "press Stop again to kill now"
    )
    assert scene.step(FINISH_S - 1) == []
    assert scene.group.names == ["interrupt"]
    scene.step(FINISH_S + 0.1)
    assert scene.step(FINISH_S + 0.2 + STACK_S) == [Killed(rank=0), Killed(rank=1)]


def test_only_those_that_still_finish_are_named(tmp_path: Path) -> None:
    """The others have ended meanwhile."""
    scene = Scene(tmp_path)
    scene.answer(1)
    scene.ranks[0].take(exited(0, 1))
    (note,) = scene.step(ANSWER_S + 0.1)
    assert isinstance(note, Note)
    assert "rank 1 answered" in note.text


def test_a_second_press_kills_now(tmp_path: Path) -> None:
    """Those that answered, too."""
    scene = Scene(tmp_path)
    scene.answer(0)
    scene.step(0.2, presses=2)
    events = scene.step(0.3 + STACK_S, presses=2)
    assert events == [Killed(rank=0), Killed(rank=1)]
    assert ("kill", (0, 1)) in scene.group.commands


def test_a_time_limit_gives_no_time_to_finish(tmp_path: Path) -> None:
    """A rank that answered has as long as one that does not."""
    scene = Scene(tmp_path, reason=StopReason.TIME_LIMIT)
    scene.answer(0)
    assert scene.step(ANSWER_S) == []
    scene.step(ANSWER_S + 0.1)
    assert scene.step(ANSWER_S + 0.2 + STACK_S) == [Killed(rank=0), Killed(rank=1)]


def test_ranks_that_have_not_started_are_not_asked(tmp_path: Path) -> None:
    """The whole start is ended at once."""
    scene = Scene(tmp_path, up=False)
    assert scene.group.commands == [("kill", ())]


def test_a_rank_that_does_not_die(tmp_path: Path) -> None:
    """In the kernel's uninterruptible sleep, say: the group is ended without it, once."""
    scene = Scene(tmp_path)
    scene.step(ANSWER_S + 0.1)
    scene.step(ANSWER_S + 0.2 + STACK_S)
    for now in (5.0, 6.0):
        assert scene.step(now) == []
    assert scene.group.commands[-2:] == [("kill", (0, 1)), ("kill", ())]


def test_ranks_of_a_session_outlive_it(tmp_path: Path) -> None:
    """Only those in the cell are asked; one that is idle again has stopped."""
    scene = Scene(tmp_path, keep=True)
    assert scene.group.commands == [("interrupt", (0, 1), True)]
    for rank in scene.ranks:
        rank.take(idle(rank.rank))
    assert scene.step(100.0) == []
    assert scene.group.names == ["interrupt"]


def test_a_rank_of_a_session_that_has_finished_is_not_asked(tmp_path: Path) -> None:
    """It would take the interrupt in its next cell."""
    group = FakeGroup(tmp_path, kept=True)
    ranks = [Rank(rank=0), Rank(rank=1)]
    for rank in ranks:
        rank.take(hello(rank.rank))
    ranks[0].take(idle(0))
    how: dict[str, Any] = {"stack_of": lambda _: None, "reason": StopReason.PEER_FAILED}
    Stop(group, ranks, **how, keep=True, now=0.0)
    assert group.commands == [("interrupt", (1,), True)]


# --- when the ranks of a run are ended ------------------------------------------------------------


class StopperScene:
    """A run of two ranks that goes on; `look` looks for a reason to end it."""

    def __init__(self, directory: Path, **how: Any) -> None:
        self.group = FakeGroup(directory)
        self.ranks = [Rank(rank=0), Rank(rank=1)]
        for rank in self.ranks:
            rank.take(hello(rank.rank))
        given = {"time_limit_s": None, "kept": False, "again": "press Stop again", **how}
        self.stopper = Stopper(self.group, self.ranks, stack_of=lambda _: None, **given)

    def look(self, **how: Any) -> StopReason | None:
        return self.stopper.look(**{"elapsed_s": 5.0, "mismatch": False, "starting": False, **how})


def test_ranks_that_may_go_on_are_left_alone(tmp_path: Path) -> None:
    scene = StopperScene(tmp_path, time_limit_s=6.0)
    assert scene.look() is None
    assert scene.stopper.step() == []
    assert (scene.stopper.reason, scene.stopper.began) == (None, 0.0)
    assert scene.group.commands == []


def test_a_press_ends_them_and_is_the_reason(tmp_path: Path) -> None:
    scene = StopperScene(tmp_path)
    scene.stopper.press()
    assert scene.look() is StopReason.INTERRUPT
    assert scene.stopper.reason is StopReason.INTERRUPT
    assert scene.stopper.began > EARLY
    assert scene.group.commands == [("interrupt", (0, 1), False)]
    assert scene.stopper.step() == [Doing(text="stopping")]


def test_the_end_of_the_kernel_kills_them(tmp_path: Path) -> None:
    """As two presses do, and it is told apart from them."""
    scene = StopperScene(tmp_path)
    scene.stopper.end_with_kernel()
    assert scene.look() is StopReason.KERNEL_ENDED
    scene.stopper.step()
    assert ("dump_stack", 0) in scene.group.commands


@pytest.mark.parametrize(
    ("how", "more", "keep"),
    [
        ({"kept": True}, {}, True),
        ({"kept": True}, {"starting": True}, False),  # there is no session yet
        ({}, {"mismatch": True}, True),  # their collective is aborted, so that they answer
        ({}, {}, False),
    ],
)
def test_ranks_that_must_leave_their_collective(
    tmp_path: Path, how: dict[str, Any], more: dict[str, Any], *, keep: bool
) -> None:
    scene = StopperScene(tmp_path, time_limit_s=1.0, **how)
    scene.look(**more)
    assert scene.group.commands == [("interrupt", (0, 1), keep)]
