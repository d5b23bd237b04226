"""A run on as many nodes as the cluster has, in a range, on a fake group."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from ddp_magic.kernel.cell import Cell
from ddp_magic.kernel.execution.run import Run
from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.values.names import Names
from ddp_magic.kernel.values.pull import Pull
from ddp_magic.wire.kernel_events import GroupEnded, NodesGranted, PulledValues
from ddp_magic.wire.memory import Segment
from ddp_magic.wire.states import State
from ddp_magic.wire.worker_events import Results
from tests.unit.fakes import FakeGroup, FakeScreen, done, up


def run_on(group: FakeGroup, max_restarts: int = 0, **more: Any) -> tuple[Run, FakeScreen]:
    """Execute a cell on one or two nodes with one rank each."""
    options = Options(
        nproc=2, nnodes=2, min_nodes=1, engine="slurm", max_restarts=max_restarts, **more
    )
    cell = Cell("pass\n", Names(frozenset(), frozenset()), number=1)
    run = Run(cell, options, group=group)  # type: ignore[arg-type]
    screen = FakeScreen()
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
