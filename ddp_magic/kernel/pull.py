"""Values on their way back from the ranks to the notebook: `--pull a,b@all,trainer.state@2`.

A rank copies what it was asked for into shared memory (`worker.sent_values`); the notebook makes
values of it without another copy.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.memory import Segment
from ddp_magic.wire.messages import Results
from ddp_magic.wire.pickling import load, read_saved


@dataclass(frozen=True)
class Pull:
    """One value to be brought back.

    Attributes:
        path: A name of the cell's, or a dotted one.
        rank: Whose; None for a list with all ranks' values.
    """

    path: str
    rank: int | None = 0

    @property
    def name(self) -> str:
        """What the notebook calls it: the last part."""
        return self.path.rpartition(".")[2]

    def __str__(self) -> str:
        return self.path + ("@all" if self.rank is None else f"@{self.rank}" if self.rank else "")


def parse(text: str) -> tuple[Pull, ...]:
    """Read what follows `--pull`.

    Raises:
        ValueError: It is no list of names; the text says what is wrong.
    """
    pulls = []
    for part in text.split(","):
        path, at, rank = part.strip().partition("@")
        if not path or not all(word.isidentifier() for word in path.split(".")):
            raise ValueError(f"{part.strip()!r} is no name (such as loss, loss@all, hist@2)")
        if at and rank != "all" and not rank.isdigit():
            raise ValueError(f"{part.strip()!r}: after @ comes a rank, or all")
        pulls.append(Pull(path, None if rank == "all" else int(rank or 0)))
    names = [pull.name for pull in pulls]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]!r} is named twice")
    return tuple(pulls)


class Pulls:
    """What a run was asked for, and what has come of it. In the kernel.

    Attributes:
        asked: What was asked for.
        failed: What is not there, and why, a line each.
    """

    def __init__(self, asked: Sequence[Pull], ranks: int, directory: RunDirectory) -> None:
        """Expect values.

        Args:
            asked: Which.
            ranks: Number of ranks.
            directory: Of the run; what cannot be read is saved there.
        """
        self.asked = tuple(asked)
        self.failed: list[str] = []
        self._ranks = ranks
        self._directory = directory
        self._values: dict[int, dict[str, Any]] = {}
        self._reasons: dict[tuple[int, str], str] = {}

    def take(self, event: Results, fd: int | None) -> None:
        """Take what a rank has sent."""
        self._reasons |= {(event.rank, path): why for path, why in event.failed.items()}
        if fd is None:
            return
        segment = Segment(fd, event.sizes)
        try:
            self._values[event.rank] = _read(segment)
        except Exception as error:  # noqa: BLE001 -- an import, a class's own code
            saved = self._directory.unread_results(event.rank)
            why = f"cannot be read here ({type(error).__name__}: {error}); "
            try:
                _save_unread(segment, saved)
            except (OSError, ValueError) as problem:  # a full disk, buffers that are none
                why += f"it could not be saved either ({problem})"
            else:
                why += f"it is saved, for where it can: pickle.load(open({str(saved)!r}, 'rb'))"
            self._reasons |= {(event.rank, path): why for path in event.names}
        finally:
            segment.close()

    def values(self) -> dict[str, Any]:
        """Return what has come, by the names that the notebook gives it; fill `failed`."""
        found = {}
        for pull in self.asked:
            ranks = range(self._ranks) if pull.rank is None else [pull.rank]
            missing = [r for r in ranks if pull.path not in self._values.get(r, {})]
            if missing:
                why = self._reasons.get((missing[0], pull.path), "did not arrive")
                self.failed.append(f"`{pull.path}` of rank {missing[0]} {why}")
                continue
            values = [self._values[r][pull.path] for r in ranks]
            found[pull.name] = values if pull.rank is None else values[0]
        return found


def _read(segment: Segment) -> dict[str, Any]:
    stream, *buffers = segment.views()
    return dict(load(stream, buffers))


def _save_unread(segment: Segment, path: Path) -> None:
    stream, *buffers = (bytes(view) for view in segment.views())
    with path.open("wb") as file:
        pickle.dump(_Saved(stream, [bytearray(buffer) for buffer in buffers]), file)


class _Saved:
    """Becomes the dictionary of values when it is unpickled."""

    def __init__(self, stream: bytes, buffers: list[bytearray]) -> None:
        self._reduced = (stream, buffers)

    def __reduce__(self) -> tuple[Any, ...]:
        return read_saved, self._reduced
