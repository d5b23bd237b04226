"""Reads, while a run goes on, what its ranks have called, and compares it (`--check`)."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import ExitStack, suppress
from typing import BinaryIO

from ddp_magic.display.diagnosis.checks import Comparison
from ddp_magic.system.run_directory import RunDirectory

LOOK_S = 0.05  # between two looks
OTHERS_S = 0.3  # for the other ranks of a group to come to the collective on which some differ
CHUNK_BYTES = 1 << 20


class CallCheck:
    """Compares the collectives of a run's ranks.

    Args:
        directory: Where the ranks write what they call.
        nproc: Number of ranks.
        look_s: Time between two looks, in seconds.
        others_s: How long a difference waits for the ranks that have not come, in seconds.

    Attributes:
        unread: Ranks whose calls are not known: their files could not be written or read.
    """

    def __init__(
        self,
        directory: RunDirectory,
        nproc: int,
        *,
        look_s: float = LOOK_S,
        others_s: float = OTHERS_S,
    ) -> None:
        self.unread: set[int] = set()
        self._directory = directory
        self._nproc = nproc
        self._look_s = look_s
        self._others_s = others_s
        self._comparison = Comparison()
        self._files: dict[int, BinaryIO] = {}
        self._open = ExitStack()
        self._rests = dict.fromkeys(range(nproc), b"")
        self._looked = 0.0
        self._differs_since: float | None = None
        self._missing = ""

    @property
    def checked(self) -> int:
        """Number of collectives that all ranks of their group have called alike."""
        return self._comparison.checked

    def look(self, left: Collection[int] = ()) -> bool:
        """Read on, if it is time; return whether the run is to be stopped.

        Args:
            left: Ranks that have ended their cell, for a while.
        """
        now = time.monotonic()
        if now - self._looked >= self._look_s:
            self._looked = now
            self._read()
        difference = self._comparison.difference
        if difference is None:
            self._missing = "" if self.unread else self._comparison.missing(left)
            return bool(self._missing)
        self._differs_since = self._differs_since or now
        return difference.complete or now - self._differs_since > self._others_s

    def finish(self, *, finished: bool) -> str:
        """Read the rest; return a sentence on a difference between the ranks, empty if none.

        Args:
            finished: Whether no rank failed but for the end of another one: then none may have
                called more than others.
        """
        self._read()
        self.close()
        if self._comparison.difference is not None:
            return self._comparison.difference.sentence()
        if finished and not self.unread:
            return self._comparison.missing()
        return self._missing

    @property
    def lines(self) -> list[tuple[str, int]]:
        """(ranks, line of the cell) for each line that called what differs."""
        difference = self._comparison.difference
        return difference.lines if difference else []

    def close(self) -> None:
        """Close and remove the ranks' files."""
        self._open.close()
        self._files.clear()
        for rank in range(self._nproc):
            with suppress(OSError):
                self._directory.calls(rank).unlink(missing_ok=True)

    def _read(self) -> None:
        for rank in range(self._nproc):
            if rank not in self.unread:
                try:
                    self._read_rank(rank)
                except (OSError, ValueError):
                    self.unread.add(rank)

    def _read_rank(self, rank: int) -> None:
        path = self._directory.calls(rank)
        if rank not in self._files:
            if not path.exists():
                return  # it has called nothing yet
            self._files[rank] = self._open.enter_context(path.open("rb"))
        while data := self._files[rank].read(CHUNK_BYTES):
            *lines, self._rests[rank] = (self._rests[rank] + data).split(b"\n")
            self._comparison.take(rank, lines)
        if not path.exists():
            self.unread.add(rank)  # the rank could not write on, and has removed it
