"""Run directories: where a run keeps its cell, its socket and its ranks' whole output.

They lie in the user's cache directory, closed to others, and are kept for 7 days or until they
take 1 GB together, whatever became of the kernel that made them. Where that cannot be (no home
directory, a full disk, a path too long for a socket, something of somebody else's in its place),
they lie in a fresh directory in the temporary folder.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from ddp_magic.errors import LaunchError
from ddp_magic.system.run_directory import SOCKET, RunDirectory

KEEP_S = 7 * 24 * 3600
KEEP_BYTES = 10**9
PRUNE_EVERY_S = 600.0
ROOM_BYTES = 64 * 1024  # that must be free where a run begins: for its store, cell, socket
MAX_SOCKET_BYTES = 103  # a Unix socket's path; sun_path holds 104 or 108, with a zero
_NAME = "ddp_magic"
_PRUNED = ".pruned"  # says when this was done last, by whichever kernel
_ID_BYTES = 25  # longest name of a run
_ID = re.compile(r"\d{4}-\d{6}-\d+-\d+")


class RunStorage:
    """Makes the directories of this process's runs, and removes old ones.

    Args:
        first: Number of the first run.
    """

    def __init__(self, first: int = 1) -> None:
        self._numbers = itertools.count(first)
        self._pruned: float | None = None
        self._fresh: Path | None = None  # in the temporary folder
        self._notes: list[str] = []
        self._said: set[str] = set()

    def new_run_directory(self, cell_bytes: int = 0) -> RunDirectory:
        """Make the directory of the next run; its name is the run's id.

        A message about its place, if there is one, is then in `take_notes`.

        Args:
            cell_bytes: Size of the cell, for which there must be room too.

        Raises:
            LaunchError: There is no place for it.
            OSError: This process can open no more files.
        """
        problems: list[str] = []
        for root in self._roots(problems):
            try:
                directory = self._new_directory(_private(root), ROOM_BYTES + cell_bytes)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    raise  # no place is better: this process can open no more files
                problems.append(f"{root}: {error.strerror or error}")
                self._remove_empty(root)
                continue
            if problems:
                self._note(
                    f"logs are kept in {root}, because other places cannot be used ({problems[0]})"
                )
            return RunDirectory(directory)
        raise LaunchError(
            "no place for the run's files: make room, or set TMPDIR to a directory of yours "
            f"({'; '.join(problems)})"
        )

    def take_notes(self) -> list[str]:
        """Return the messages about where runs are kept, once."""
        notes, self._notes = self._notes, []
        return notes

    def prune_in_background(self) -> threading.Thread | None:
        """Remove old runs in a thread of its own: with thousands of them it takes a while.

        Returns:
            The thread; None if it was done less than `PRUNE_EVERY_S` ago.
        """
        now = time.monotonic()
        if self._pruned is not None and now - self._pruned < PRUNE_EVERY_S:
            return None
        self._pruned = now
        places = (cache_directory(), self._fresh)
        # Not where a link leads, or in a directory of somebody else's.
        roots = [root for root in places if root is not None and _is_ours(root)]
        thread = threading.Thread(target=_prune_all, args=(roots,), daemon=True)
        thread.start()
        return thread

    def _note(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._notes.append(text)

    def _roots(self, problems: list[str]) -> Iterator[Path]:
        """Yield where runs may be kept, the best place first; add to `problems` why not there."""
        if (cache := cache_directory()) is not None:
            yield cache
        if self._fresh is not None:
            yield self._fresh
        for parent in _temporary_folders():
            try:
                self._fresh = Path(tempfile.mkdtemp(prefix=f"{_NAME}-", dir=parent))
            except OSError as error:
                problems.append(f"{parent}: {error.strerror}")
                continue
            yield self._fresh

    def _new_directory(self, root: Path, room_bytes: int) -> Path:
        """Make a run's directory, with room for it.

        Raises:
            OSError: It cannot be made there, or there is no room.
        """
        stamp = time.strftime("%m%d-%H%M%S")
        while True:
            path = root / f"{stamp}-{os.getpid()}-{next(self._numbers)}"
            try:
                path.mkdir(mode=0o700)
            except FileExistsError:
                continue
            break
        probe = path / "room"
        try:
            probe.write_bytes(bytes(room_bytes))
            probe.unlink()
        except OSError:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)
                path.rmdir()  # needs no descriptor, as shutil.rmtree does
            raise
        return path

    def _remove_empty(self, path: Path) -> None:
        """Remove a fresh directory that is of no use."""
        if path == self._fresh:
            try:
                path.rmdir()
            except OSError:  # it is not empty, or gone
                pass


process_storage = RunStorage()  # of this process


def cache_directory() -> Path | None:
    """Return the directory of all runs of this user; None if there is no place for it."""
    path = _cache_path(os.environ.get("HOME"), os.environ.get("XDG_CACHE_HOME"))
    if path is None or path.is_dir():
        return path
    try:
        # No home is made where there is none.
        above = next(p for p in list(path.parents)[:2] if p.exists())
        ours = above.stat().st_uid == os.getuid()
    except (OSError, StopIteration):
        return None
    # Not in the home of somebody else (sudo), where a directory of ours would be in their way.
    return path if ours else None


@functools.lru_cache(maxsize=1)  # each cell asks
def _cache_path(_home: str | None, _cache_home: str | None) -> Path | None:
    """Return where the cache of this user would be, from the environment."""
    import platformdirs

    try:
        path = Path(platformdirs.user_cache_path(_NAME, appauthor=False))
    except (KeyError, RuntimeError):  # a container's user without a name or a home
        return None
    return path if path.is_absolute() and _is_short(path) else None


def _temporary_folders() -> Iterator[Path]:
    """Yield places for a fresh directory. The last ones are in memory, for when disks are full."""
    candidates = ["/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR", ""), "/dev/shm"]  # noqa: S108 -- only a fresh directory is made there
    try:
        candidates.insert(0, tempfile.gettempdir())
    except FileNotFoundError:  # nothing can be written to any that it knows
        pass
    for path in map(Path, dict.fromkeys(candidates)):
        if path.is_absolute() and path.is_dir() and _is_short(path / f"{_NAME}-12345678"):
            yield path


def _is_short(root: Path) -> bool:
    return len(os.fsencode(root)) + _ID_BYTES + len(f"//{SOCKET}") <= MAX_SOCKET_BYTES


def _private(root: Path) -> Path:
    """Make a directory, if it is missing, and see to it that it is the user's own.

    Raises:
        PermissionError: Something that is not this user's has its name.
        OSError: It cannot be made.
    """
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, f"{root.parent} is not a directory") from None
    try:
        root.mkdir(mode=0o700)
    except FileExistsError:
        pass
    status = root.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise PermissionError(errno.EPERM, "it is a symbolic link")
    if not stat.S_ISDIR(status.st_mode):
        raise PermissionError(errno.EPERM, "it is not a directory")
    if status.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "it belongs to another user")
    if status.st_mode & 0o777 != 0o700:
        root.chmod(0o700)
    return root


def run_roots() -> list[Path]:
    """Return the directories in which this user's runs lie, of all kernels."""
    cache = cache_directory()
    roots = [cache] if cache is not None and _is_ours(cache) else []
    for parent in _temporary_folders():
        roots += [path for path in parent.glob(f"{_NAME}-*") if _is_ours(path)]
    return roots


def run_directories(roots: Iterable[Path]) -> list[RunDirectory]:
    """Return the directories of the runs that lie there."""
    paths = [path for root in roots for path in root.iterdir() if _ID.fullmatch(path.name)]
    return [RunDirectory(path) for path in paths]


def _prune_all(roots: list[Path]) -> None:
    found = list(roots)
    for parent in _temporary_folders():
        others = parent.glob(f"{_NAME}-*")  # of other kernels, and of earlier versions
        found += [path for path in others if path not in roots and _is_ours(path)]
    for root in filter(_is_due, found):
        prune(root)


def _is_due(root: Path) -> bool:
    """Return whether no kernel has pruned these runs lately, and note that this one does."""
    stamp = root / _PRUNED
    try:
        if 0 <= time.time() - stamp.stat().st_mtime < PRUNE_EVERY_S:
            return False
    except OSError:  # nobody ever has
        pass
    with contextlib.suppress(OSError):  # a full disk
        stamp.touch()
    return True


def _is_ours(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    private = stat.S_ISDIR(status.st_mode) and status.st_mode & 0o777 == 0o700
    return private and status.st_uid == os.getuid()


def prune(root: Path, *, keep_s: float = KEEP_S, keep_bytes: int = KEEP_BYTES) -> None:
    """Remove the oldest runs beyond `keep_s` seconds of age or `keep_bytes` in all.

    A run that may still be under way (its socket is there, and it is not old), or that holds values
    of a background run, is left alone.
    """
    sizes = {}
    try:
        with os.scandir(root) as entries:
            folders = [entry.path for entry in entries if _ID.fullmatch(entry.name)]
    except OSError:  # it has just been removed
        return
    for folder in folders:
        try:
            files = list(_stats(folder))
            newest = max((f.st_mtime for f in files), default=os.lstat(folder).st_mtime)
        except OSError:  # another kernel removes it, or its run does
            continue
        sizes[Path(folder)] = (newest, sum(f.st_size for f in files))
    total = 0
    for path, (newest, size) in sorted(sizes.items(), key=lambda item: -item[1][0]):
        total += size
        old = time.time() - newest > keep_s
        busy = RunDirectory(path).socket.exists() or RunDirectory(path).has_values
        if old or (total > keep_bytes and not busy):
            shutil.rmtree(path, ignore_errors=True)


def _stats(folder: str) -> Iterator[os.stat_result]:
    """Yield the status of all files and sockets below a folder: of some ten thousand runs, fast."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _stats(entry.path)
            else:
                yield entry.stat(follow_symlinks=False)
