"""Run directories."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from ddp_magic import storage


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests out of the user's own runs."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_a_run_directory_is_private() -> None:
    """Closed to others, as is the directory that holds all."""
    path = storage.new_run_directory()
    assert path.stat().st_mode & 0o777 == 0o700
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert storage.new_run_directory() != path


def test_an_open_directory_is_closed() -> None:
    """A mode that somebody has widened is set right."""
    storage.runs_directory().chmod(0o755)
    assert storage.runs_directory().stat().st_mode & 0o777 == 0o700


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    """In /tmp anybody may have made the name first."""
    name = storage.runs_directory()
    name.rmdir()
    (tmp_path / "other").mkdir()
    name.symlink_to(tmp_path / "other")
    with pytest.raises(PermissionError, match="TMPDIR"):
        storage.runs_directory()


def test_old_and_big_runs_go() -> None:
    """By age, and beyond the sum of sizes the oldest first; a run under way stays."""
    runs = [storage.new_run_directory() for _ in range(4)]
    for age, run in enumerate(reversed(runs)):
        log = run / "rank0.log"
        log.write_bytes(b"x" * 1000)
        when = time.time() - 100 * age
        os.utime(log, (when, when))
    storage.prune(runs[0].parent, keep_s=250, keep_bytes=10**9)
    assert [run.exists() for run in runs] == [False, True, True, True]
    (runs[1] / "socket").touch()
    when = time.time() - 200
    os.utime(runs[1] / "socket", (when, when))
    storage.prune(runs[0].parent, keep_s=10**9, keep_bytes=1500)
    assert [run.exists() for run in runs] == [False, True, False, True]


def test_a_run_that_has_ended_leaves_what_somebody_reads() -> None:
    """The cell and the ranks' output stay; empty logs and the group's store go."""
    run = storage.new_run_directory()
    for name, text in {"cell.py": "x", "rank0.log": "y", "rank1.log": "", "store0": "z"}.items():
        (run / name).write_text(text)
    storage.tidy(run)
    assert sorted(path.name for path in run.iterdir()) == ["cell.py", "rank0.log"]


def test_old_runs_are_looked_for_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once at the first start, and not again at each of the next."""
    monkeypatch.setattr(storage, "_pruned", None)
    old = storage.new_run_directory()
    os.utime(old, (0, 0))
    thread = storage.prune_now_and_then()
    assert thread is not None
    thread.join(10)
    assert not old.exists()
    assert storage.prune_now_and_then() is None
