"""What a kernel knows of a rank, event by event."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ddp_magic.display.rank import Rank
from ddp_magic.wire.events import WorkerExited
from ddp_magic.wire.kernel_events import (
    ConnectionLost,
    QuestionClosed,
    Rejoined,
    RunEvent,
    StackDumped,
)
from ddp_magic.wire.states import Phase
from ddp_magic.wire.worker_events import (
    LOST_CONNECTION,
    Error,
    Finished,
    Heartbeat,
    WorkerHello,
    WorkerReady,
)
from tests.unit.fakes import (
    EARLY,
    error,
    exited,
    finished,
    heartbeat,
    hello,
    idle,
    question,
    ready,
    text,
)


def _beat(phase: Phase, line: int | None) -> Heartbeat:
    return Heartbeat(rank=0, time=1.0, phase=phase, line=line, rss_mib=1.0)


def test_the_way_of_a_rank() -> None:
    """Waiting, starting, running at a line, exiting, ended."""
    rank = Rank(rank=0)
    assert rank.phase == Phase.WAITING
    rank.take(WorkerHello(rank=0, pid=5, marker=""))
    assert (rank.pid, rank.phase) == (5, Phase.STARTING)
    rank.take(WorkerReady(rank=0, time=0.0, device="cpu"))
    rank.take(_beat(Phase.RUNNING, 7))
    assert (rank.phase, rank.line, rank.device) == (Phase.RUNNING, 7, "cpu")
    rank.take(Finished(rank=0, time=2.0))
    rank.take(WorkerExited(rank=0, time=3.0, code=0))
    rank.take(_beat(Phase.EXITING, None))
    assert (rank.phase, rank.line, rank.failure, rank.left_early) == (Phase.ENDED, 7, None, False)


def test_a_late_heartbeat_does_not_hide_where_a_rank_failed() -> None:
    """The exiting rank still beats; its line stays that of the error."""
    rank = Rank(rank=0)
    rank.take(Error(rank=0, time=1.0, ename="E", evalue="", traceback=(), line=4))
    rank.take(_beat(Phase.EXITING, None))
    assert rank.line == 4
    assert rank.failure is not None


def test_the_last_words_of_an_aborted_rank_are_those_of_this_run(tmp_path: Path) -> None:
    """A session's log has the cells before; a long one is not read whole."""
    log = tmp_path / "rank0.log"
    log.write_text("earlier\n" + "x" * 10_000 + "its end")
    rank = Rank(rank=0, log=log, log_span=(8, None), code=-6)
    assert rank.failure is not None
    assert rank.failure.last_words == "x" * 3993 + "its end"
    rank.log_span = (10_008, 10_011)
    assert rank.failure.last_words == "its"
    rank.code = -9
    assert rank.failure.last_words == ""


def test_a_rank_that_computes_may_have_no_processor_for_a_moment() -> None:
    """One that has stopped computing is told as that a few seconds later."""
    rank, time, used_s = Rank(rank=0), 100.0, 0.0
    seen = []
    for share in [1.0] * 12 + [0.05, 0.05] + [1.0] * 4 + [0.0] * 16:
        time, used_s = time + 0.25, used_s + share * 0.25
        rank.take(replace(_beat(Phase.RUNNING, 3), time=time, cpu_s=used_s))
        seen.append(rank.cpu)
    assert min(seen[4:18]) > 0.4
    assert seen[-1] < 0.1


def test_leaving_early() -> None:
    """An end with code 0 before the cell's is no failure, but told."""
    rank = Rank(rank=0)
    rank.take(WorkerReady(rank=0, time=0.0, device="cpu"))
    rank.take(WorkerExited(rank=0, time=1.0, code=0))
    assert rank.left_early
    assert rank.failure is None


def test_a_late_heartbeat_of_the_cell_before() -> None:
    """A session's rank that was idle when it was sent is not idle in its next cell."""
    rank = Rank(rank=0)
    rank.take(WorkerReady(rank=0, time=0.0, device="cpu"))
    rank.take(_beat(Phase.IDLE, None))
    rank.take(_beat(Phase.RUNNING, 7))
    assert (rank.phase, rank.line) == (Phase.RUNNING, 7)


# --- its process, its text --------------------------------------------------------------------


def _rank(*events: RunEvent, **fields: Any) -> Rank:
    rank = Rank(rank=0, **fields)
    for event in events:
        rank.take(event)
    return rank


@pytest.mark.parametrize(
    ("events", "busy", "code"),
    [
        ([hello(0)], True, None),
        ([hello(0), ready(0)], True, None),
        ([ready(0), finished(0), idle(0)], False, 0),
        ([ready(0), error(0), idle(0)], False, 1),
        ([ready(0), finished(0, 3), idle(0)], False, 3),
        ([ready(0), finished(0), exited(0, 0)], False, 0),
        ([ready(0), exited(0, -9)], False, -9),
    ],
)
def test_exit_codes(events: list[RunEvent], busy: bool, code: int | None) -> None:
    """Of its process; of a session's rank, that of the cell; none while it is busy."""
    rank = _rank(*events)
    assert (rank.busy, rank.exit) == (busy, code)


@pytest.mark.parametrize(
    ("events", "succeeded"),
    [
        ([hello(0)], False),
        ([ready(0)], False),
        ([ready(0), finished(0)], False),
        ([ready(0), finished(0), exited(0, 0)], True),
        ([ready(0), finished(0), idle(0)], True),
        ([ready(0), exited(0, 0)], True),
        ([exited(0, 0)], False),
        ([ready(0), finished(0, 1), exited(0, 1)], False),
        ([ready(0), error(0), exited(0, 0)], False),
        ([ready(0), finished(0), exited(0, -15, by_agent=True)], True),
    ],
)
def test_success_is_said(events: list[RunEvent], succeeded: bool) -> None:
    """By the rank itself, and its process has ended, or is idle."""
    assert _rank(*events).succeeded is succeeded


def test_a_rank_that_failed_did_so_at_a_time() -> None:
    """That of its own word where it said one, not that of its process's end."""
    raised = _rank(ready(0), error(0, time=5.0), exited(0, 1, 9.0)).failure
    assert raised is not None
    assert (raised.time, raised.code) == (5.0, 1)
    died = _rank(ready(0), exited(0, 1, 9.0)).failure
    assert died is not None
    assert died.time == 9.0


def test_a_rank_that_was_ended_after_its_cell_did_not_fail() -> None:
    """It was still in its exit handlers."""
    assert _rank(finished(0), exited(0, -15, by_agent=True)).failure is None
    assert _rank(finished(0), exited(0, -15)).failure is not None


def test_a_rank_that_lost_its_connection() -> None:
    """Its code closed what it had not opened."""
    failure = _rank(ready(0), ConnectionLost(rank=0, time=5.0)).failure
    assert failure is not None
    assert failure.code == LOST_CONNECTION


def test_a_stack_gives_a_line_only_where_it_has_one() -> None:
    """The line of the last heartbeat is better than none."""
    rank = _rank(ready(0), heartbeat(0, 4), StackDumped(rank=0, frames=("a",), line=None))
    assert (rank.line, rank.stack) == (4, ("a",))
    rank.take(StackDumped(rank=0, frames=("b",), line=9))
    assert (rank.line, rank.where) == (9, " at line 9")


def test_a_stack_at_the_known_line_leaves_what_that_has_called() -> None:
    """`in all_gather_object` is for the error too."""
    rank = _rank(ready(0), heartbeat(0, 4, call="all_gather_object"))
    rank.take(StackDumped(rank=0, frames=("a",), line=4))
    assert rank.call == "all_gather_object"
    rank.take(StackDumped(rank=0, frames=("b",), line=9))
    assert rank.call == ""


def test_a_later_cell_of_a_session() -> None:
    """The rank is in it at once; its text begins where the log ended."""
    rank = _rank(Rejoined(rank=0, pid=7, device="cuda:1", log_bytes=10))
    assert (rank.pid, rank.device, rank.phase, rank.log_span) == (
        7,
        "cuda:1",
        Phase.RUNNING,
        (10, 10),
    )
    rank.take(text(0, "abc", log_bytes=13))
    assert rank.log_span == (10, 13)


def test_an_idle_rank_stays_idle() -> None:
    """A heartbeat from the end of its cell may come late."""
    rank = _rank(ready(0), finished(0), idle(0, group=False), heartbeat(0, 3))
    assert (rank.phase, rank.has_group) == (Phase.IDLE, False)


def test_the_text_of_this_run(tmp_path: Path) -> None:
    """From the log, which a session's cells share."""
    log = tmp_path / "rank0.log"
    rank = _rank(Rejoined(rank=0, pid=7, device="cpu", log_bytes=4), log=log)
    assert rank.stdout == ""
    log.write_bytes("old\nnüw\nlater\n".encode())
    rank.take(text(0, "nüw\n", log_bytes=9))
    assert rank.stdout == "nüw\n"


def test_the_text_of_a_log_that_was_made_again(tmp_path: Path) -> None:
    """It is shorter than it was when the run began."""
    log = tmp_path / "rank0.log"
    rank = _rank(Rejoined(rank=0, pid=7, device="cpu", log_bytes=100), log=log)
    log.write_bytes(b"new\n")
    rank.take(text(0, "new\n", log_bytes=4))
    assert rank.stdout == "new\n"
    assert _rank().stdout == ""


def test_a_restarted_rank_keeps_its_log_alone() -> None:
    """It begins anew; its text is that of all attempts."""
    log = Path("/logs/rank0.log")
    rank = _rank(
        hello(0), ready(0), heartbeat(0, 3), text(0, "a", log_bytes=5), exited(0, 1), log=log
    )
    assert rank.restarted() == Rank(rank=0, log=log, log_span=(0, 5))


def test_a_rank_asks_until_its_question_is_closed() -> None:
    rank = Rank(rank=0)
    rank.take(question(0, 4))
    rank.take(QuestionClosed(rank=0, number=3))
    assert rank.question == question(0, 4)
    rank.take(QuestionClosed(rank=0, number=4))
    assert rank.question is None


def test_a_rank_in_the_debugger_has_not_failed_yet() -> None:
    """It stays at the line in which it raised."""
    rank = Rank(rank=0)
    rank.take(error(0, held=True))
    rank.take(heartbeat(0, 9))
    assert (rank.failure, rank.line, rank.busy) == (None, 3, True)


def test_a_rank_that_was_ended_in_the_debugger_has_failed_with_its_error() -> None:
    """After the one whose error ended the run."""
    rank = Rank(rank=0)
    rank.take(error(0, held=True))
    rank.take(exited(0, -15, EARLY + 10, by_agent=True))
    assert rank.failure is not None
    assert rank.failure.time == EARLY + 10
    assert rank.error == error(0, time=EARLY + 10)


def test_the_error_that_a_debugger_has_seen_is_the_ranks_own() -> None:
    rank = Rank(rank=0)
    rank.take(error(0, held=True))
    rank.take(error(0, "in full"))
    rank.take(exited(0, 1))
    assert rank.error == error(0, "in full")
