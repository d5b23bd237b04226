"""Which messages make sense from which end."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ddp_magic.errors import ProtocolError
from ddp_magic.kernel.worker_group.admission import Standing, check, take_buffers, take_pipe
from ddp_magic.wire.channel import Channel
from ddp_magic.wire.commands import Command, Interrupt
from ddp_magic.wire.events import AgentDone, AgentHello, Event
from ddp_magic.wire.worker_events import WorkerHello
from tests.unit.fakes import exited, hello, idle, ready

STRANGER = Standing(nproc=2)
RANK = Standing(nproc=2, present=(0, 1), rank=1)
AGENT = Standing(nproc=2, present=(0, 1), exited=(0,), agent=True)
RESTARTED = Standing(nproc=2, present=(0, 1), attempt=1, max_restarts=2)


@pytest.mark.parametrize(
    ("message", "standing"),
    [
        (hello(1), STRANGER),
        (AgentHello(), STRANGER),
        (AgentHello(), Standing(nproc=2, present=(0,))),
        (ready(1), RANK),
        (idle(1), RANK),
        (exited(1), AGENT),
        (AgentDone(), AGENT),
        (AgentHello(attempt=2), RESTARTED),
        (WorkerHello(rank=0, pid=1, marker="M;", attempt=2), RESTARTED),
        (AgentHello(attempt=2), Standing(nproc=2, agent=True, attempt=1, max_restarts=2)),
        (AgentHello(attempt=1), Standing(nproc=2, agent=True, attempt=1, max_restarts=2)),
    ],
)
def test_what_makes_sense(message: Command | Event, standing: Standing) -> None:
    """Hellos of strangers, a rank of itself, an agent of its ranks."""
    check(message, standing)


@pytest.mark.parametrize(
    ("message", "standing", "why"),
    [
        (ready(1), STRANGER, "unexpected WorkerReady"),
        (AgentDone(), STRANGER, "unexpected AgentDone"),
        (Interrupt(), STRANGER, "unexpected Interrupt"),
        (hello(2), STRANGER, "names rank 2; the last rank is 1"),
        (hello(0), Standing(nproc=2, present=(0,)), "rank 0, which is connected already"),
        (AgentHello(), Standing(nproc=2, present=(0, 1)), "every rank is connected already"),
        (hello(1), RANK, "unexpected WorkerHello"),
        (idle(0), RANK, "Idle names rank 0"),
        (exited(1), RANK, "unexpected WorkerExited"),
        (hello(1), AGENT, "unexpected WorkerHello"),
        (exited(0), AGENT, "rank 0, which has ended already"),
        (exited(2), AGENT, "names rank 2; the last rank is 1"),
        (idle(1), AGENT, "unexpected Idle"),
        (AgentHello(attempt=1), STRANGER, "names attempt 1; the ranks are in attempt 0"),
        (AgentHello(attempt=3), RESTARTED, "names attempt 3; the ranks are in attempt 1"),
        (AgentHello(attempt=0), RESTARTED, "names attempt 0; the ranks are in attempt 1"),
        (AgentHello(attempt=1), RESTARTED, "every rank is connected already"),
        (AgentHello(attempt=0), AGENT, "unexpected AgentHello"),
    ],
)
def test_what_does_not(message: Command | Event, standing: Standing, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        check(message, standing)


@pytest.mark.parametrize("marker", ["", "x" * 101, "é"])
def test_a_marker_that_is_none(marker: str) -> None:
    """Empty, it would be everywhere in the text."""
    with pytest.raises(ProtocolError, match="marker"):
        check(WorkerHello(rank=0, pid=1, marker=marker), STRANGER)


def _came(fd: int) -> Channel:
    """Return a connection on which a descriptor has come."""
    return cast("Channel", SimpleNamespace(take_fd=lambda: fd))


def test_the_end_of_a_pipe_that_is_read() -> None:
    """The other end is closed: nobody would read it."""
    read_end, write_end = os.pipe()
    assert take_pipe(_came(read_end)) == read_end
    with pytest.raises(ProtocolError):
        take_pipe(_came(write_end))
    assert os.read(read_end, 1) == b""
    os.close(read_end)


@pytest.mark.parametrize(("sizes", "fits"), [((3, 5), True), ((3, 6), False), ((), False)])
def test_buffers_that_fit_into_their_file(tmp_path: Path, sizes: Any, fits: bool) -> None:
    (tmp_path / "memory").write_bytes(bytes(8))
    with (tmp_path / "memory").open() as file:
        fd = os.dup(file.fileno())
        if fits:
            assert take_buffers(_came(fd), sizes) == fd
            os.close(fd)
        else:
            with pytest.raises(ProtocolError, match="does not hold"):
                take_buffers(_came(fd), sizes)
