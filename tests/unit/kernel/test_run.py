"""What becomes of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ddp_magic.display.record import RunRecord
from ddp_magic.kernel.cell import Cell
from ddp_magic.kernel.names import Names
from ddp_magic.kernel.run import Options, Run, cell_file
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.kernel_events import RunEvent
from ddp_magic.wire.states import State


class Group:
    """A worker group that cannot be ended."""

    started = True
    kept = False
    ended = True

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory

    def rejoin(self) -> list[RunEvent]:
        return []

    def drain(self) -> list[RunEvent]:
        return []

    def close(self) -> None:
        raise StopIteration


class Screen:
    """Shows nothing."""

    progress: Mapping[int, str] = {}

    def start(self, record: RunRecord) -> None: ...
    def take(self, event: RunEvent) -> None: ...
    def tick(self, record: RunRecord) -> None: ...
    def finish(self, record: RunRecord) -> None: ...


def test_a_run_whose_end_fails_has_failed(tmp_path: Path) -> None:
    """It is not RUNNING for ever in the status; the error is raised."""
    group: Any = Group(RunDirectory(tmp_path))
    run = Run(Cell("pass", Names(frozenset(), frozenset())), Options(nproc=1), group=group)
    with pytest.raises(StopIteration):
        run.execute(Screen(), engine=None, sys_path=[])  # type: ignore[arg-type]
    assert run.state is State.FAILED
    assert run.ended is not None


def test_what_a_cell_calls_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the working directory that is not there, nor another cell's of the session."""
    monkeypatch.chdir(tmp_path)
    cell = Path("/runs/1127-1/cell.py")
    assert cell_file(cell, 5, set()) == str(tmp_path / "cell_5.py")
    assert cell_file(cell, None, set()) == str(tmp_path / "1127-1.py")
    (tmp_path / "cell_5.py").touch()
    assert cell_file(cell, 5, {str(tmp_path / "cell_5_2.py")}) == str(tmp_path / "cell_5_3.py")
