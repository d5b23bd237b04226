"""The journal of a run: what a person saw of it, on disk as it comes.

Each line is a JSON object, with its number ("n"). The first one describes the run, the last one how
it ended; the others are what the screen showed: text, and displays with their figures. The live
table is left out, since the last line says what it came to. Displays of ranks that `--show` leaves
out are marked ("hidden"). A run whose kernel was killed has no last line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ddp_magic.display.journal.kept_errors import as_json
from ddp_magic.display.record import RunRecord
from ddp_magic.display.run_words import summary
from ddp_magic.display.shown import without_rank
from ddp_magic.system.run_directory import append

COMPACT_BYTES = 64 * 2**20  # a larger journal is rewritten without displays that were replaced
END_BYTES = 2**20  # the last line is looked for in so many bytes


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
        self,
        data: Mapping[str, Any],
        metadata: Mapping[str, Any],
        display_id: str,
        *,
        update: bool,
        hidden: bool = False,
    ) -> None:
        """Write a display, or the new content of an earlier one.

        Args:
            data: Its content, by MIME type.
            metadata: What comes with that; "ddp" names the rank.
            display_id: Its name.
            update: Whether it may be the new content of an earlier one.
            hidden: Whether it was not shown, since `--show` leaves its rank out.
        """
        entry = {"display": data, "metadata": metadata, "id": display_id, "update": update}
        self._write({**entry, **({"hidden": True} if hidden else {})})

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
        words: dict[str, Any] = {"state": record.state.value, "ended": record.ended}
        words["summary"] = summary(record)
        words["closing"] = summary(record, with_clock=True)
        words |= {"devices": record.devices, "ranks": len(record.ranks)}  # the cluster has chosen
        self._write({**words, "error": error})
        if self.failure:
            self._end_without_room({**words, "error": error[-1:], "incomplete": self.failure})

    def _end_without_room(self, entry: Mapping[str, Any]) -> None:
        """Write the last line in the place of what stands there: the disk may be full."""
        line = b"\n" + _line(entry)
        try:
            with self._path.open("r+b") as file:
                head = len(file.readline(END_BYTES))
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
