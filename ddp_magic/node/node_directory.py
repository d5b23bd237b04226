"""A run's files on one of several nodes: in a private directory, which the far relay removes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.system.run_places import temporary_folders
from ddp_magic.wire.relay_frames import PIECE_BYTES

_PREFIX = "ddp_magic_node-"
NEW_S = 60.0  # a directory of a relay that may be starting
# Files of a run that somebody reads on the kernel's machine.
_FILES = ("profile*.jsonl", "*.rank*.pt", "*.rank*.txt", "rank*.stacks")


class NodeDirectory:
    """Makes the directory, which lives as long as this process holds its lock.

    Attributes:
        run: The names of its files.

    Raises:
        OSError: There is no place for it on this node.
    """

    def __init__(self) -> None:
        self.run = RunDirectory(_private_directory())
        self._lock = _lock(self.run.path)
        remove_old(self.run.path.parent)
        self._sent: dict[Path, tuple[int, int]] = {}
        self._calls: dict[Path, int] = {}  # how much of these files was sent, in bytes

    def place_of(self, path: Path) -> Path:
        """Return where a file of the kernel's run directory lies on this node."""
        return self.run.path / path.parent.name / path.name

    def write(self, payload: bytes) -> None:
        """Write a file that comes from the kernel (`Kind.FILE`)."""
        head, _, content = payload.partition(b"\0")
        path = self.place_of(Path(json.loads(head)["path"]))
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_bytes(content)

    def new_files(self) -> Iterator[bytes]:
        """Yield the ranks' files that are new or have changed, as `Kind.FILE` carries them."""
        for path in self._files():
            with contextlib.suppress(OSError):
                status = path.stat()
                known = status.st_mtime_ns, status.st_size
                if self._sent.get(path) == known or not status.st_size:
                    continue
                self._sent[path] = known
                folder = "" if path.parent == self.run.path else path.parent.name
                head = json.dumps({"folder": folder, "name": path.name}).encode()
                yield head + b"\0" + path.read_bytes()
        yield from self._new_calls()

    def begin_calls(self, cell: Path, rank: int) -> None:
        """Forget what a rank has called in an earlier attempt at a cell (`--check`).

        Args:
            cell: The cell's file, on this node.
            rank: Which rank; it has not begun.
        """
        path = RunDirectory(cell.parent).calls(rank)
        path.unlink(missing_ok=True)
        self._calls.pop(path, None)

    def _new_calls(self) -> Iterator[bytes]:
        """Yield what was added to the ranks' calls since the last time, or that a file is gone."""
        for path in {*self.run.path.glob("*/rank*.calls"), *self._calls}:
            head = {"folder": path.parent.name, "name": path.name}
            at = self._calls.get(path, 0)
            try:
                with path.open("rb") as file:
                    file.seek(at)
                    while content := file.read(PIECE_BYTES):
                        yield json.dumps({**head, "at": at}).encode() + b"\0" + content
                        self._calls[path] = at = at + len(content)
            except OSError:  # the rank could not write on, and has removed it
                self._calls.pop(path, None)
                yield json.dumps({**head, "at": -1}).encode() + b"\0"

    def _files(self) -> Iterator[Path]:
        for pattern in _FILES:
            yield from self.run.path.glob(pattern)
            yield from self.run.path.glob(f"*/{pattern}")

    def without_its_path(self, payload: bytes) -> bytes:
        """Return a message without the name of this directory: the kernel's has another."""
        return payload.replace(json.dumps(str(self.run)).strip('"').encode(), b"<directory>")

    def remove(self) -> None:
        """Remove it with all that lies there."""
        shutil.rmtree(self.run.path, ignore_errors=True)


def _private_directory() -> Path:
    """Make a directory that is closed to others, where a socket's path is not too long."""
    for parent in temporary_folders():
        with contextlib.suppress(OSError):
            return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    raise OSError("no place for the run's files on this node: set TMPDIR")


def remove_old(parent: Path) -> None:
    """Remove what relays have left that were killed before they could: nobody holds its lock.

    One that has just been made is not locked yet.
    """
    for path in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            is_new = time.time() - status.st_mtime < NEW_S
            if status.st_uid == os.getuid() and not is_new and _lock(path) is not None:
                shutil.rmtree(path, ignore_errors=True)


def _lock(path: Path) -> IO[bytes] | None:
    """Hold a directory for this process; None if another one does."""
    file = (path / "lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
