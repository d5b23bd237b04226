"""How a run ended, from what its ranks have reported."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ddp_magic.display.rank import Rank
from ddp_magic.display.verdict import Evidence, StopReason, judge
from ddp_magic.errors import (
    LaunchError,
    RunInterrupted,
    TimeLimitError,
    WorkerError,
    WorkerLostError,
)
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.kernel_events import GroupEnded, Killed, RunEvent, StackDumped
from ddp_magic.wire.messages import (
    LOST_CONNECTION,
    ConnectionLost,
    Error,
    Finished,
    Idle,
    Interrupted,
    WorkerExited,
    WorkerHello,
    WorkerReady,
)
from ddp_magic.wire.states import State

GLOO = "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:8839"


def _rank(number: int, *events: RunEvent, up: bool = True) -> Rank:
    rank = Rank(rank=number)
    if up:
        rank.take(WorkerHello(rank=number, pid=100 + number, marker=""))
        rank.take(WorkerReady(rank=number, time=1.0, device="cpu"))
    for event in events:
        rank.take(event)
    return rank


def _finished(rank: int, code: int = 0, message: str = "") -> Finished:
    return Finished(rank=rank, time=5.0, code=code, message=message)


def _exited(rank: int, code: int, time: float = 6.0, *, by_agent: bool = False) -> WorkerExited:
    return WorkerExited(rank=rank, time=time, code=code, by_agent=by_agent)


def _error(rank: int, evalue: str = "boom", time: float = 5.0, **more: Any) -> Error:
    fields = {"ename": "ValueError", "traceback": ("Cell In[1], line 3",), "line": 3, **more}
    return Error(rank=rank, time=time, evalue=evalue, **fields)


def test_success_is_what_every_rank_has_reported() -> None:
    """To the end of its cell; out of it by sys.exit(0) or os._exit(0); a session's, by Idle."""
    ranks = [
        _rank(0, _finished(0), _exited(0, 0)),
        _rank(1, _exited(1, 0)),
        _rank(2, _finished(2), Idle(rank=2, time=6.0)),
        _rank(3, _finished(3), _exited(3, -15, by_agent=True)),
    ]
    assert judge(Evidence(ranks=ranks)) == (State.SUCCEEDED, None)


@pytest.mark.parametrize("code", [0, 1, -9])
def test_ranks_that_never_ran_are_no_success(code: int) -> None:
    """They ended before they could say anything, or between the hello and the cell."""
    for up in (True, False):
        ranks = [_rank(r, _exited(r, code), up=False) for r in range(2)]
        if up:
            ranks = [Rank(rank=0), Rank(rank=1)]
            for rank in ranks:
                rank.take(WorkerHello(rank=rank.rank, pid=7, marker=""))
                rank.take(_exited(rank.rank, code))
        state, error = judge(Evidence(ranks=ranks))
        assert state is State.FAILED
        assert error is not None


def test_why_a_rank_could_not_start_is_in_the_message() -> None:
    """The reason stood only in the agent's log."""
    words = "W1127 torch warns\ncould not start rank 1: OSError: [Errno 28] No space left on device"
    ranks = [_rank(r, _exited(r, 1), up=False) for r in range(2)]
    state, error = judge(
        Evidence(
            ranks=ranks,
            group=GroupEnded(agent_words=words),
            logs=RunDirectory(Path("/logs")),
        )
    )
    assert state is State.FAILED
    assert isinstance(error, LaunchError)
    assert str(error) == (
        "could not start rank 1: OSError: [Errno 28] No space left on device; "
        "the agent's log is /logs/agent.log"
    )


def test_a_signal_during_the_start() -> None:
    """Before the ranks could connect: which, and by what."""
    ranks = [
        _rank(0, _exited(0, -15, by_agent=True), up=False),
        _rank(1, _exited(1, -15), up=False),
    ]
    _, error = judge(Evidence(ranks=ranks))
    assert str(error).startswith("rank 1 was killed by SIGTERM (exit -15), before its cell began")


def test_a_rank_that_we_ended_is_no_culprit() -> None:
    """It was ended while its own complaint was being formatted; its code is SIGTERM's."""
    complained = _rank(0, _error(0, GLOO, 5.2), _exited(0, 1, 5.4))
    ended = _rank(1, _exited(1, -15, 5.1, by_agent=True))
    state, error = judge(Evidence(ranks=[complained, ended, _rank(2, _finished(2), _exited(2, 0))]))
    assert state is State.FAILED
    assert isinstance(error, WorkerError)
    assert (error.rank, error.ename) == (0, "ValueError")
    assert "rank 1: was stopped" in error.details
    assert "rank 2: finished" in error.details


def test_a_rank_ended_from_outside_is_the_culprit() -> None:
    """Whatever its peers complained of before the news came."""
    ranks = [_rank(0, _error(0, GLOO, 5.0), _exited(0, 1)), _rank(1, _exited(1, -15, 5.1))]
    _, error = judge(Evidence(ranks=ranks))
    assert isinstance(error, WorkerLostError)
    assert str(error).startswith("rank 1 was killed by SIGTERM")
    assert error.details == ("rank 0: lost its connection to rank 1 at line 3 (ValueError)",)


def test_an_agent_ended_from_outside_is_named() -> None:
    """Its ranks are what it ended, not what ended it."""
    ranks = [_rank(r, _exited(r, -15, by_agent=True)) for r in range(2)]
    ranks.append(_rank(2, _error(2, GLOO), _exited(2, 1)))
    text = "Traceback ...\ntorch...SignalException: Process 12 got signal: 15"
    state, error = judge(Evidence(ranks=ranks, group=GroupEnded(agent_error=text)))
    assert state is State.FAILED
    assert str(error).startswith("the agent was ended by SIGTERM from outside")


@pytest.mark.parametrize("complaint", [(), (_error(0, GLOO),)])
def test_an_agent_that_died(complaint: tuple[RunEvent, ...]) -> None:
    """Nobody could say how the ranks ended; one has complained of another's end before its own."""
    ranks = [_rank(0, *complaint), _rank(1, _finished(1))]
    state, error = judge(Evidence(ranks=ranks, group=GroupEnded(agent_died=True)))
    assert state is State.FAILED
    assert "the agent died while the ranks were running" in str(error)


def test_stop_keeps_what_was_raised_before() -> None:
    """The message names it, the traceback stands above."""
    ranks = [_rank(0, _error(0), _exited(0, 1)), _rank(1, _exited(1, -9))]
    ranks[1].take(Killed(rank=1))
    state, error = judge(Evidence(ranks=ranks, stop=StopReason.INTERRUPT, stopped=5.5))
    assert state is State.CANCELLED
    assert isinstance(error, RunInterrupted)
    assert str(error) == (
        "rank 0 raised ValueError at line 3: boom; rank 1 did not answer and was killed"
    )
    assert error.details == ("rank 0 of 2 had raised:", "Cell In[1], line 3")


def test_a_time_limit_does_not_hide_an_earlier_error() -> None:
    """It was being formatted when the limit came."""
    ranks = [_rank(0, _error(0), _exited(0, 1)), _rank(1, _exited(1, -9, by_agent=True))]
    evidence = Evidence(ranks=ranks, stop=StopReason.TIME_LIMIT, time_limit_s=3.0, stopped=5.5)
    _, error = judge(evidence)
    assert isinstance(error, WorkerError)
    _, error = judge(replace(evidence, stopped=4.5))
    assert isinstance(error, TimeLimitError)
    assert str(error).startswith("the run exceeded its time limit of 3 s; rank 0 raised")


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ((), "had not started its cell"),
        ((_finished(0), Interrupted(rank=0, time=5.0)), "finished its cell, and its exit was"),
        ((_finished(0), _exited(0, 0)), "finished"),
        ((_exited(0, 0),), "finished"),
        ((_error(0, "", 5.6, ename="KeyboardInterrupt"),), "stopped at line 3"),
        ((_error(0),), "raised ValueError at line 3: boom"),
        ((_exited(0, 1),), "ended"),
    ],
)
def test_how_a_rank_stopped(events: tuple[RunEvent, ...], words: str) -> None:
    """Each end has words of its own."""
    ranks = [_rank(0, *events, up=bool(events))]
    _, error = judge(Evidence(ranks=ranks, stop=StopReason.INTERRUPT, stopped=5.5))
    assert f"rank 0 {words}" in str(error)


def test_a_rank_that_was_stuck_at_its_end() -> None:
    """Killed in its exit handlers, which do not stand in a line of the cell."""
    rank = _rank(0, _finished(0), _exited(0, -9))
    rank.take(Killed(rank=0))
    _, error = judge(Evidence(ranks=[rank], stop=StopReason.INTERRUPT, stopped=5.5))
    assert str(error) == "rank 0 did not answer after the end of its cell and was killed"


@pytest.mark.parametrize("how", ["it ended itself", "it was ended"])
def test_a_rank_without_a_connection(how: str) -> None:
    """It had closed descriptors that were not its own."""
    alone = [ConnectionLost(rank=1, time=5.0), _exited(1, -9, by_agent=True)]
    events = [_exited(1, LOST_CONNECTION)] if how == "it ended itself" else alone
    _, error = judge(Evidence(ranks=[_rank(0, _finished(0), _exited(0, 0)), _rank(1, *events)]))
    assert isinstance(error, WorkerLostError)
    assert str(error).startswith("rank 1 lost its connection to the notebook: its code closed a")


def test_a_crash_shows_its_stack() -> None:
    """Where faulthandler left it, which C code does not outlive."""
    rank = _rank(0, _exited(0, -signal.SIGSEGV))
    rank.take(StackDumped(rank=0, frames=("File Cell In[1], line 7 in step",), line=7))
    _, error = judge(Evidence(ranks=[rank]))
    assert isinstance(error, WorkerLostError)
    assert error.details[:2] == (
        "rank 0 was in, innermost first:",
        "    File Cell In[1], line 7 in step",
    )
