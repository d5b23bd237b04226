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
import threading
import time
from pathlib import Path

KEEP_S = 7 * 24 * 3600
KEEP_BYTES = 10**9
PRUNE_EVERY_S = 600.0
_numbers = itertools.count(1)
_pruned: float | None = None


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
    stamp = time.strftime("%m%d-%H%M%S")
    while True:
        path = root / f"{stamp}-{os.getpid()}-{next(_numbers)}"
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return path


def tidy(directory: Path) -> None:
    """Remove from the directory of a run that has ended what nobody will read."""
    for path in directory.iterdir():
        # The process group's store; what ranks leave for their children (`cell_main`).
        ours = path.name.startswith(("store", "children"))
        if path.is_file() and (ours or path.stat().st_size == 0):
            path.unlink(missing_ok=True)


def prune_now_and_then() -> threading.Thread | None:
    """Remove old runs in a thread of its own: with thousands of them it takes a while.

    Returns:
        The thread; None where it has been done less than `PRUNE_EVERY_S` ago.
    """
    global _pruned  # noqa: PLW0603 -- one clock for the process
    now = time.monotonic()
    if _pruned is not None and now - _pruned < PRUNE_EVERY_S:
        return None
    _pruned = now
    thread = threading.Thread(target=prune, args=(runs_directory(),), daemon=True)
    thread.start()
    return thread


def prune(root: Path, *, keep_s: float = KEEP_S, keep_bytes: int = KEEP_BYTES) -> None:
    """Remove the oldest runs beyond `keep_s` seconds of age or `keep_bytes` in all.

    A run that may still be under way (its socket is there, and it is not old) is left alone.
    """
    sizes = {}
    for path in root.iterdir():
        try:
            files = [p.lstat() for p in path.rglob("*") if p.is_file() or p.is_socket()]
            newest = max((f.st_mtime for f in files), default=path.lstat().st_mtime)
        except OSError:  # another kernel removes it, or its run does
            continue
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
