"""The adapter to torch's Flight Recorder, on a real process group of gloo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d

from ddp_magic.worker import flight_recorder

pytestmark = pytest.mark.skipif(
    not hasattr(c10d, "_dump_fr_trace_json"), reason="this torch records nothing of gloo"
)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_a_record_says_what_was_called_with_what() -> None:
    before = flight_recorder.numbers()
    dist.all_reduce(torch.ones(2, 3))
    dist.broadcast(torch.ones(4, dtype=torch.int64), 0)
    (record,) = [record for record in flight_recorder.groups(before) if record.operations]
    assert (record.backend, record.title, record.ranks) == ("gloo", "default_pg", (0,))
    assert record.enqueued == record.completed == record.operations[-1].number
    first, second = record.operations
    assert (first.name, first.inputs, first.dtypes, first.done) == (
        "all_reduce", ((2, 3),), ("Float",), True,
    )  # fmt: skip
    assert (second.name, second.inputs, second.dtypes) == ("broadcast", ((4,),), ("Long",))
    assert first.created <= second.created


@pytest.mark.usefixtures("group")
def test_the_numbers_are_those_of_the_records() -> None:
    before = flight_recorder.numbers()
    dist.barrier()
    (key,) = [key for key, value in flight_recorder.numbers().items() if before.get(key) != value]
    (record,) = [record for record in flight_recorder.groups() if record.key == key]
    assert flight_recorder.numbers()[key] == (record.enqueued, record.completed)


@pytest.mark.usefixtures("group")
def test_what_an_earlier_cell_called_is_left_out() -> None:
    """Its number is in the record, so that ranks can be compared."""
    dist.barrier()
    before = flight_recorder.numbers()
    dist.barrier()
    (record,) = [r for r in flight_recorder.groups(before) if r.enqueued > r.before]
    assert [operation.number for operation in record.operations] == [record.before + 1]
    for record in flight_recorder.groups(flight_recorder.numbers()):
        assert (record.operations, record.enqueued) == ((), record.before)


def test_a_torch_without_the_recorder_has_no_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a rank waits for is told from its stack then."""
    for name in ("_dump_fr_trace_json", "_dump_nccl_trace_json"):
        monkeypatch.delattr(c10d, name, raising=False)
    assert flight_recorder.numbers() == {}
    assert flight_recorder.groups() == ()


@pytest.mark.parametrize("answer", ["", "[]", "{}", '{"pg_status": {}}', "\xff"])
def test_a_record_that_cannot_be_read_is_none(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setattr(c10d, "_dump_fr_trace_json", lambda _entries, _active: answer)
    monkeypatch.delattr(c10d, "_dump_nccl_trace_json", raising=False)
    assert flight_recorder.numbers() == {}
    assert flight_recorder.groups() == ()
