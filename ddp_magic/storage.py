"""Run directories: where a run keeps its cell, its socket and its ranks' whole output.

They lie in one directory of the user's, closed to others, and are kept for 7 days or until they
take 1 GB together, whatever became of the kernel that made them.
"""

from __future__ import annotations

import getpass
import itertools
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

KEEP_S = 7 * 24 * 3600
KEEP_BYTES = 10**9
_numbers = itertools.count(1)


def runs_directory() -> Path:
    """Return the directory of all runs of this user, made if it is missing.

    Raises:
        PermissionError: Something that is not this user's, or open to others, has its name.
    """
    path = Path(tempfile.gettempdir()) / f"ddp_magic-{_user()}"
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PermissionError(f"{path} is not a directory of yours; set TMPDIR to another place")
    if status.st_mode & 0o077:
        path.chmod(0o700)
    return path


def new_run_directory() -> Path:
    """Make the directory of the next run of this kernel; its name is the run's id."""
    root = runs_directory()
    prune(root)
    stamp = time.strftime("%m%d-%H%M%S")
    while True:
        path = root / f"{stamp}-{os.getpid()}-{next(_numbers)}"
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return path


def prune(root: Path, *, keep_s: float = KEEP_S, keep_bytes: int = KEEP_BYTES) -> None:
    """Remove the oldest runs beyond `keep_s` seconds of age or `keep_bytes` in all.

    A run that may still be under way (its socket is there, and it is not old) is left alone.
    """
    sizes = {}
    for path in root.iterdir():
        files = [p.lstat() for p in path.rglob("*") if p.is_file() or p.is_socket()]
        newest = max((f.st_mtime for f in files), default=path.lstat().st_mtime)
        sizes[path] = (newest, sum(f.st_size for f in files))
    total = 0
    for path, (newest, size) in sorted(sizes.items(), key=lambda item: -item[1][0]):
        total += size
        old = time.time() - newest > keep_s
        busy = (path / "socket").exists()
        if old or (total > keep_bytes and not busy):
            shutil.rmtree(path, ignore_errors=True)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
