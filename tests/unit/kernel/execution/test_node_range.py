"""A run on as many nodes as the cluster has, in a range, on a fake group."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import pytest

from ddp_magic.display.record import RunRecord
from ddp_magic.kernel.cell import Cell
from ddp_magic.kernel.execution.run import Run
from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.values.names import Names
from ddp_magic.kernel.values.pull import Pull
from ddp_magic.wire.kernel_events import (
    GroupEnded,
    NodesGranted,
    OutsideEnd,
    PulledValues,
    Restarted,
)
from ddp_magic.wire.memory import Segment
from ddp_magic.wire.states import State
from ddp_magic.wire.worker_events import Results
from tests.unit.fakes import FakeGroup, FakeScreen, done, error, exited, up


class Screen(FakeScreen):
    """Records what the headline of the table says, each time that it changes."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: list[str] = []

    def tick(self, record: RunRecord) -> None:
        if record.devices not in self.devices[-1:]:
            self.devices.append(record.devices)


def run_on(group: FakeGroup, max_restarts: int = 0, **more: Any) -> tuple[Run, Screen]:
    """Execute a cell on one or two nodes with one rank each."""
    options = Options(
        nproc=2, nnodes=2, min_nodes=1, engine="slurm", max_restarts=max_restarts, **more
    )
    cell = Cell("pass\n", Names(frozenset(), frozenset()), number=1)
    run = Run(cell, options, group=group)  # type: ignore[arg-type]
    screen = Screen()
    run.execute(screen, engine=None, sys_path=[])  # type: ignore[arg-type]
    return run, screen


def granted(nnodes: int) -> NodesGranted:
    """The cluster has given so many nodes."""
    return NodesGranted(nnodes=nnodes, nproc=nnodes)


def results(rank: int) -> PulledValues:
    """A rank sends its `x`, which is its number."""
    segment = Segment.of([memoryview(pickle.dumps(("x", rank)))])
    return PulledValues(
        results=Results(rank=rank, names=("x",), sizes=segment.sizes), fd=segment.fd
    )


@pytest.mark.parametrize(
    ("nnodes", "devices"),
    [
        (1, "1 rank = 1 node x 1 (slurm, 1 to 2 nodes)"),
        (2, "2 ranks = 2 nodes x 1 (slurm, 1 to 2 nodes)"),
    ],
)
def test_the_cell_has_the_ranks_that_there_are(tmp_path: Path, nnodes: int, devices: str) -> None:
    """It says how many, waits for no more, and brings back their values."""
    ends = [event for rank in range(nnodes) for event in (results(rank), *done(rank))]
    group = FakeGroup(tmp_path, [granted(nnodes)], up(nnodes), [], ends, [GroupEnded()])
    run, screen = run_on(group, pull=(Pull("x", None),))
    assert (run.state, run.error) == (State.SUCCEEDED, None)
    assert run.results == {"x": list(range(nnodes))}
    assert run.devices == devices
    assert screen.notes == [devices]


LOST = OutsideEnd(text="job 5 lost n2: node failure", time=1.0)
ONE = "1 rank = 1 node x 1 (slurm, 1 to 2 nodes)"
TWO = "2 ranks = 2 nodes x 1 (slurm, 1 to 2 nodes)"


def _lost(number: int = 1) -> Restarted:
    return Restarted(number=number, agent_died=True, lost=LOST)


def test_a_run_goes_on_without_a_node(tmp_path: Path) -> None:
    """The cell says which was lost, which restart this is, and on how many nodes it goes on."""
    group = FakeGroup(
        tmp_path,
        [granted(2)], up(2), [], [_lost()],
        [granted(1)], up(1), [], [results(0), *done(0)], [GroupEnded()],
    )  # fmt: skip
    run, screen = run_on(group, max_restarts=2, pull=(Pull("x", None),))
    assert (run.state, run.error) == (State.SUCCEEDED, None)
    assert run.results == {"x": [0]}
    assert screen.notes == [TWO, f"{LOST.text} · restart 1 of 2", ONE]
    assert screen.devices == [TWO, "1 to 2 ranks = 1 to 2 nodes x 1 (slurm)", ONE]
    assert [restart.reason for restart in run.restarts] == [LOST.text]
    assert group.names == ["start", "RunCell", "Exit", "RunCell", "Exit", "close"]


def test_a_run_may_go_on_with_more_nodes(tmp_path: Path) -> None:
    """Those that were lost were one, and two others are free now."""
    group = FakeGroup(
        tmp_path,
        [granted(1)], up(1), [], [_lost()],
        [granted(2)], up(2), [], [*done(0), *done(1)], [GroupEnded()],
    )  # fmt: skip
    run, _ = run_on(group, max_restarts=1)
    assert run.state is State.SUCCEEDED
    assert len(run.ranks) == 2


def test_a_node_may_be_lost_before_the_cell_began(tmp_path: Path) -> None:
    """It could not be used; others can."""
    group = FakeGroup(
        tmp_path, [_lost()], [granted(1)], up(1), [], done(0), [GroupEnded()]
    )  # fmt: skip
    run, _ = run_on(group, max_restarts=1)
    assert run.state is State.SUCCEEDED


def test_what_followed_from_the_loss_is_no_other_restart(tmp_path: Path) -> None:
    """A rank of another node failed before anybody knew; the loss is the reason."""
    fails = [error(0), exited(0, 1), exited(1, 1)]
    group = FakeGroup(
        tmp_path,
        [granted(2)], up(2), [], [*fails, Restarted(number=1)], [_lost()],
        [granted(1)], up(1), [], done(0), [GroupEnded()],
    )  # fmt: skip
    run, screen = run_on(group, max_restarts=1)
    assert run.state is State.SUCCEEDED
    assert [(restart.number, restart.reason) for restart in run.restarts] == [(1, LOST.text)]
    assert f"{LOST.text} · restart 1 of 1" in screen.notes


def test_what_had_failed_before_the_loss_is_the_reason(tmp_path: Path) -> None:
    fails = [error(0, time=0.1), exited(0, 1)]
    group = FakeGroup(
        tmp_path,
        [granted(2)], up(2), [], [*fails, _lost()],
        [granted(1)], up(1), [], done(0), [GroupEnded()],
    )  # fmt: skip
    run, _ = run_on(group, max_restarts=1)
    assert [restart.reason for restart in run.restarts] == [
        "rank 0 raised ValueError at line 3: boom"
    ]


def test_the_time_in_the_queue_does_not_count(tmp_path: Path) -> None:
    """Neither before the first attempt nor before another one."""

    def leave() -> None:
        group._polls_until_placed = 3

    group = FakeGroup(
        tmp_path,
        [granted(2)], up(2), [], [leave, _lost()], [lambda: time.sleep(0.3)],
        [granted(1)], up(1), [], done(0), [GroupEnded()],
    )  # fmt: skip
    run, _ = run_on(group, max_restarts=1, time_limit_s=0.25)
    assert run.state is State.SUCCEEDED, run.error


def test_too_few_nodes_are_left(tmp_path: Path) -> None:
    """The error says so, and what was lost before."""
    left = OutsideEnd(text="the run needs at least 1 node, which it cannot have", time=2.0)
    group = FakeGroup(
        tmp_path, [granted(2)], up(2), [], [_lost()], [GroupEnded(agent_died=True, outside=left)]
    )
    run, _ = run_on(group, max_restarts=2)
    assert str(run.error) == left.text
    assert run.error is not None
    assert run.error.details == (f"attempt 1 of 3: {LOST.text}",)
