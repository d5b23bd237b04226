"""A run whose ranks are restarted, on a fake group that plays their attempts."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from ddp_magic.errors import RunInterrupted, TimeLimitError, WorkerError
from ddp_magic.kernel.cell import Cell
from ddp_magic.kernel.execution.run import Run
from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.values.capture import Capture
from ddp_magic.kernel.values.names import Names
from ddp_magic.kernel.values.pull import Pull
from ddp_magic.wire.commands import Captured
from ddp_magic.wire.kernel_events import GroupEnded, PulledValues, Restarted
from ddp_magic.wire.memory import Segment
from ddp_magic.wire.states import State
from ddp_magic.wire.worker_events import CellNames, Results
from tests.unit.fakes import (
    LATE,
    Batch,
    FakeGroup,
    FakeScreen,
    done,
    error,
    exited,
    hello,
    interrupted,
    press_stop,
    up,
)

REASON = "rank 1 raised ValueError at line 3: boom"
FAILS: Batch = [error(1), exited(1, 1), exited(0, -15, by_agent=True)]
SUCCEEDS: Batch = [*done(0), *done(1)]


def _run(group: FakeGroup, max_restarts: int = 2, **more: Any) -> Run:
    how = {name: more.pop(name) for name in ("capture",) if name in more}
    options = Options(nproc=2, max_restarts=max_restarts, **more)
    cell = Cell("pass\n", Names(frozenset(), frozenset()), number=1)
    return Run(cell, options, group=group, **how)  # type: ignore[arg-type]


def _execute(run: Run) -> FakeScreen:
    screen = FakeScreen()
    run.execute(screen, engine=None, sys_path=[])  # type: ignore[arg-type]
    assert screen.ended == run.state.value
    return screen


def _attempts(directory: Path, *attempts: Batch, **more: Any) -> FakeGroup:
    """A group whose ranks are restarted after each attempt but the last."""
    batches: list[Batch] = []
    for number, attempt in enumerate(attempts):
        batches += [up()] if not number else [[Restarted(number=number), *up()]]
        batches += [[], attempt]
    return FakeGroup(directory, *batches, [GroupEnded()], **more)


def test_success_in_the_second_attempt(tmp_path: Path) -> None:
    """The ranks get the cell again; the run says how often they were restarted, and why."""
    group = _attempts(tmp_path, FAILS, SUCCEEDS)
    run = _run(group)
    screen = _execute(run)
    assert (run.state, run.error) == (State.SUCCEEDED, None)
    assert group.names == ["start", "RunCell", "Exit", "RunCell", "Exit", "close"]
    assert [(r.number, r.rank, r.reason) for r in run.restarts] == [(1, 1, REASON)]
    assert isinstance(run.restarts[0].error, WorkerError)
    assert screen.notes == [f"{REASON} · restart 1 of 2"]
    assert f"restart 1 after {run.restarts[0].elapsed_s:.1f} s: {REASON}" in repr(run)


def test_restarts_are_used_up(tmp_path: Path) -> None:
    """The error is the last attempt's, with a line for each that came before."""
    last: Batch = [error(0, "last"), exited(0, 1), exited(1, -15, by_agent=True)]
    run = _run(_attempts(tmp_path, FAILS, FAILS, last))
    _execute(run)
    assert run.state is State.FAILED
    assert str(run.error) == "rank 0 raised ValueError at line 3: last"
    assert run.error is not None
    assert run.error.details[-2:] == (f"attempt 1 of 3: {REASON}", f"attempt 2 of 3: {REASON}")


def test_what_was_captured_is_sent_to_each_attempt(tmp_path: Path) -> None:
    """Its memory is held until the run ends."""
    capture = Capture(
        command=Captured(names=("x",), stream=7, parts=()),
        segments={7: Segment.of([memoryview(b"abc")])},
    )
    group = _attempts(tmp_path, FAILS, SUCCEEDS)
    _execute(_run(group, capture=capture))
    attempt = ["share", "Captured", "RunCell", "Exit"]
    assert group.names == ["start", *attempt, *attempt, "close"]


def _results(rank: int, value: int) -> PulledValues:
    stream = pickle.dumps(("x", value))
    segment = Segment.of([memoryview(stream)])
    return PulledValues(
        results=Results(rank=rank, names=("x",), sizes=segment.sizes), fd=segment.fd
    )


def test_pulled_values_are_the_last_attempts(tmp_path: Path) -> None:
    """What an earlier attempt had sent is dropped."""
    first: Batch = [_results(0, 1), *FAILS]
    run = _run(_attempts(tmp_path, first, [_results(0, 2), *SUCCEEDS]), pull=(Pull("x"),))
    _execute(run)
    assert run.results == {"x": 2}


def test_values_of_an_earlier_attempt_are_not_pulled(tmp_path: Path) -> None:
    run = _run(_attempts(tmp_path, [_results(0, 1), *FAILS], SUCCEEDS), pull=(Pull("x"),))
    _execute(run)
    assert run.state is State.FAILED
    assert "`x` of rank 0 did not arrive" in str(run.error)


def test_names_of_an_earlier_attempt_did_not_stay(tmp_path: Path) -> None:
    names = CellNames(rank=0, names=("a",), values=("a",))
    run = _run(_attempts(tmp_path, [names, *FAILS], SUCCEEDS))
    _execute(run)
    assert (run.bound, run.stayed) == ((), ())


def test_ranks_begin_anew(tmp_path: Path) -> None:
    """Nothing of their earlier lives is left, but for their logs."""
    seen = []

    def look() -> None:
        seen.extend((rank.code, rank.error, rank.pid, rank.ran, rank.log) for rank in run.ranks)

    run = _run(
        FakeGroup(
            tmp_path,
            up(),
            [],
            FAILS,
            [Restarted(number=1)],
            [look, *up()],
            SUCCEEDS,
            [GroupEnded()],
        )
    )
    logs = [rank.log for rank in run.ranks]
    _execute(run)
    assert seen == [(None, None, None, False, log) for log in logs]


def test_what_the_run_does_meanwhile(tmp_path: Path) -> None:
    """For the table: it restarts, then starts, then runs."""
    seen = []

    def look() -> None:
        seen.append(run.doing)

    batches: list[Batch] = [
        up(), [], FAILS, [look], [Restarted(number=1)], [look, *up()], [], [look], SUCCEEDS,
        [GroupEnded()],
    ]  # fmt: skip
    run = _run(FakeGroup(tmp_path, *batches))
    _execute(run)
    assert seen == ["restarting", "starting", ""]


def test_without_restarts_left_it_does_not_restart(tmp_path: Path) -> None:
    seen = []
    batches: list[Batch] = [up(), [], FAILS, [lambda: seen.append(run.doing)], [GroupEnded()]]
    run = _run(FakeGroup(tmp_path, *batches), max_restarts=0)
    _execute(run)
    assert seen == [""]


def test_stop_in_the_second_attempt(tmp_path: Path) -> None:
    """It ends the run, and says why there were earlier attempts."""
    answers = [*interrupted(0), *interrupted(1), exited(0, 1), exited(1, 1)]
    group = FakeGroup(
        tmp_path, up(), [], FAILS, [Restarted(number=1), *up()], [], [press_stop],
        on={"interrupt": [answers, [GroupEnded()]]},
    )  # fmt: skip
    run = _run(group)
    _execute(run)
    assert run.state is State.CANCELLED
    assert isinstance(run.error, RunInterrupted)
    assert str(run.error) == "ranks 0-1 stopped at line 3"
    assert run.error.details == (f"attempt 1 of 3: {REASON}",)


def test_stop_while_the_ranks_are_restarted(tmp_path: Path) -> None:
    """Nobody could answer: the start is ended, and the cell is not sent again."""
    group = FakeGroup(
        tmp_path, up(), [], FAILS, [Restarted(number=1), press_stop], on={"kill": [[GroupEnded()]]}
    )
    run = _run(group)
    _execute(run)
    assert run.state is State.CANCELLED
    assert group.names.count("RunCell") == 1


def test_ranks_that_are_restarted_after_stop_are_ignored(tmp_path: Path) -> None:
    """torchrun does not know of it; the group ends them. What is told is how the others stopped."""
    answers = [*interrupted(0), *interrupted(1), exited(0, 1), exited(1, 1)]
    group = FakeGroup(
        tmp_path, up(), [], [press_stop],
        on={"interrupt": [answers, [Restarted(number=1), hello(0)], [GroupEnded(agent_died=True)]]},
    )  # fmt: skip
    run = _run(group)
    _execute(run)
    assert str(run.error) == "ranks 0-1 stopped at line 3"
    assert run.restarts == ()


def test_the_time_limit_ends_a_run_that_is_restarted_again_and_again(tmp_path: Path) -> None:
    """A rank that failed just then would have been restarted: the limit is the reason."""
    group = FakeGroup(
        tmp_path, up(), [], [error(1)],
        on={"interrupt": [[exited(1, 1), *interrupted(0), exited(0, 1)], [GroupEnded()]]},
    )  # fmt: skip
    run = _run(group, time_limit_s=1e-9)
    _execute(run)
    assert run.state is State.FAILED
    assert isinstance(run.error, TimeLimitError)


def test_a_cell_that_could_not_start_is_not_restarted(tmp_path: Path) -> None:
    """A backend that does not exist: the error is the first attempt's."""
    fails: Batch = [
        hello(0),
        hello(1),
        error(0, "no backend", line=None),
        exited(0, 1),
        exited(1, 1),
    ]
    later: Batch = [hello(0), exited(0, -9, LATE, by_agent=True), exited(1, -9, LATE)]
    group = FakeGroup(tmp_path, fails, [Restarted(number=1)], on={"kill": [later, [GroupEnded()]]})
    run = _run(group)
    screen = _execute(run)
    assert str(run.error) == "rank 0 raised ValueError: no backend"
    assert run.restarts == ()
    assert screen.notes == []


def test_a_later_attempt_that_could_not_start_is_restarted(tmp_path: Path) -> None:
    """The first had started: a device may still have been in use."""
    batches: list[Batch] = [
        up(), [], FAILS, [Restarted(number=1), hello(0), exited(0, 1), exited(1, 1)],
        [Restarted(number=2), *up()], [], SUCCEEDS, [GroupEnded()],
    ]  # fmt: skip
    run = _run(FakeGroup(tmp_path, *batches))
    _execute(run)
    assert run.state is State.SUCCEEDED
    assert len(run.restarts) == 2


@pytest.mark.parametrize("died", [False, True])
def test_a_keeper_that_died_is_the_reason(tmp_path: Path, *, died: bool) -> None:
    """Its rank died with it; that the peers lost their connection explains nothing."""
    lost = error(0, "Connection closed by peer")
    batches: list[Batch] = [
        up(), [], [lost, exited(0, 1)], [Restarted(number=1, agent_died=died), *up()], [], SUCCEEDS,
        [GroupEnded()],
    ]  # fmt: skip
    run = _run(FakeGroup(tmp_path, *batches))
    _execute(run)
    assert run.restarts[0].reason.startswith("the agent died") is died
