"""Run directories."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ddp_magic.errors import LaunchError
from ddp_magic.system.pruning import prune
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.system.run_places import run_roots
from ddp_magic.system.storage import RunStorage
from ddp_magic.wire.channel import Listener


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache directory and a temporary folder of the test's own, with short names."""
    with tempfile.TemporaryDirectory(prefix="d-") as name:
        base = Path(name)
        for folder in ("cache", "tmp"):
            (base / folder).mkdir()
        monkeypatch.setenv("XDG_CACHE_HOME", str(base / "cache"))
        monkeypatch.setattr(tempfile, "tempdir", str(base / "tmp"))
        yield base


@pytest.fixture
def storage(place: Path) -> RunStorage:  # noqa: ARG001 -- it looks at the place when it is used
    return RunStorage()


def test_a_run_directory_is_private_and_in_the_cache(place: Path, storage: RunStorage) -> None:
    """Closed to others, as is the directory that holds all."""
    path = storage.new_run_directory().path
    assert path.parent == place / "cache" / "ddp_magic"
    assert path.stat().st_mode & 0o777 == 0o700
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert storage.new_run_directory() != path
    assert list(path.iterdir()) == []
    assert storage.take_notes() == []


def test_an_open_directory_is_closed(place: Path, storage: RunStorage) -> None:
    """A mode that somebody has widened is set right."""
    root = storage.new_run_directory().path.parent
    root.chmod(0o755)
    assert storage.new_run_directory().path.parent == root
    assert root.stat().st_mode & 0o777 == 0o700
    assert root == place / "cache" / "ddp_magic"


def _link(name: Path) -> None:
    (name.parent / "other").mkdir()
    name.symlink_to(name.parent / "other")


def _dead_link(name: Path) -> None:
    name.symlink_to(name.parent / "nowhere")


def _fifo(name: Path) -> None:
    os.mkfifo(name)


def _strangers(name: Path) -> None:
    name.mkdir()
    os.chown(name, 12345, 12345)


def _strangers_open(name: Path) -> None:
    name.mkdir()
    name.chmod(0o777)
    os.chown(name, 12345, 12345)


def _file_above(name: Path) -> None:
    shutil.rmtree(name.parent)
    name.parent.touch()


NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="makes things another user's")


@pytest.mark.parametrize(
    "put",
    [
        _link,
        _dead_link,
        Path.touch,
        _fifo,
        pytest.param(_strangers, marks=NEEDS_ROOT),
        pytest.param(_strangers_open, marks=NEEDS_ROOT),
        _file_above,
    ],
)
def test_something_in_its_place(
    place: Path, put: Callable[[Path], None], storage: RunStorage
) -> None:
    """It is left as it is and said once; runs go to a fresh private directory, all to the same."""
    name = place / "cache" / "ddp_magic"
    put(name)
    before = name.lstat() if os.path.lexists(name) else None
    path = storage.new_run_directory().path
    assert path.parent.parent == place / "tmp"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert (name.lstat() if before else None) == before
    (note,) = storage.take_notes()
    assert str(name) in note
    assert str(path.parent) in note
    assert "\n" not in note
    assert storage.new_run_directory().path.parent == path.parent
    assert storage.take_notes() == []


@pytest.mark.parametrize("value", ["/nowhere/at/all", "/x" * 60])
def test_a_cache_that_is_no_place(
    place: Path, monkeypatch: pytest.MonkeyPatch, value: str, storage: RunStorage
) -> None:
    """Runs go to the temporary folder, and no folder is made to hold a cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert storage.new_run_directory().path.parent.parent == place / "tmp"
    assert not Path(value).exists()


def test_a_home_that_is_not_there(
    place: Path, monkeypatch: pytest.MonkeyPatch, storage: RunStorage
) -> None:
    """A container's user has none: it is not made."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(place / "home"))
    assert storage.new_run_directory().path.parent.parent == place / "tmp"
    (place / "home").mkdir()
    assert storage.new_run_directory().path.is_relative_to(place / "home")
    assert storage.take_notes() == []


@NEEDS_ROOT
def test_another_users_home(place: Path, storage: RunStorage) -> None:
    """Nothing of ours gets in their way (sudo keeps HOME)."""
    os.chown(place / "cache", 12345, 12345)
    assert storage.new_run_directory().path.parent.parent == place / "tmp"
    assert list((place / "cache").iterdir()) == []


def test_a_socket_fits(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every place that is taken, long as it may be."""
    for length in range(1, 100):
        folder = place / ("x" * length)
        folder.mkdir()
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
        storage = RunStorage(first=10**4 - 1)
        Listener(storage.new_run_directory().socket).close()


def test_a_temporary_folder_that_is_too_long(
    place: Path, monkeypatch: pytest.MonkeyPatch, storage: RunStorage
) -> None:
    """The system's own is taken."""
    long = place / ("x" * 90)
    long.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(long))
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    path = storage.new_run_directory().path
    assert len(str(path)) < 80
    shutil.rmtree(path.parent)


def test_no_place_at_all() -> None:
    """One line, with what to do, where nothing can be written anywhere."""
    code = (
        "import os, tempfile\n"
        "from ddp_magic.system import storage\n"
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "try:\n"
        "    storage.process_storage.new_run_directory()\n"
        "except storage.LaunchError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.count("\n") == 1, done
    assert "TMPDIR" in done.stdout
    assert issubclass(LaunchError, Exception)


def test_a_process_without_descriptors_tries_no_other_place(
    place: Path, storage: RunStorage
) -> None:
    """Each would fail in the same way, and have a new directory."""
    before = sorted(place.rglob("*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            storage.new_run_directory()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    fresh = set(place.rglob("*")) - set(before)
    assert fresh <= {place / "cache", place / "cache" / "ddp_magic"}


def test_what_a_cleaner_removed_is_made_again(place: Path, storage: RunStorage) -> None:
    """The root between two runs, the fresh directory too."""
    shutil.rmtree(storage.new_run_directory().path.parent)
    assert storage.new_run_directory().path.parent == place / "cache" / "ddp_magic"
    shutil.rmtree(place / "cache")
    assert storage.new_run_directory().path.parent == place / "cache" / "ddp_magic"
    shutil.rmtree(place / "cache" / "ddp_magic")
    (place / "cache" / "ddp_magic").touch()
    fresh = storage.new_run_directory().path.parent
    shutil.rmtree(fresh)
    assert storage.new_run_directory().path.parent == fresh
    RunDirectory(place / "nowhere").tidy()
    prune(place / "nowhere")


def test_old_and_big_runs_go(storage: RunStorage) -> None:
    """By age, and beyond the sum of sizes the oldest first; a run under way stays."""
    runs = [storage.new_run_directory().path for _ in range(4)]
    for age, run in enumerate(reversed(runs)):
        log = run / "rank0.log"
        log.write_bytes(b"x" * 1000)
        when = time.time() - 100 * age
        os.utime(log, (when, when))
    prune(runs[0].parent, keep_s=250, keep_bytes=10**9)
    assert [run.exists() for run in runs] == [False, True, True, True]
    (runs[1] / "socket").touch()
    when = time.time() - 200
    os.utime(runs[1] / "socket", (when, when))
    prune(runs[0].parent, keep_s=10**9, keep_bytes=1500)
    assert [run.exists() for run in runs] == [False, True, False, True]


def test_values_that_a_notebook_has_yet_to_fetch_stay(storage: RunStorage) -> None:
    """Until they are old, however large."""
    run = storage.new_run_directory()
    run.kept_values(0).write_bytes(b"x" * 1000)
    prune(run.path.parent, keep_s=10**9, keep_bytes=10)
    assert run.path.exists()
    prune(run.path.parent, keep_s=-1, keep_bytes=10)
    assert not run.path.exists()


def test_what_is_no_run_stays(storage: RunStorage) -> None:
    """Whatever else somebody keeps there."""
    root = storage.new_run_directory().path.parent
    (root / "notes").mkdir()
    os.utime(root / "notes", (0, 0))
    prune(root)
    assert (root / "notes").exists()


def test_a_run_that_has_ended_leaves_what_somebody_reads(storage: RunStorage) -> None:
    """The cell and the ranks' output stay; empty logs and the group's store go."""
    run = storage.new_run_directory().path
    for name, text in {"cell.py": "x", "rank0.log": "y", "rank1.log": "", "store0": "z"}.items():
        (run / name).write_text(text)
    RunDirectory(run).tidy()
    assert sorted(path.name for path in run.iterdir()) == ["cell.py", "rank0.log"]


def test_old_runs_are_looked_for_now_and_then(place: Path, storage: RunStorage) -> None:
    """Once at the first start, and not again at each of the next; other kernels' fresh ones too."""
    old = storage.new_run_directory().path
    elsewhere = place / "tmp" / "ddp_magic-abcd1234" / old.name
    elsewhere.parent.mkdir(mode=0o700)
    elsewhere.mkdir()
    for path in (old, elsewhere):
        os.utime(path, (0, 0))
    thread = storage.prune_in_background()
    assert thread is not None
    thread.join(60)
    assert not old.exists()
    assert not elsewhere.exists()
    assert storage.prune_in_background() is None


@pytest.mark.usefixtures("place")
def test_kernels_do_not_look_for_old_runs_one_after_another(storage: RunStorage) -> None:
    """A look at ten thousand runs takes a second; the next one is due ten minutes later."""
    old = storage.new_run_directory().path
    os.utime(old, (0, 0))
    for due in (True, False, True):
        thread = RunStorage().prune_in_background()
        assert thread is not None
        thread.join(60)
        assert old.exists() is not due
        old.mkdir(exist_ok=True)
        os.utime(old, (0, 0))
        if not due:
            os.utime(old.parent / ".pruned", (0, 0))


@pytest.mark.parametrize("kind", ["a link", "open to others"])
def test_old_runs_are_removed_only_in_a_directory_of_ours(place: Path, kind: str) -> None:
    """Nothing is written or removed where a link leads; what is not ours is not read either."""
    other = place / "other"
    run = other / "1127-120000-1-1"
    run.mkdir(parents=True)
    for path in (run, other):
        os.utime(path, (0, 0))
    root = place / "cache" / "ddp_magic"
    if kind == "a link":
        other.chmod(0o700)
        root.symlink_to(other)
    else:
        other.chmod(0o755)
        other.rename(root)
    thread = RunStorage().prune_in_background()
    assert thread is not None
    thread.join(60)
    assert [path.name for path in root.iterdir()] == [run.name]
    assert root not in run_roots()
