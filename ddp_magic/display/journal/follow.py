"""Follows a background run by its journal: shows what comes, as the run's own screen would."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ddp_magic.display.journal import journal, past_run
from ddp_magic.display.journal.past_run import PastRun
from ddp_magic.display.journal.replay import merged
from ddp_magic.display.outputs import Outputs
from ddp_magic.display.rank_displays import RankDisplays
from ddp_magic.display.run_words import head_line
from ddp_magic.display.table_place import TablePlace
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.states import State


class JournalReader:
    """Reads the entries of a journal as they come, each once, also after it has been rewritten.

    Args:
        path: The journal; it may not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._rest = b""
        self._seen = 0  # number of the last entry

    def read(self) -> list[dict[str, Any]]:
        """Return the entries that are new."""
        found: list[dict[str, Any]] = []
        while True:
            if self._file is None:
                try:
                    self._file = self._path.open("rb")
                except OSError:  # not there yet, or removed
                    return found
                self._rest = b""
            found += self._new(self._file)
            if not self._was_rewritten(self._file):
                return found
            found += self._new(self._file)  # what was written just before
            self.close()

    def _new(self, file: BinaryIO) -> list[dict[str, Any]]:
        *lines, self._rest = (self._rest + file.read()).split(b"\n")
        found = []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            # An entry without a number was written to a full disk, in the place of others.
            if isinstance(entry, dict) and entry.get("n", self._seen + 1) > self._seen:
                found.append(entry)
        # Not one by one: in a journal that was rewritten, an early display may be the newest entry.
        self._seen = max((entry.get("n", 0) for entry in found), default=self._seen)
        return found

    def _was_rewritten(self, file: BinaryIO) -> bool:
        try:
            return self._path.stat().st_ino != os.fstat(file.fileno()).st_ino
        except OSError:  # it was removed
            return False

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Follower:
    """Shows a background run from its beginning on, whenever that was.

    Args:
        directory: Of the run.
        outputs: Where it is shown.
        now: Returns the time, in seconds.

    Attributes:
        end: What its journal says at its end; None before.
    """

    def __init__(
        self,
        directory: RunDirectory,
        outputs: Outputs,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._outputs = outputs
        self._now = now
        self._reader = JournalReader(directory.journal)
        self._prefix = uuid.uuid4().hex[:8]  # two cells may follow the same run
        self._displays = RankDisplays(outputs)
        name = f"{directory.id}-{self._prefix}-table"
        self._place = TablePlace(outputs, name, directory.id)
        self._head: PastRun | None = None
        self._table = b""
        self.end: PastRun | None = None

    def step(self) -> bool:
        """Show what is new; return whether the run has ended and all of it is shown."""
        if self._head is None:
            if (head := past_run.read(self._directory.journal)) is None:
                return False
            self._begin(head)
            # What came before: displays as they are now, long text without its middle.
            entries = journal.current(iter(self._reader.read()))
            for entry in merged(entries, str(self._directory)):
                self._show(entry)
        for entry in self._reader.read():
            self._show(entry)
        self._outputs.redraw(str(self._directory))
        if self.end is None:
            self._show_table()
        return self.end is not None

    def _begin(self, head: PastRun) -> None:
        self._head = head
        shown = range(head.ranks)
        self._displays.begin(head.id, self._directory, shown)
        if not head.quiet and self._outputs.shows_displays:
            self._place.begin(head_line(head.devices, head.started))

    def _show(self, entry: Mapping[str, Any]) -> None:
        if "text" in entry:
            self._outputs.write(entry["text"])
        elif "display" in entry and not entry.get("hidden"):
            name = f"{self._prefix}-{entry['id']}"
            self._displays.put(entry["display"], entry["metadata"], name)
        elif "clear" in entry:
            self._outputs.remove(entry["clear"])
        elif "keep" in entry:
            self._outputs.keep()
        elif "state" in entry:
            self.end = past_run.read(self._directory.journal)

    def _show_table(self) -> None:
        try:
            content = self._directory.table.read_bytes()
            table = json.loads(content)
        except (OSError, ValueError):
            return
        if content == self._table:
            return
        self._table = content
        if self._outputs.shows_displays:
            room = self._outputs.room - self._displays.promised
            self._place.show(table["text"], table["html"], self._now(), room=room)
        elif (status := self._outputs.status) is not None:
            status.show(table["text"].partition("\n")[0][: status.chars])

    def finish(self, last: str) -> None:
        """Show how it ended below all output.

        Args:
            last: The closing line.
        """
        self._reader.close()
        self._displays.end()
        well = self.end is not None and self.end.state is State.SUCCEEDED
        quiet = self._head is not None and self._head.quiet
        if self._outputs.shows_displays:
            if not (quiet and well and self._place.is_empty):
                self._place.close(last, head=self._failed_head())
            return
        if self._outputs.status is not None:
            self._outputs.status.hide()
        if not (quiet and well):
            self._outputs.write(f"{last}\n")

    def _failed_head(self) -> str:
        """Return the first line of a failed run whose closing line is far below; else empty."""
        end = self.end
        if end is None or end.state is not State.FAILED or not self._outputs.is_tall:
            return ""
        return head_line(end.devices, end.started, end.summary)
