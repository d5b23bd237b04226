"""The sends and receives that a rank waits for, with two ranks of gloo."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup, Work

from ddp_magic.system.tracebacks import know_source
from ddp_magic.wire.collectives import Exchange, Transfer
from ddp_magic.worker.watch.transfers import (
    awaited_transfers,
    failed_transfers,
    last_transfer,
    new_exchanges,
    polling_s,
    remember_transfers,
)
from tests.limits import HANG_S, within
from tests.unit.worker.groups import leave_group

pytestmark = pytest.mark.skipif(
    not hasattr((lambda: 0).__code__, "co_positions"), reason="Python 3.11's"
)
CELL = "/run/cell.py"
FROM_1, TO_1 = Transfer(kind="recv", peer=1), Transfer(kind="send", peer=1)


def _init(path: str, rank: int) -> None:
    store = dist.FileStore(path, 2)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)


def _partner(path: str, orders: Connection) -> None:
    """Send and receive as rank 1, one of each for an order."""
    _init(path, 1)
    orders.send("ready")
    while (tag := orders.recv()) is not None:
        sent = dist.isend(torch.ones(2), 0, tag=tag)
        dist.recv(torch.zeros(2), 0, tag=tag)
        sent.wait()


@pytest.fixture
def partner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """Rank 1: sends and receives when it is told the tag; this process is rank 0."""
    monkeypatch.setattr(Work, "is_completed", Work.__dict__["is_completed"])
    for method in ("send", "recv", "recv_anysource"):
        monkeypatch.setattr(ProcessGroup, method, ProcessGroup.__dict__[method])
    path = str(tmp_path / "store")
    here, there = multiprocessing.Pipe()
    rank_1 = multiprocessing.get_context("fork").Process(
        target=_partner, args=(path, there), daemon=True
    )
    rank_1.start()
    remember_transfers()
    remember_transfers()  # of two threads that watch
    _init(path, 0)
    assert here.poll(HANG_S)
    here.recv()
    yield here
    rank_1.kill()  # nothing more is needed of it, and its own exit may hang in gloo
    rank_1.join(HANG_S)
    leave_group()
    gc.collect()  # what is left of gloo would crash the next process that is forked


def _waits_for(source: str, partner: Connection, tag: int = 0) -> tuple[Transfer, ...]:
    """Run a cell that sends to rank 1 and receives from it; return what it is seen to wait for."""
    seen: list[tuple[Transfer, ...]] = [()]

    def look() -> None:
        began = time.monotonic()
        while not seen[-1] and within(time.monotonic() - began, HANG_S):
            seen.append(awaited_transfers())
            time.sleep(0.01)
        partner.send(tag)

    text = textwrap.dedent(source)
    know_source(CELL, text)
    thread = threading.Thread(target=look)
    thread.start()
    names: dict[str, Any] = {"dist": dist, "x": torch.zeros(2), "y": torch.ones(2)}
    exec(compile(text, CELL, "exec"), names | {"o": SimpleNamespace()})
    thread.join(HANG_S)
    return seen[-1]


@pytest.mark.parametrize(
    ("source", "transfers"),
    [
        ("r = dist.irecv(x, 1)\ns = dist.isend(y, 1)\nr.wait()\ns.wait()", (FROM_1,)),
        ("r = [dist.isend(y, 1), dist.irecv(x, 1)]\nr[1].wait()\nr[0].wait()", (FROM_1,)),
        ("r = {'a': (dist.isend(y, 1), dist.irecv(x, 1))}\nr['a'][-1].wait()", (FROM_1,)),
        ("i = 0\nr = [dist.isend(y, 1), dist.irecv(x, 1)]\nr[i].wait()\nr[1].wait()", (TO_1,)),
        ("o.r = dist.irecv(x, 1)\ns = dist.isend(y, 1)\no.r.wait()\ns.wait()", (FROM_1,)),
        ("r = dist.irecv(x, 1)\ns = dist.isend(y, 1)\ns.wait()\nr.wait()", (TO_1,)),
        ("dist.recv(x, 1)\ndist.send(y, 1)", (FROM_1,)),
        ("s = dist.isend(y, 1)\ndist.irecv(x, 1).wait()\ns.wait()", (FROM_1,)),
        ("s = dist.isend(y, 1)\n(lambda r: r)(dist.irecv(x, 1)).wait()\ns.wait()", (TO_1, FROM_1)),
        (
            """
            ops = [dist.P2POp(dist.irecv, x, 1), dist.P2POp(dist.isend, y, 1)]
            for work in dist.batch_isend_irecv(ops):
                work.wait()
            """,
            (FROM_1,),
        ),
        (
            "s = dist.isend(y, 1)\ndist.recv(x)\ns.wait()",
            (Transfer(kind="recv", peer=None),),
        ),
    ],
)
def test_what_is_waited_for_has_its_partner(
    partner: Connection, source: str, transfers: tuple[Transfer, ...]
) -> None:
    assert _waits_for(source, partner) == transfers


@pytest.mark.parametrize(
    ("source", "transfers"),
    [
        ("dist.recv(x, 1)", (FROM_1,)),
        ("r = dist.irecv(x, 1)\ns = dist.isend(y, 1)\nr.wait()", (FROM_1,)),
        ("r = [dist.irecv(x, 1)]\nr[0].wait()", (FROM_1,)),
        ("dist.irecv(x, 1).wait()", (FROM_1,)),
        ("while True: r = dist.isend(y, 1)", (TO_1,)),  # the connection is known to be lost
        ("ops = [dist.P2POp(dist.isend, y, 1)]\nwhile True: dist.batch_isend_irecv(ops)", (TO_1,)),
        ("r = dist.irecv(x, 1)\ndist.all_reduce(y)", ()),
        ("r = {}.wait()", ()),  # an error of another kind
    ],
)
def test_what_has_failed_has_its_partner(
    partner: Connection, source: str, transfers: tuple[Transfer, ...]
) -> None:
    """When the partner has gone: torch takes it for completed then."""
    partner.send(None)
    names: dict[str, Any] = {"dist": dist, "x": torch.zeros(2), "y": torch.ones(2)}
    know_source(CELL, source)
    with pytest.raises((RuntimeError, AttributeError)) as raised:
        exec(compile(source, CELL, "exec"), names)
    assert failed_transfers(raised.value.__traceback__) == transfers
    assert failed_transfers(None) == ()


def test_a_loop_that_asks_whether_it_has_completed_waits_for_it(partner: Connection) -> None:
    """It never stands at one place, and gloo completes it only in `wait`."""
    received = dist.irecv(torch.zeros(2), 1)
    assert received is not None
    assert polling_s() == 0
    partner.send(0)  # sends, and waits for what is sent below
    for _ in range(20):
        assert not received.is_completed()
        time.sleep(0.01)
    assert polling_s() > 0.1
    assert awaited_transfers() == (FROM_1,)
    thread = threading.Thread(target=received.is_completed)  # as the thread that watches asks
    time.sleep(0.6)
    thread.start()
    thread.join(HANG_S)
    assert (polling_s(), awaited_transfers()) == (0, ())
    assert not received.is_completed()
    dist.send(torch.ones(2), 1)
    received.wait()
    assert received.is_completed()
    assert polling_s() == 0


def test_each_new_one_is_progress(partner: Connection) -> None:
    """A loop of them is always at one place, and does not stand still."""
    seen = [last_transfer()]
    partner.send(0)
    sent = dist.isend(torch.ones(2), 1)
    seen.append(last_transfer())
    dist.recv(torch.zeros(2), 1)
    sent.wait()
    seen.append(last_transfer())
    assert all(one != other for one, other in itertools.pairwise(seen))
    assert last_transfer() == seen[-1]


def test_what_was_exchanged_is_told_once(partner: Connection) -> None:
    """In the order of the messages to and from each rank, by tag; equal ones are counted."""
    new_exchanges()
    for tag in (0, 0, 0, 5):
        partner.send(tag)
        received = torch.zeros(1, 2) if tag else torch.zeros(2)
        sent = dist.isend(torch.ones(2), 1, tag=tag)
        dist.recv(received, 1, tag=tag)
        sent.wait()
    two = "2 elements of float32"
    assert sorted(new_exchanges(), key=lambda one: (one.kind, one.tag)) == [
        Exchange(kind=kind, peer=1, tag=tag, group="0", tensors=(two,), counts=(count,))
        for kind in ("recv", "send")
        for tag, count in ((0, 3), (5, 1))
    ]
    assert new_exchanges() == ()


def test_the_tag_is_known(partner: Connection) -> None:
    source = "s = dist.isend(y, 1, tag=5)\nr = dist.irecv(x, 1, tag=5)\nr.wait()\ns.wait()"
    assert _waits_for(source, partner, 5) == (Transfer(kind="recv", peer=1, tag=5),)


def test_a_wait_for_something_else_waits_for_no_rank(partner: Connection) -> None:
    """What is sent meanwhile does not matter."""
    sent = dist.isend(torch.ones(2), 1)
    event = threading.Event()
    seen: list[tuple[Transfer, ...]] = []
    thread = threading.Thread(target=lambda: (seen.append(awaited_transfers()), event.set()))
    thread.start()
    event.wait(HANG_S)
    thread.join(HANG_S)
    assert seen == [()]
    partner.send(0)
    dist.recv(torch.zeros(2), 1)
    sent.wait()


def test_another_wait_is_no_wait_for_what_was_sent_before(partner: Connection) -> None:
    class Other:
        """Its `wait` is C code that lasts until someone has looked."""

        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.lock.acquire()
            self.wait = self.lock.acquire

    other = Other()
    seen: list[tuple[Transfer, ...]] = []

    def look() -> None:
        time.sleep(0.2)
        seen.append(awaited_transfers())
        partner.send(0)
        other.lock.release()

    source = "s = dist.isend(y, 1)\nother.wait()\ndist.recv(x, 1)\ns.wait()"
    know_source(CELL, source)
    thread = threading.Thread(target=look)
    thread.start()
    names = {"dist": dist, "x": torch.zeros(2), "y": torch.ones(2), "other": other}
    exec(compile(source, CELL, "exec"), names)
    thread.join(HANG_S)
    assert seen == [()]


def test_an_error_of_torchs_is_raised_as_before(partner: Connection) -> None:
    assert partner
    with pytest.raises(TypeError, match="incompatible function arguments"):
        dist.group.WORLD.send([torch.ones(2)], "1", 0)  # type: ignore[union-attr]
    assert sys.exc_info() == (None, None, None)
