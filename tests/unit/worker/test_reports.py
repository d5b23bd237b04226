"""What a rank reports of its cells."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ddp_magic.wire.commands import RunCell
from ddp_magic.wire.worker_events import Collectives, Error, Finished, Idle, Results, WorkerReady
from ddp_magic.worker.reports import Reports
from tests.unit.worker.fakes import FakeChannel


def _reports(rank: int = 1) -> tuple[Reports, list[Any]]:
    channel = FakeChannel()
    return Reports(rank, channel), channel.sent  # type: ignore[arg-type]


def _ends(error: BaseException | None) -> tuple[int, Any]:
    reports, sent = _reports()
    of_cell = Collectives(rank=1, time=4.0, groups=())
    code = reports.end([of_cell], error, None, 5.0)
    assert sent[0] is of_cell  # first: an error may take long to format
    return code, sent[1]


def test_the_end_of_a_cell() -> None:
    """Well, by `sys.exit`, or by an exception."""
    code, event = _ends(None)
    assert (code, type(event), event.code) == (0, Finished, 0)
    code, event = _ends(SystemExit(3))
    assert (code, type(event), event.code) == (3, Finished, 3)
    code, event = _ends(ValueError("boom"))
    assert (code, type(event), event.evalue, event.rank) == (1, Error, "boom", 1)


def test_errors_are_named_by_the_cell_that_runs() -> None:
    reports, _ = _reports()
    assert reports.place.label == "Cell"
    reports.begin_cell(RunCell(path="/run/cell.py", file="/here/cell_5.py", execution_count=5))
    reports.tell_functions({"/tmp/1.py": "Cell In[2]"})
    assert (reports.place.file, reports.place.label) == ("/here/cell_5.py", "Cell In[5]")
    assert reports.place.functions == {"/tmp/1.py": "Cell In[2]"}


def test_a_rank_is_ready_and_idle() -> None:
    reports, sent = _reports()
    reports.ready("cuda:1")
    reports.idle(has_group=False, cuda_error="lost")
    ready, idle = sent
    assert isinstance(ready, WorkerReady)
    assert ready.device == "cuda:1"
    assert isinstance(idle, Idle)
    assert (idle.group, idle.cuda_error) == (False, "lost")


def test_only_values_of_this_rank_are_sent(tmp_path: Path) -> None:
    pull = (("a", 1), ("b", 0), ("c", None))
    reports, sent = _reports()
    reports.results(RunCell(path=str(tmp_path / "cell.py"), pull=pull), {"a": 1, "b": 2, "c": 3})
    (event,) = sent
    assert isinstance(event, Results)
    assert set(event.names) == {"a", "c"}
    assert event.sizes


def test_nothing_is_sent_where_nothing_is_pulled(tmp_path: Path) -> None:
    reports, sent = _reports()
    reports.results(RunCell(path=str(tmp_path / "cell.py"), pull=(("b", 0),)), {"b": 2})
    assert sent == []


def test_a_value_whose_code_is_interrupted_is_named(tmp_path: Path) -> None:
    """The rank goes on; the notebook says why the value is missing."""

    class Slow:
        def __reduce__(self) -> str:
            raise KeyboardInterrupt

    reports, sent = _reports(0)
    reports.results(RunCell(path=str(tmp_path / "cell.py"), pull=(("a", 0),)), {"a": Slow()})
    (event,) = sent
    assert event.names == ()
    assert list(event.failed) == ["a"]


def test_libraries_are_reported() -> None:
    """Modules of the user's own are not."""
    reports, sent = _reports(0)
    reports.imports({"numpy": np, "own": ModuleType("own")})
    (event,) = sent
    assert event.modules == ("numpy",)
    reports.imports({})
    assert len(sent) == 1
