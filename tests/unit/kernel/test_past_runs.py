"""Runs that other kernels have left on disk."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from ddp_magic.display.journal.journal import Journal
from ddp_magic.display.rank import Rank
from ddp_magic.display.record import Background, RunRecord
from ddp_magic.kernel.past_runs import MAX_RUNS, START_S, PastRuns
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.states import State
from tests.limits import HANG_S, within

DEAD = 4194303  # no process has this number


def run(
    root: Path,
    run_id: str,
    *,
    age_s: float = 100.0,
    kernel: int = DEAD,
    logs: str = "",
    notebook: int | None = None,
) -> None:
    """Leave a run of one rank, and its log unless that is a session's.

    Args:
        root: Where runs lie.
        run_id: Its name.
        age_s: When it began.
        kernel: Process id of its kernel or host.
        logs: The run in whose directory its logs are; empty for its own.
        notebook: Process id of the notebook that has started its host; None for no background run.
    """
    directory = RunDirectory(root / run_id)
    directory.make_again()
    log_directory = RunDirectory(root / logs) if logs else directory
    began = time.time() - age_s
    record = RunRecord(
        id=run_id,
        label="Cell In[1]",
        log_directory=log_directory,
        ranks=[Rank(rank=0, log=log_directory.rank_log(0))],
        started=began,
        ended=began + 1,
        state=State.SUCCEEDED,
        background=None if notebook is None else Background(kernel=notebook),
    )
    writer = Journal(directory.journal)
    writer.begin(record)
    writer.end(record)
    content = directory.journal.read_text()
    if kernel:
        words = content.partition('"kernel": ')
        content = words[0] + words[1] + str(kernel) + words[2].lstrip("0123456789")
    directory.journal.write_text(content)
    if not logs:
        directory.rank_log(0).write_text(f"{run_id} a\n{run_id} b\n")


def test_the_newest_run_is_found(tmp_path: Path) -> None:
    """This kernel's before those of others; by the end of its id; of last year, last."""
    for run_id in ("0101-000000-7-1", "0101-000000-7-10", "0101-000000-7-9", "1231-235959-7-11"):
        run(tmp_path, run_id)
    past = PastRuns(lambda: (), [tmp_path])
    assert past.find(None).id == "0101-000000-7-10"
    assert past.find("7-1").id == "0101-000000-7-1"
    assert past.find("-11").id == "1231-235959-7-11"
    assert PastRuns(lambda: ["0101-000000-7-9"], [tmp_path]).find("").id == "0101-000000-7-9"
    with pytest.raises(ValueError, match="no run 'x' is left: runs are kept for 7 days"):
        past.find("x")


def test_runs_of_kernels_that_have_ended_are_listed(tmp_path: Path) -> None:
    """Those of a day, the newest ones; not those of a kernel that is alive, as this process."""
    for number in range(MAX_RUNS + 5):
        run(tmp_path, f"0101-0000{number:02}-7-{number}")
    run(tmp_path, "0102-000000-8-1", kernel=0, age_s=0.0)
    run(tmp_path, "0101-000000-6-1", age_s=2 * 24 * 3600)
    (tmp_path / "0102-000000-9-1").mkdir()  # of an older version
    lines = PastRuns(lambda: (), [tmp_path]).of_ended_notebooks()
    assert len(lines) == MAX_RUNS
    assert [line.split()[1] for line in lines[:2]] == ["0101-000024-7-24", "0101-000023-7-23"]
    assert " · Cell In[1] · 1 rank · 1.0 s · ok · started " in lines[0]


def test_a_background_run_is_its_notebooks(tmp_path: Path) -> None:
    """Its host has ended with it; another notebook lists it once the notebook has ended too."""
    run(tmp_path, "0101-000000-7-1", notebook=os.getpid(), age_s=0.0)
    run(tmp_path, "0101-000000-7-2", notebook=DEAD)
    run(tmp_path, "0101-000000-7-3", notebook=DEAD)
    past = PastRuns(lambda: ["0101-000000-7-3"], [tmp_path])  # the third one is attached here
    assert [line.split()[1] for line in past.of_ended_notebooks()] == ["0101-000000-7-2"]


def test_logs_without_an_id_say_of_which_run_they_are(tmp_path: Path) -> None:
    """The newest run of this notebook that has any."""
    run(tmp_path, "0101-000000-7-1")
    run(tmp_path, "0101-000001-7-2")
    run(tmp_path, "0101-000002-8-1")
    past = PastRuns(lambda: ["0101-000000-7-1", "0101-000001-7-2"], [tmp_path])
    RunDirectory(tmp_path / "0101-000001-7-2").rank_log(0).unlink()
    assert past.title_of_logs().startswith("run 0101-000000-7-1 · Cell In[1] · 1 rank · ")
    assert [*past.logs(None, 0, 1)] == ["0101-000000-7-1 b"]
    silent = PastRuns(lambda: ["0101-000001-7-2"], [tmp_path])
    with pytest.raises(ValueError, match="the runs of this notebook wrote nothing"):
        silent.title_of_logs()


def test_logs_are_those_of_the_runs_session(tmp_path: Path) -> None:
    """All, of one rank, the last lines; also of runs whose output was not kept."""
    run(tmp_path, "0101-000000-7-1")
    run(tmp_path, "0101-000001-7-2", logs="0101-000000-7-1")
    past = PastRuns(lambda: (), [tmp_path])
    assert [*past.logs("7-2", None, None)] == [
        "[rank 0] 0101-000000-7-1 a",
        "[rank 0] 0101-000000-7-1 b",
    ]
    assert [*past.logs("7-1", 0, 1)] == ["0101-000000-7-1 b"]
    assert [*past.logs("7-1", 0, 0)] == []
    RunDirectory(tmp_path / "0101-000000-7-1").journal.unlink()
    assert len([*past.logs("7-1", None, None)]) == 2
    with pytest.raises(ValueError, match=r"rank 3 of run 0101-000000-7-1 wrote nothing; .*: 0"):
        [*past.logs("7-1", 3, None)]
    with pytest.raises(ValueError, match="no run 'x' with logs is left"):
        [*past.logs("x", None, None)]


def test_logs_are_lines_as_a_notebook_shows_them(tmp_path: Path) -> None:
    """Whatever a rank wrote leaves the labels alone, and ends a line only with a newline."""
    run(tmp_path, "0101-000000-7-1")
    log = RunDirectory(tmp_path / "0101-000000-7-1").rank_log(0)
    log.write_bytes(
        b"\b\b\bx\n\x1b]8;;u\x07link\x1b]8;;\x07\n0%\r9%\r\na\x0bb\xe2\x80\xa8c \xff\nrest"
    )
    past = PastRuns(lambda: (), [tmp_path])
    assert [*past.logs("7-1", 0, None)] == ["x", "link", "9%", "a\x0bb\u2028c \ufffd", "rest"]


def test_a_run_that_has_just_been_made_is_waited_for(tmp_path: Path) -> None:
    """The host of a background run begins its journal some seconds after it was announced."""
    (tmp_path / "0102-000000-9-1").mkdir()
    past = PastRuns(lambda: (), [tmp_path])
    begin = threading.Timer(0.3, run, (tmp_path, "0102-000000-9-1"))
    begin.start()
    assert past.find("9-1").id == "0102-000000-9-1"
    begin.join(HANG_S)
    (tmp_path / "0102-000000-9-2").mkdir()
    began = time.monotonic()
    past.wait_for_start("9-2", 0.2)
    past.wait_for_start("unknown", HANG_S)
    assert within(time.monotonic() - began, HANG_S)


def test_a_run_of_this_kernel_that_is_starting_is_the_newest(tmp_path: Path) -> None:
    """Not that of another notebook, nor an earlier one; others' starts are not waited for."""
    run(tmp_path, "0102-000000-8-1")
    run(tmp_path, "0102-000000-9-1")
    (tmp_path / "0102-000001-9-2").mkdir()
    own = PastRuns(lambda: ["0102-000000-9-1", "0102-000001-9-2"], [tmp_path])
    begin = threading.Timer(0.3, run, (tmp_path, "0102-000001-9-2"))
    begin.start()
    assert own.find(None).id == "0102-000001-9-2"
    begin.join(HANG_S)
    (tmp_path / "0102-000003-9-3").mkdir()
    began = time.monotonic()
    assert PastRuns(lambda: ["0102-000000-8-1"], [tmp_path]).find(None).id == "0102-000000-8-1"
    assert within(time.monotonic() - began, START_S / 6)


def test_a_run_of_this_kernel_that_left_nothing_is_not_replaced_by_another_s(
    tmp_path: Path,
) -> None:
    run(tmp_path, "0102-000000-8-1")
    with pytest.raises(ValueError, match="no run of this notebook is left"):
        PastRuns(lambda: ["0102-000000-9-1"], [tmp_path]).find(None)
