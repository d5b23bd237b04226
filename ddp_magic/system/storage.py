"""Run directories: where a run keeps its cell, its socket and its ranks' whole output.

They lie in the user's cache directory, closed to others, and are kept for 7 days or until they
take 1 GB together, whatever became of the kernel that made them. Where that cannot be (no home
directory, a full disk, a path too long for a socket, something of somebody else's in its place),
they lie in a fresh directory in the temporary folder.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ddp_magic.errors import LaunchError
from ddp_magic.system.pruning import PRUNE_EVERY_S, prune_all
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.system.run_places import (
    NAME,
    cache_directory,
    is_ours,
    make_private,
    temporary_folders,
)

ROOM_BYTES = 64 * 1024  # that must be free where a run begins: for its store, cell, socket


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
                directory = self._new_directory(make_private(root), ROOM_BYTES + cell_bytes)
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
        roots = [root for root in places if root is not None and is_ours(root)]
        thread = threading.Thread(target=prune_all, args=(roots,), daemon=True)
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
        for parent in temporary_folders():
            try:
                self._fresh = Path(tempfile.mkdtemp(prefix=f"{NAME}-", dir=parent))
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
            with contextlib.suppress(OSError):  # it is not empty, or gone
                path.rmdir()


process_storage = RunStorage()  # of this process
