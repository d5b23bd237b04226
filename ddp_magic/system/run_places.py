"""Where runs may lie: the user's cache directory, or a fresh directory in the temporary folder."""

from __future__ import annotations

import errno
import functools
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from ddp_magic.system.run_directory import SOCKET, RunDirectory

NAME = "ddp_magic"
RUN_ID = re.compile(r"\d{4}-\d{6}-\d+-\d+")
_ID_BYTES = 25  # longest name of a run
_MAX_SOCKET_BYTES = 103  # a Unix socket's path; sun_path holds 104 or 108, with a zero


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
        path = Path(platformdirs.user_cache_path(NAME, appauthor=False))
    except (KeyError, RuntimeError):  # a container's user without a name or a home
        return None
    return path if path.is_absolute() and _is_short(path) else None


def temporary_folders() -> Iterator[Path]:
    """Yield places for a fresh directory. The last ones are in memory, for when disks are full."""
    candidates = ["/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR", ""), "/dev/shm"]  # noqa: S108 -- only a fresh directory is made there
    try:
        candidates.insert(0, tempfile.gettempdir())
    except FileNotFoundError:  # nothing can be written to any that it knows
        pass
    for path in map(Path, dict.fromkeys(candidates)):
        if path.is_absolute() and path.is_dir() and _is_short(path / f"{NAME}-12345678"):
            yield path


def _is_short(root: Path) -> bool:
    return len(os.fsencode(root)) + _ID_BYTES + len(f"//{SOCKET}") <= _MAX_SOCKET_BYTES


def make_private(root: Path) -> Path:
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
    roots = [cache] if cache is not None and is_ours(cache) else []
    for parent in temporary_folders():
        roots += [path for path in parent.glob(f"{NAME}-*") if is_ours(path)]
    return roots


def run_directories(roots: Iterable[Path]) -> list[RunDirectory]:
    """Return the directories of the runs that lie there."""
    paths = [path for root in roots for path in root.iterdir() if RUN_ID.fullmatch(path.name)]
    return [RunDirectory(path) for path in paths]


def is_ours(path: Path) -> bool:
    """Return whether it is a directory of this user's, closed to others."""
    try:
        status = path.lstat()
    except OSError:
        return False
    private = stat.S_ISDIR(status.st_mode) and status.st_mode & 0o777 == 0o700
    return private and status.st_uid == os.getuid()
