"""Values on their way back from the ranks to the notebook: `--pull a,b@all,trainer.state@2`.

A rank copies the values into shared memory (`worker.values.sent_values`); the notebook uses them
there, without another copy.
"""

from __future__ import annotations

import contextlib
import keyword
import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddp_magic.errors import ProtocolError, PullError
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.codec import decode, encode
from ddp_magic.wire.memory import Segment
from ddp_magic.wire.pickling import load, problem, read_saved
from ddp_magic.wire.worker_events import Results

_PIECE_BYTES = 2**24


@dataclass(frozen=True)
class Pull:
    """One value to bring back.

    Attributes:
        path: A name in the cell, possibly dotted.
        rank: The rank whose value it is; None for a list of all ranks' values.
        label: What messages call it; empty for the path.
    """

    path: str
    rank: int | None = 0
    label: str = ""

    @property
    def name(self) -> str:
        """Its name in the notebook: the last part."""
        return self.path.rpartition(".")[2]

    def __str__(self) -> str:
        return self.path + ("@all" if self.rank is None else f"@{self.rank}" if self.rank else "")


def parse(text: str) -> tuple[Pull, ...]:
    """Read the value of `--pull`.

    Raises:
        ValueError: It is not a list of names; the text says what to use.
    """
    pulls = []
    for part in text.split(","):
        path, at, rank = part.strip().partition("@")
        if not path or not all(
            word.isidentifier() and not keyword.iskeyword(word) for word in path.split(".")
        ):
            raise ValueError(
                f"invalid name {part.strip()!r}: use names such as loss, loss@all or "
                "trainer.state@2"
            )
        if at and rank != "all" and not rank.isdecimal():
            raise ValueError(
                f"invalid rank {rank!r} in {part.strip()!r}: use a number or all after @"
            )
        pulls.append(Pull(path, None if rank == "all" else int(rank or 0)))
    names = [pull.name for pull in pulls]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two values would be bound to {twice[0]!r}: pull only one of them")
    return tuple(pulls)


class Pulls:
    """The values that a run is to bring back, and those that have arrived.

    Args:
        asked: Which.
        ranks: Number of ranks.
        directory: Of the run; values that cannot be read are saved there.

    Attributes:
        asked: Which.
    """

    def __init__(self, asked: Sequence[Pull], ranks: int, directory: RunDirectory) -> None:
        self.asked = tuple(asked)
        self._ranks = ranks
        self._directory = directory
        self._values: dict[int, dict[str, Any]] = {}
        self._reasons: dict[tuple[int, str], str] = {}

    def take(self, event: Results, fd: int | None) -> None:
        """Read what a rank has sent."""
        self._reasons |= {(event.rank, path): why for path, why in event.failed.items()}
        if fd is None:
            return
        segment = Segment(fd, event.sizes)
        try:
            self._values[event.rank] = _read(segment)
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- an import, a class's own code
            saved = self._directory.unread_results(event.rank)
            why = f"cannot be read in the notebook ({problem(error)}); "
            try:
                _save_unread(segment, saved)
            except (OSError, ValueError) as unsaved:  # a full disk, invalid buffers
                why += f"it could not be saved either: {unsaved}"
            else:
                why += f"it was saved: pickle.load(open({str(saved)!r}, 'rb'))"
            self._reasons |= {(event.rank, path): why for path in event.names}
        finally:
            segment.close()

    def finish(
        self, *, succeeded: bool, option: str = ""
    ) -> tuple[dict[str, Any] | None, PullError | None]:
        """Return the values by their names in the notebook, and what is missing.

        A run that failed brings back all that was asked for or nothing, and has its own error.

        Args:
            succeeded: Whether the run has, as far as it is known.
            option: How the option was written; empty if nobody wrote it.
        """
        values, missing = self._arrived()
        if not succeeded:
            return (None if missing else values), None
        prefix = f"{option}: " if option else ""
        return values, PullError(prefix + "; ".join(missing)) if missing else None

    def _arrived(self) -> tuple[dict[str, Any], list[str]]:
        """Return the values that have arrived, and a line for each that has not."""
        found, failed = {}, []
        for pull in self.asked:
            ranks = range(self._ranks) if pull.rank is None else [pull.rank]
            missing = [r for r in ranks if pull.path not in self._values.get(r, {})]
            if missing:
                why = self._reasons.get((missing[0], pull.path), "did not arrive")
                failed.append(f"{pull.label or f'`{pull.path}`'} of rank {missing[0]} {why}")
                continue
            values = [self._values[r][pull.path] for r in ranks]
            found[pull.name] = values if pull.rank is None else values[0]
        return found, failed


class KeptPulls(Pulls):
    """Keeps the values that arrive in a host, which reads none: a notebook fetches them later."""

    def __init__(self, asked: Sequence[Pull], ranks: int, directory: RunDirectory) -> None:
        super().__init__(asked, ranks, directory)
        for rank in range(ranks):  # of an attempt before a restart
            directory.kept_results(rank).unlink(missing_ok=True)
            directory.kept_values(rank).unlink(missing_ok=True)

    def take(self, event: Results, fd: int | None) -> None:
        """Write to the run's directory what a rank has sent."""
        failed = dict(event.failed)
        names = event.names
        if fd is not None:
            try:
                _copy(fd, self._directory.kept_values(event.rank))
            except OSError as error:  # a full disk
                self._directory.kept_values(event.rank).unlink(missing_ok=True)
                why = f"could not be kept for the notebook ({error.strerror})"
                failed |= dict.fromkeys(event.names, why)
                names = ()
            finally:
                os.close(fd)
        self._values[event.rank] = dict.fromkeys(names)
        self._reasons |= {(event.rank, path): why for path, why in failed.items()}
        kept = replace(event, names=names, failed=failed)
        try:
            self._directory.kept_results(event.rank).write_bytes(encode(kept))
        except OSError as error:
            self._values[event.rank] = {}
            why = f"could not be kept for the notebook ({error.strerror})"
            self._reasons |= {(event.rank, path): why for path in event.names}


def fetch(pulls: Pulls, ranks: int, directory: RunDirectory) -> None:
    """Read the values that a host has kept.

    Args:
        pulls: Takes them.
        ranks: Number of ranks.
        directory: Of the run.
    """
    for rank in range(ranks):
        try:
            event = decode(directory.kept_results(rank).read_bytes())
        except (OSError, ProtocolError):
            continue  # this rank sent nothing
        if not isinstance(event, Results):
            continue
        fd = None
        if event.names:
            try:
                fd = os.open(directory.kept_values(rank), os.O_RDONLY)
            except OSError as error:
                why = f"is not there any more ({error.strerror})"
                event = replace(
                    event, names=(), failed=event.failed | dict.fromkeys(event.names, why)
                )
        pulls.take(event, fd)


def _copy(fd: int, path: Path) -> None:
    """Copy the whole of a file into another one."""
    size, done = os.fstat(fd).st_size, 0
    with path.open("wb") as file:
        while done < size:
            piece = os.pread(fd, _PIECE_BYTES, done)
            file.write(piece)
            done += len(piece)


def _read(segment: Segment) -> dict[str, Any]:
    stream, *buffers = segment.views()
    with _existing_directory():
        return dict(load(stream, buffers))


@contextlib.contextmanager
def _existing_directory() -> Iterator[None]:
    """Leave the working directory for a moment if it was removed.

    A tensor imports torch, which ends the process where there is none.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.chdir("/")
            yield
        finally:
            os.fchdir(here)
            os.close(here)
    else:
        yield


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
