"""The adapter to torch's Flight Recorder, on a real process group of gloo."""

from __future__ import annotations

import itertools
import json
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d

from ddp_magic.wire.collectives import GroupRecord
from ddp_magic.worker.watch.flight_recorder import FlightRecorder
from ddp_magic.worker.watch.pending import Numbers
from tests.limits import HANG_S, within
from tests.unit.worker.groups import leave_group

pytestmark = pytest.mark.skipif(
    not hasattr(c10d, "_dump_fr_trace"), reason="this torch records nothing of gloo"
)


SETTLE_S = 1.0


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    leave_group()


def _completed(recorder: FlightRecorder, before: Numbers) -> GroupRecord:
    """Return the record of the one group used; gloo notes a moment later what has completed.

    Two of its threads may note two collectives in the other order: then the number of the last one
    that has completed is too low for good.
    """
    began = time.monotonic()
    while True:
        (record,) = [record for record in recorder.groups(before) if record.operations]
        done = all(operation.done for operation in record.operations)
        is_late = time.monotonic() - began > SETTLE_S
        if done and (record.enqueued == record.completed or is_late):
            return record
        assert within(time.monotonic() - began, HANG_S)


@pytest.mark.usefixtures("group")
def test_a_record_says_what_was_called_with_what() -> None:
    before = FlightRecorder().numbers()
    dist.all_reduce(torch.ones(2, 3))
    dist.broadcast(torch.ones(4, dtype=torch.int64), 0)
    record = _completed(FlightRecorder(), before)
    assert (record.backend, record.title, record.ranks) == ("gloo", "default_pg", (0,))
    assert record.enqueued == record.operations[-1].number
    first, second = record.operations
    assert (first.name, first.inputs, first.dtypes, first.done) == (
        "all_reduce", ((2, 3),), ("Float",), True,
    )  # fmt: skip
    assert (second.name, second.inputs, second.dtypes) == ("broadcast", ((4,),), ("Long",))
    assert first.created <= second.created


@pytest.mark.usefixtures("group")
def test_the_numbers_are_those_of_the_records() -> None:
    """Groups of earlier tests stay; gloo may yet note what they have called."""
    recorder = FlightRecorder()
    before, others = recorder.numbers(), recorder.by_key(recorder.numbers())
    dist.barrier()
    record = _completed(recorder, before)
    numbers = recorder.numbers()
    assert (record.enqueued, record.completed) in numbers.values()
    by_key = recorder.by_key(numbers)
    assert by_key[record.key] == (record.enqueued, record.completed)
    assert others.keys() <= by_key.keys()


def test_a_group_of_the_same_name_is_another_group(tmp_path: Path) -> None:
    """The default group of a session is created anew, and counts from 1 again."""
    recorder = FlightRecorder()
    for n in (3, 2):
        store = dist.FileStore(str(tmp_path / f"store{n}"), 1)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        for _ in range(n):
            dist.barrier()
        (record,) = [r for r in recorder.groups() if r.title == "default_pg"]
        assert (record.enqueued, len(record.operations)) == (n, n)
        assert recorder.by_key(recorder.numbers())[record.key][0] == n
        leave_group()


@pytest.mark.usefixtures("group")
def test_what_an_earlier_cell_called_is_left_out() -> None:
    """Its number is in the record, so that ranks can be compared."""
    dist.barrier()
    before = FlightRecorder().numbers()
    dist.barrier()
    (record,) = [r for r in FlightRecorder().groups(before) if r.enqueued > r.before]
    assert [operation.number for operation in record.operations] == [record.before + 1]
    for record in FlightRecorder().groups(FlightRecorder().numbers()):
        assert (record.operations, record.enqueued) == ((), record.before)


def _in_a_fresh_process(text: str, tmp_path: Path) -> list[str]:
    """Return what a program prints, split at spaces."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", text, tmp_path / "store"],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done
    return done.stdout.split()


OVERWRITTEN = """
import sys
import torch.distributed as dist
from ddp_magic.worker.watch.flight_recorder import FlightRecorder
store = dist.FileStore(sys.argv[1], 1)
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
other, recorder = dist.new_group([0], group_desc="metrics"), FlightRecorder()
dist.barrier()
for _ in range(5000):
    dist.barrier(other)
print(*(f"{group.title}:{group.enqueued}" for group in recorder.groups()))
"""


def test_a_group_whose_operations_were_overwritten_at_once_has_its_name(tmp_path: Path) -> None:
    """Another group's operations fill the record before anyone reads it."""
    assert set(_in_a_fresh_process(OVERWRITTEN, tmp_path)) == {"default_pg:1", "metrics:5000"}


AFTER_SENDS = """
import sys, torch, os
import torch.distributed as dist
from ddp_magic.worker.watch.flight_recorder import FlightRecorder
from ddp_magic.worker.watch.transfers import remember_transfers
rank = 0 if os.fork() else 1
store = dist.FileStore(sys.argv[1], 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
remember_transfers()
recorder = FlightRecorder()
for sends in (0, 3):
    for _ in range(sends):
        dist.recv(torch.ones(1), 0) if rank else dist.send(torch.ones(1), 1)
    dist.barrier()
    if rank == 0:
        print(*(enqueued for enqueued, _ in recorder.numbers().values()))
sys.stdout.flush()
os._exit(0)
"""


def test_numbers_are_of_collectives_alone_from_the_first_one(tmp_path: Path) -> None:
    """gloo's numbers jump by the sends and receives before a collective."""
    assert _in_a_fresh_process(AFTER_SENDS, tmp_path) == ["1", "2"]


def test_a_torch_without_the_recorder_has_no_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a rank waits for is told from its stack then."""
    for name in ("_dump_fr_trace", "_dump_nccl_trace_json"):
        monkeypatch.delattr(c10d, name, raising=False)
    assert FlightRecorder().numbers() == {}
    assert FlightRecorder().groups() == ()


@pytest.mark.parametrize("answer", [b"", b"[]", b"\xff", pickle.dumps([]), pickle.dumps({})])
def test_a_record_that_cannot_be_read_is_none(
    monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(c10d, "_dump_fr_trace", lambda *_: answer)
    monkeypatch.setattr(c10d, "_dump_nccl_trace_json", lambda *_: answer, raising=False)
    assert FlightRecorder().numbers() == {}
    assert FlightRecorder().groups() == ()


@pytest.mark.usefixtures("group")
def test_both_forms_of_a_record_are_read_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL's is read as JSON."""
    before = FlightRecorder().numbers()
    dist.all_reduce(torch.ones(2, 3))
    dist.barrier()
    expected = _completed(FlightRecorder(), before)
    monkeypatch.setattr(c10d, "_dump_nccl_trace_json", c10d._dump_fr_trace_json, raising=False)
    monkeypatch.delattr(c10d, "_dump_fr_trace")
    before = {("nccl", group): numbers for (_, group), numbers in before.items()}
    (record,) = [record for record in FlightRecorder().groups(before) if record.operations]
    assert record == replace(expected, backend="nccl")


@pytest.mark.usefixtures("group")
def test_new_calls_are_returned_once_and_lost_ones_counted() -> None:
    """The record keeps the last ones; torch reads how many when it is imported."""
    recorder = FlightRecorder()
    recorder.new_calls()
    assert recorder.new_calls() == ([], 0)
    for _ in range(3):
        dist.all_reduce(torch.ones(2, 3))
    found, lost = recorder.new_calls()
    assert [(call.name, call.bytes, call.duration_s) for call in found] == [
        ("all_reduce", 24, None)
    ] * 3
    assert lost == 0
    assert [b.number - a.number for a, b in itertools.pairwise(found)] == [1, 1]
    many = 5000
    for _ in range(many):
        dist.all_reduce(torch.ones(1))
    found, lost = recorder.new_calls()
    assert len(found) + lost == many
    assert recorder.describe(found[0].key) == ("default_pg", (0,))


@pytest.mark.usefixtures("group")
def test_a_collective_is_pending_until_it_has_completed() -> None:
    """By the group's name, which the record of its first collective has."""
    recorder = FlightRecorder()
    before = recorder.numbers()
    dist.barrier()
    _completed(recorder, before)
    numbers = recorder.numbers()
    assert recorder.pending(numbers) == {}
    key = max(numbers, key=lambda key: int(key[1]))  # those of earlier tests are there too
    enqueued, completed = numbers[key]
    later = {**numbers, key: (enqueued + 1, completed)}
    assert list(recorder.pending(later).values()) == [completed]
    assert recorder.pending({("gloo", "99"): (2, 1)}) == {}


def test_a_group_that_is_gone_waits_for_nothing(tmp_path: Path) -> None:
    """gloo may not have noted the completion of its last collective; a later group has its name."""
    recorder = FlightRecorder()
    before = recorder.numbers()
    for made in range(2):
        store = dist.FileStore(str(tmp_path / f"store{made}"), 1)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        dist.barrier()
        _completed(recorder, before)
        numbers = dict(recorder.numbers())
        key = max(numbers, key=lambda key: int(key[1]))
        enqueued, completed = numbers[key]
        lost = {**before, key: (enqueued + 1, completed)}
        assert list(recorder.pending(lost).values()) == [completed]
        assert recorder.pending({**numbers, **before}) == {}
        leave_group()
        assert recorder.pending(lost) == {}
        before = {**numbers, key: (enqueued + 1, completed)}


def test_a_duration_that_comes_later_is_returned_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL's records have it once the GPU has passed the collective's events."""
    entry = {
        "record_id": 4, "pg_id": 0, "process_group": ["0", "default_pg"], "is_p2p": False,
        "collective_seq_id": 7, "p2p_seq_id": 0, "op_id": 7, "profiling_name": "nccl:all_reduce",
        "time_created_ns": 10**9, "retired": False, "state": "scheduled",
        "input_sizes": [[4]], "output_sizes": [[4]], "input_dtypes": ["BFloat16"],
    }  # fmt: skip
    answers = [entry, entry, {**entry, "duration_ms": 2.5}, {**entry, "duration_ms": 2.5}]
    monkeypatch.delattr(c10d, "_dump_fr_trace", raising=False)
    monkeypatch.setattr(
        c10d,
        "_dump_nccl_trace_json",
        lambda _entries, _active: json.dumps({"entries": [answers.pop(0)]}),
        raising=False,
    )
    recorder = FlightRecorder()
    calls = [[(c.bytes, c.duration_s) for c in recorder.new_calls()[0]] for _ in range(4)]
    assert calls == [[(8, None)], [], [(8, 0.0025)], []]


FIRST_COLLECTIVE = """
import sys, threading, time
import torch.distributed as dist
from ddp_magic.worker.watch.flight_recorder import FlightRecorder
from ddp_magic.worker.watch.torch_records import STILL_S
store = dist.FileStore(sys.argv[1], 1)
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
dist.barrier()
used = FlightRecorder().numbers()
second, recorder, numbers = dist.new_group([0]), FlightRecorder(), []
begun, done = threading.Lock(), threading.Lock()
begun.acquire(), done.acquire()
def read():
    begun.acquire()
    numbers.append(recorder.numbers())  # the second group may be entering the record
    time.sleep(5 * STILL_S)
    numbers.append(recorder.numbers())  # it has been there for a while
    done.release()
threading.Thread(target=read, daemon=True).start()
call = "begun.release(); done.acquire(timeout=60)"  # in C, as a function of torch's waits
exec(compile(call, "/site/torch/distributed/c10d.py", "exec"))
dist.barrier(second)
print(len(used), *map(len, numbers), len(recorder.numbers()))
"""


def test_nothing_is_read_while_a_group_may_be_entering_the_record(tmp_path: Path) -> None:
    """torch has no lock for that: another thread that reads would crash the process."""
    assert _in_a_fresh_process(FIRST_COLLECTIVE, tmp_path) == ["1", "0", "1", "2"]
