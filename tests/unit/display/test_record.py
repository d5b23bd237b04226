"""What is known of a run, event by event."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddp_magic.display.rank import Rank
from ddp_magic.display.record import RunRecord
from ddp_magic.display.run_words import rank_count
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.events import AgentDone
from ddp_magic.wire.kernel_events import Doing, GroupEnded, NodesGranted, Note
from ddp_magic.wire.worker_events import CellNames, Imported
from tests.unit.fakes import exited, hello, text


def _record() -> RunRecord:
    return RunRecord(
        id="run-1",
        label="Cell In[1]",
        log_directory=RunDirectory(Path("/logs")),
        ranks=[Rank(rank=0), Rank(rank=1)],
    )


def test_an_event_of_a_rank_is_that_ranks() -> None:
    record = _record()
    record.take(hello(1))
    assert [rank.pid for rank in record.ranks] == [None, 101]
    record.take(exited(1, 3))
    assert [rank.code for rank in record.ranks] == [None, 3]


def test_events_of_the_run() -> None:
    """What it does, what its cell imported and bound, how its group ended."""
    record = _record()
    record.take(Doing(text="importing torch"))
    assert record.doing == "importing torch"
    record.take(Doing(text=""))
    record.take(Imported(rank=0, modules=("numpy",)))
    record.take(CellNames(rank=0, names=("a", "f"), values=("a",)))
    record.take(GroupEnded(swept=3))
    assert (record.doing, record.imported, record.bound) == ("", ("numpy",), ("a", "f"))
    assert (record.stayed, record.swept) == (("a",), 3)


@pytest.mark.parametrize("nproc", [1, 2, 3])
def test_the_cluster_chooses_the_number_of_ranks(nproc: int) -> None:
    """Whoever holds the list of ranks sees it; those that stay keep what is known of them."""
    record = _record()
    record.fewest = 1
    assert rank_count(record) == "1 to 2 ranks"
    record.take(hello(0))
    ranks = record.ranks
    record.take(NodesGranted(nnodes=nproc, nproc=nproc))
    assert [rank.rank for rank in ranks] == list(range(nproc))
    assert ranks[0].pid == 100
    assert rank_count(record) == f"{nproc} rank{'s' * (nproc > 1)}"
    assert all(rank.log == Path(f"/logs/rank{rank.rank}.log") for rank in ranks[2:])


def test_other_events_change_nothing() -> None:
    """What is only shown, and what is the group's own."""
    record = _record()
    before = repr(record)
    record.take(Note(text="note"))
    record.take(AgentDone())
    assert repr(record) == before
    assert record.swept == 0


def test_time_stands_still_at_the_end() -> None:
    record = _record()
    record.started = 100.0
    assert record.elapsed_s > 1000
    record.ended = 105.5
    assert record.elapsed_s == 5.5


def test_text_is_counted_and_not_kept() -> None:
    """It is in the rank's log."""
    record = _record()
    record.take(text(0, "x" * 1000, log_bytes=1000))
    assert record.ranks[0].log_span == (0, 1000)
    assert "xxx" not in repr(record)
