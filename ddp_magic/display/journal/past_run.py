"""A run that only its journal remembers, or that another process serves."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ddp_magic.display.journal.journal import END_BYTES, current, entries_of
from ddp_magic.display.record import Background
from ddp_magic.wire.states import State


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
        lost = "its host process ended before the run, and its ranks with it"
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
        shown = [entry for entry in entries if not entry.get("hidden")]
        return [entry for entry in shown if "text" in entry or "display" in entry]

    def displays(self, rank: int) -> list[dict[str, Any]]:
        """Return the displays of a rank, in order, whether they were shown or not.

        Raises:
            ValueError: There are none.
        """
        found: dict[int, list[dict[str, Any]]] = {}
        for entry in current(entries_of(self.path)):
            if (
                "display" in entry
                and (of := entry["metadata"].get("ddp", {}).get("rank")) is not None
            ):
                found.setdefault(of, []).append(entry)
        if rank not in found:
            there = ", ".join(map(str, sorted(found))) or "none"
            raise ValueError(
                f"rank {rank} of run {self.id} displayed nothing (%ddp_logs prints its text); "
                f"ranks that did: {there}"
            )
        return found[rank]


def read(path: Path) -> PastRun | None:
    """Read what a journal says of its run; None if there is none, or it cannot be read."""
    try:
        with path.open("rb") as file:
            head = json.loads(file.readline())
            head.pop("n", None)
            if background := head.get("background"):
                head["background"] = Background(**background)
            file.seek(max(file.tell(), file.seek(0, os.SEEK_END) - END_BYTES))
            last = _object(file.read().rpartition(b"\n")[0].rpartition(b"\n")[2])
        end: dict[str, Any] = {}
        if "state" in last:
            end = {name: last[name] for name in ("ended", "summary")}
            end |= {"state": State(last["state"]), "error": tuple(last["error"])}
            end["incomplete"] = last.get("incomplete", "")
            end["closing"] = last.get("closing", "")
            head |= {name: last[name] for name in ("devices", "ranks") if name in last}
        return PastRun(path=path, **head, **end)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
