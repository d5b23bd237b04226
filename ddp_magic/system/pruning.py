"""Removes old runs: after 7 days, or when all of them take more than 1 GB together."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.system.run_places import NAME, RUN_ID, is_ours, temporary_folders

KEEP_S = 7 * 24 * 3600
KEEP_BYTES = 10**9
PRUNE_EVERY_S = 600.0
_PRUNED = ".pruned"  # says when this was done last, by whichever kernel


def prune_all(roots: list[Path]) -> None:
    """Remove old runs there, and those that other kernels left in the temporary folders."""
    found = list(roots)
    for parent in temporary_folders():
        others = parent.glob(f"{NAME}-*")  # of other kernels, and of earlier versions
        found += [path for path in others if path not in roots and is_ours(path)]
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


def prune(root: Path, *, keep_s: float = KEEP_S, keep_bytes: int = KEEP_BYTES) -> None:
    """Remove the oldest runs beyond `keep_s` seconds of age or `keep_bytes` in all.

    A run that may still be under way (its socket is there, and it is not old), or that holds values
    of a background run, is left alone.
    """
    sizes = {}
    try:
        with os.scandir(root) as entries:
            folders = [entry.path for entry in entries if RUN_ID.fullmatch(entry.name)]
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
