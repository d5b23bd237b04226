"""What a kernel knows of a rank, event by event."""

from __future__ import annotations

from ddp_magic.display.rank import Rank
from ddp_magic.wire.messages import (
    Error,
    Finished,
    Heartbeat,
    WorkerExited,
    WorkerHello,
    WorkerReady,
)
from ddp_magic.wire.states import Phase


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
