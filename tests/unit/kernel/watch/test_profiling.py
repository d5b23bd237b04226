"""From the files of the ranks to what is shown, and to the trace."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from ddp_magic.display.rank import Rank
from ddp_magic.display.record import RunRecord
from ddp_magic.display.screen import CellScreen
from ddp_magic.kernel.watch import profiling
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.profile import Place, ProfileWriter, Sample, Spent
from ddp_magic.wire.states import State
from tests.unit.fakes import FakeShell

CELL = "/run/cell_5.py"


def _measure(directory: RunDirectory, rank: int, file: str = CELL) -> None:
    """What a rank writes that loads data for a second."""
    began = time.time()
    writer = ProfileWriter(directory.profile(rank), rank, "cpu", began)
    place = writer.place(Place(file, 1, "f"))
    for look in range(1, 51):
        writer.sample(Sample(began + look * 0.02, 0.02, Spent.LOADING, place))
    writer.end(began + 1.0, 0, {}, None)


def test_the_ranks_files_are_read_and_removed(tmp_path: Path) -> None:
    """A rank that wrote nothing, or no profile, is left out."""
    directory = RunDirectory(tmp_path)
    _measure(directory, 0)
    _measure(directory, 2)
    directory.profile(3).write_text("")
    found = profiling.take_profiles(directory, 4)
    assert [profile.rank for profile in found] == [0, 2]
    assert list(tmp_path.iterdir()) == []


def test_lines_that_are_not_the_users_are_not_named(tmp_path: Path) -> None:
    """Those of the cell that `launch` makes."""
    directory = RunDirectory(tmp_path)
    _measure(directory, 0)
    (found,) = profiling.take_profiles(directory, 1, hidden=CELL)
    code = profiling.code_of(CELL, {CELL: "x = 1\n"}, {}, {})
    profile = profiling.profile_of([found], 1, code)
    assert profile is not None
    assert profile.lines == ()


def test_code_is_named_as_in_the_notebook() -> None:
    """This cell, other cells of the session, and functions that were sent from the notebook."""
    sources = {"/tmp/1.py": ["def f(): ...", 2], "/tmp/2.py": ["text", None]}
    cells = {CELL: "x = 1\n", "/o": "def g(): ...\n"}
    code = profiling.code_of(CELL, cells, {CELL: "Cell In[5]", "/o": "Cell In[4]"}, sources)
    assert code.where(Place(CELL, 1)) == "line 1"
    assert code.where(Place("/o", 1)) == "Cell In[4], line 1"
    assert code.where(Place("/tmp/1.py", 1)) == "Cell In[2], line 1"
    assert code.where(Place("/tmp/2.py", 1)) == "2.py, line 1"
    assert code.source(Place(CELL, 1)) == "x = 1"
    assert code.source(Place("/o", 1)) == "def g(): ..."
    assert code.source(Place("/tmp/1.py", 1)) == "def f(): ..."


def test_a_trace_is_json_and_says_where_it_is(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    _measure(directory, 0)
    found = profiling.take_profiles(directory, 1)
    path, code = tmp_path / "trace.json", profiling.code_of(CELL, {}, {}, {})
    line = profiling.write_trace(path, found, code, "Cell In[5]")
    assert line == f"trace: {path} (open it at https://ui.perfetto.dev)"
    assert json.loads(path.read_text())["otherData"]["title"] == "Cell In[5]"


def test_a_trace_that_cannot_be_written_does_not_fail_the_run(tmp_path: Path) -> None:
    code = profiling.code_of(CELL, {}, {}, {})
    assert "no rank has measured anything" in profiling.write_trace(tmp_path, [], code, "")
    directory = RunDirectory(tmp_path)
    _measure(directory, 0)
    found = profiling.take_profiles(directory, 1)
    assert "could not be written to" in profiling.write_trace(tmp_path, found, code, "")


def test_a_screen_ends_with_the_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its figure too, in a notebook; a terminal has no figures."""
    directory = RunDirectory(tmp_path)
    _measure(directory, 0)
    found = profiling.take_profiles(directory, 1)
    profile = profiling.profile_of(found, 1, profiling.code_of(CELL, {CELL: "load()\n"}, {}, {}))
    lines, _ = profiling.shown(profile)
    for notebook in (True, False):
        shell = FakeShell(notebook=notebook)
        screen = CellScreen(shell)  # type: ignore[arg-type]
        record = RunRecord(
            id="run-1", label="Cell In[5]", log_directory=directory, ranks=[Rank(rank=0)],
            closing=lines, figure=b"png",
        )  # fmt: skip
        screen.start(record)
        record.state = State.SUCCEEDED
        screen.finish(record)
        assert "Verdict: input-bound: the rank waits 100 % of its time" in capsys.readouterr().out
        images = [data for data, *_ in shell.published if "image/png" in data]
        assert len(images) == (1 if notebook else 0)


def test_without_a_profile_one_line_says_so() -> None:
    assert profiling.shown(None) == (
        ("there is no profile: no rank ran its cell for long enough",),
        None,
    )
