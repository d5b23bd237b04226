"""From the files of the ranks to what is shown, and to the trace."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from ddp_magic.display.profiles.profile import Code
from ddp_magic.display.rank import Rank
from ddp_magic.display.record import RunRecord
from ddp_magic.display.screen import CellScreen
from ddp_magic.kernel.cell import Cell
from ddp_magic.kernel.execution.run_code import CodeFiles, RunCode
from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.values.names import Names
from ddp_magic.kernel.watch import profiling
from ddp_magic.kernel.watch.profiling import Profiling
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.profile import Place, ProfileWriter, Sample, Spent
from ddp_magic.wire.states import State
from tests.unit.fakes import FakeShell

CELL = "/run/cell_5.py"
CODE = Code(labels={CELL: ""}, sources={CELL: "load()\n"})


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
    profile = profiling.profile_of([found], 1, CODE)
    assert profile is not None
    assert profile.lines == ()


def test_a_trace_is_json_and_says_where_it_is(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    _measure(directory, 0)
    found = profiling.take_profiles(directory, 1)
    path = tmp_path / "trace.json"
    line = profiling.write_trace(path, found, CODE, "Cell In[5]")
    assert line == f"trace: {path} (open it at https://ui.perfetto.dev)"
    assert json.loads(path.read_text())["otherData"]["title"] == "Cell In[5]"


def test_a_trace_that_cannot_be_written_does_not_fail_the_run(tmp_path: Path) -> None:
    assert "no rank has measured anything" in profiling.write_trace(tmp_path, [], CODE, "")
    directory = RunDirectory(tmp_path)
    _measure(directory, 0)
    found = profiling.take_profiles(directory, 1)
    assert "could not be written to" in profiling.write_trace(tmp_path, found, CODE, "")


def test_a_screen_ends_with_the_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its figure too, in a notebook; a terminal has no figures."""
    directory = RunDirectory(tmp_path)
    _measure(directory, 0)
    found = profiling.take_profiles(directory, 1)
    profile = profiling.profile_of(found, 1, CODE)
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


# --- of a run -------------------------------------------------------------------------------------


def _profiling(directory: Path, **options: Any) -> Profiling:
    cell = Cell("load()\n", Names(frozenset(), frozenset()), number=5)
    code = RunCode(cell, directory / "cell.py", CodeFiles(), is_call=False)
    return Profiling(Options(nproc=1, **options), RunDirectory(directory), code)


def test_a_run_that_is_not_measured_has_nothing_to_show(tmp_path: Path) -> None:
    profiling = _profiling(tmp_path)
    assert profiling.environment() == {}
    assert profiling.finish(nproc=1, restarts=0) is None


def test_a_profile_is_shown_and_a_trace_is_written(tmp_path: Path) -> None:
    """A run that is only traced has a profile too, which is not shown."""
    trace = tmp_path / "trace.json"
    for options in ({"profile": True}, {"trace": trace}, {"profile": True, "trace": trace}):
        _measure(RunDirectory(tmp_path), 0)
        profiling = _profiling(tmp_path, **options)
        assert "TORCH_NCCL_ENABLE_TIMING" in profiling.environment()
        found = profiling.finish(nproc=1, restarts=0)
        assert found is not None
        assert found.profile is not None
        assert (found.figure is not None) == ("profile" in options)
        assert ("Verdict" in "\n".join(found.lines)) == ("profile" in options)
        assert ([line for line in found.lines if str(trace) in line] != []) == ("trace" in options)


def test_an_attempt_begins_its_own_files(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    _measure(directory, 0)
    profiling = _profiling(tmp_path, profile=True)
    profiling.begin_attempt()
    profiling.begin_attempt()
    found = profiling.finish(nproc=1, restarts=1)
    assert found is not None
    assert found.profile is None
