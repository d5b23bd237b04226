"""The journal of a run: what a person saw of it, on disk as it comes, and read again.

Each line is a JSON object, with its number ("n"). The first one describes the run, the last one how
it ended; the others are what the screen showed: text, and displays with their figures. The live
table is left out, since the last line says what it came to. A run whose kernel was killed has no
last line.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ddp_magic.display.kept_errors import as_json
from ddp_magic.display.record import Background, RunRecord
from ddp_magic.display.shown import without_rank
from ddp_magic.display.status import summary
from ddp_magic.system.run_directory import append
from ddp_magic.wire.states import State

COMPACT_BYTES = 64 * 2**20  # a larger journal is rewritten without displays that were replaced
_END_BYTES = 2**20  # the last line is looked for in so many bytes


class Journal:
    """Writes the journal of one run. What cannot be written, on a full disk, ends it.

    Args:
        path: Its file.
        compact_bytes: From which size on it is rewritten.
    """

    def __init__(self, path: Path, compact_bytes: int = COMPACT_BYTES) -> None:
        self._path = path
        self._compact_at = self._compact_bytes = compact_bytes
        self._number = 0  # of the last entry
        self.failure = ""  # why it has ended; empty while it can be written

    def begin(self, record: RunRecord) -> None:
        """Write what runs, where, and for which kernel."""
        self._write(
            {
                "id": record.id,
                "label": record.label,
                "devices": record.devices,
                "session": record.session,
                "ranks": len(record.ranks),
                "started": record.started,
                "logs": str(record.logs),
                "kernel": os.getpid(),
                "quiet": record.quiet,
                "background": record.background and vars(record.background),
            }
        )

    def text(self, text: str) -> None:
        """Write text as it was shown."""
        self._write({"text": text})

    def display(
        self, data: Mapping[str, Any], metadata: Mapping[str, Any], display_id: str, *, update: bool
    ) -> None:
        """Write a display, or the new content of an earlier one."""
        self._write({"display": data, "metadata": metadata, "id": display_id, "update": update})

    def clear(self, rank: int) -> None:
        """Write that all that a rank has shown is removed."""
        self._write({"clear": rank})

    def keep(self) -> None:
        """Write that what has been shown stays, whichever rank clears its output."""
        self._write({"keep": True})

    def end(self, record: RunRecord) -> None:
        """Write how the run ended."""
        error = list(record.error._render_traceback_() if record.error else ())
        if record.background and record.error:
            self._write({"raised": as_json(record.error)})
        words = {"state": record.state.value, "ended": record.ended, "summary": summary(record)}
        words["closing"] = summary(record, with_clock=True)
        self._write({**words, "error": error})
        if self.failure:
            self._end_without_room({**words, "error": error[-1:], "incomplete": self.failure})

    def _end_without_room(self, entry: Mapping[str, Any]) -> None:
        """Write the last line in the place of what stands there: the disk may be full."""
        line = b"\n" + _line(entry)
        try:
            with self._path.open("r+b") as file:
                head = len(file.readline(_END_BYTES))
                file.seek(max(head, file.seek(0, os.SEEK_END) - len(line)))
                file.write(line)
                file.truncate()
        except OSError:
            pass  # it stays a run without an end

    def _write(self, entry: Mapping[str, Any]) -> None:
        if self.failure:
            return
        self._number += 1
        try:
            size = append(self._path, _line({**entry, "n": self._number}))
            if size > self._compact_at:
                self._compact_at = 2 * self._compact() + self._compact_bytes
        except OSError as error:
            self.failure = error.strerror or str(error)

    def _compact(self) -> int:
        """Rewrite the file with only the last content of each display; return its size."""
        fresh = self._path.with_suffix(".new")
        with fresh.open("wb") as file:
            for entry in current(entries_of(self._path)):
                file.write(_line(entry))
            size = file.tell()
        fresh.replace(self._path)
        return size


def _line(entry: Mapping[str, Any]) -> bytes:
    # Text of a rank may hold lone surrogates, which UTF-8 has no bytes for: ASCII has.
    return json.dumps(entry, default=str).encode() + b"\n"


def entries_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what can be read of a journal: its last line may be cut off."""
    with path.open("rb") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry


def current(entries: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries with each display at its first place, with its last content."""
    found: list[dict[str, Any]] = []
    places: dict[str, list[dict[str, Any]]] = {}  # a cell may display several with the same id
    kept = 0  # entries that no rank clears any more
    for entry in entries:
        name = entry.get("id") if "display" in entry else None
        if "clear" in entry:
            found[kept:] = _without_rank(found[kept:], entry["clear"])
        elif "keep" in entry:
            found.append(entry)
            kept = len(found)
        elif name is None:
            found.append(entry)
        elif entry.get("update") and name in places:
            for place in places[name]:
                place.update(display=entry["display"], metadata=entry["metadata"])
                place["n"] = entry.get("n", 0)
        else:
            found.append(entry)
            places.setdefault(name, []).append(entry)
    return found


def _without_rank(entries: list[dict[str, Any]], rank: int) -> list[dict[str, Any]]:
    """Return entries without the lines and the displays of a rank."""
    left: list[dict[str, Any]] = []
    for entry in entries:
        if "text" in entry and left and "text" in left[-1]:
            # A line may be in both.
            left[-1] = {"text": left[-1]["text"] + entry["text"], "n": entry.get("n", 0)}
        elif "display" not in entry or entry["metadata"].get("ddp", {}).get("rank") != rank:
            left.append(entry)
    for number, entry in enumerate(left):
        if "text" in entry:
            left[number] = {**entry, "text": without_rank(entry["text"], rank)}
    return left


@dataclass(frozen=True, kw_only=True)
class PastRun:
    """What the journal of a run says.

    Attributes:
        path: The journal.
        id: Name of the run.
        label: What its notebook called the cell: `Cell In[3]`.
        devices: One line that says which devices the ranks ran on.
        session: Name of the session; empty for a run with ranks of its own.
        ranks: Number of ranks.
        started: When it started, in seconds since the epoch.
        logs: Directory of the ranks' logs.
        kernel: Process id of its kernel, or of its host.
        quiet: Whether only the output of the ranks is shown while all goes well.
        background: How a host serves it; None for a run of a notebook's own process.
        state: How it ended; None if the journal does not say so.
        ended: When it ended, in seconds since the epoch; None if it is not known.
        summary: The closing line.
        closing: The same with the time of day.
        error: The lines of the error; empty if it succeeded.
        incomplete: Why not all of its output was kept; empty if it was.
    """

    path: Path
    id: str
    label: str
    devices: str
    session: str
    ranks: int
    started: float
    logs: str
    kernel: int
    quiet: bool = False
    background: Background | None = None
    state: State | None = None
    ended: float | None = None
    summary: str = ""
    closing: str = ""
    error: tuple[str, ...] = ()
    incomplete: str = ""

    @property
    def goes_on(self) -> bool:
        """Whether the run has not ended, and its kernel is alive."""
        return self.state is None and self.kernel_lives

    @property
    def kernel_lives(self) -> bool:
        """Whether its kernel, or its host, is alive."""
        return self._lives(self.kernel)

    @property
    def notebook_lives(self) -> bool:
        """Whether the notebook that has started it is alive, or at least its host."""
        return self.kernel_lives or bool(self.background and self._lives(self.background.kernel))

    def _lives(self, pid: int) -> bool:
        """Return whether a process is alive, and not another one that has its number now."""
        try:
            process = psutil.Process(pid)
            is_zombie = process.status() == psutil.STATUS_ZOMBIE
            return not is_zombie and process.create_time() <= self.started
        except psutil.Error:
            return False

    @property
    def title(self) -> str:
        """The run in one line: id, cell, how it ended, when it started."""
        day = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started))
        return f"run {self.id} · {self.label} · {self.outcome} · started {day}"

    @property
    def outcome(self) -> str:
        """The closing line, or why there is none."""
        if self.state is not None:
            return self.summary + self._left_out
        ranks = f"{self.ranks} rank{'s' if self.ranks > 1 else ''}"
        if self.goes_on:
            return f"{ranks} · running"
        lost = "its host process was killed, and its ranks with it"
        return f"{ranks} · {lost if self.background else 'ended with its notebook'}"

    @property
    def last_line(self) -> str:
        """The closing line with the time of day, or why there is none."""
        return self.closing + self._left_out if self.closing else self.outcome

    @property
    def _left_out(self) -> str:
        words = f" · not all of its output was kept: {self.incomplete}"
        return words if self.incomplete else ""

    @property
    def raised(self) -> dict[str, Any]:
        """The error of a background run, for `kept_errors.from_json`; empty if it is not there."""
        found = [entry["raised"] for entry in entries_of(self.path) if "raised" in entry]
        return dict(found[-1]) if found else {}

    def outputs(self) -> list[dict[str, Any]]:
        """Return what was shown, in order: `text`, or `display`, `metadata` and `id`."""
        entries = current(entries_of(self.path))
        return [entry for entry in entries if "text" in entry or "display" in entry]


def read(path: Path) -> PastRun | None:
    """Read what a journal says of its run; None if there is none, or it cannot be read."""
    try:
        with path.open("rb") as file:
            head = json.loads(file.readline())
            head.pop("n", None)
            if background := head.get("background"):
                head["background"] = Background(**background)
            file.seek(max(file.tell(), file.seek(0, os.SEEK_END) - _END_BYTES))
            last = _object(file.read().rpartition(b"\n")[0].rpartition(b"\n")[2])
        end: dict[str, Any] = {}
        if "state" in last:
            end = {name: last[name] for name in ("ended", "summary")}
            end |= {"state": State(last["state"]), "error": tuple(last["error"])}
            end["incomplete"] = last.get("incomplete", "")
            end["closing"] = last.get("closing", "")
        return PastRun(path=path, **head, **end)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
