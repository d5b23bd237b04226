"""The adapter to torch's Flight Recorder, on a real process group of gloo."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d

from ddp_magic.wire.collectives import GroupRecord
from ddp_magic.worker.flight_recorder import FlightRecorder, Numbers
from tests.limits import HANG_S, within

pytestmark = pytest.mark.skipif(
    not hasattr(c10d, "_dump_fr_trace"), reason="this torch records nothing of gloo"
)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _completed(recorder: FlightRecorder, before: Numbers) -> GroupRecord:
    """Return the record of the one group used; gloo notes a moment later that it has completed."""
    began = time.monotonic()
    while True:
        (record,) = [record for record in recorder.groups(before) if record.operations]
        if record.enqueued == record.completed:
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
    recorder = FlightRecorder()
    before = recorder.numbers()
    dist.barrier()
    record = _completed(recorder, before)
    (key,) = [key for key, value in recorder.numbers().items() if before.get(key) != value]
    assert recorder.numbers()[key] == (record.enqueued, record.completed)
    assert recorder.by_key(recorder.numbers()) == {record.key: (record.enqueued, record.completed)}


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
        dist.destroy_process_group()


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
    dist.all_reduce(torch.ones(2, 3))
    dist.barrier()
    expected = _completed(FlightRecorder(), {})
    monkeypatch.setattr(c10d, "_dump_nccl_trace_json", c10d._dump_fr_trace_json, raising=False)
    monkeypatch.delattr(c10d, "_dump_fr_trace")
    (record,) = [record for record in FlightRecorder().groups() if record.operations]
    assert record == replace(expected, backend="nccl")
