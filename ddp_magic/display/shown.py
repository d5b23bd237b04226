"""What a cell has shown, so that one rank's part can be removed: `clear_output()`. Pure.

Jupyter removes all outputs of a cell or none. So those that stay are shown again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddp_magic.display.rank_names import rank_names

MAX_CHARS = 300_000  # of text: a Jupyter server drops what comes faster than 1 MB a second
_LABEL = re.compile(r"\[ranks? (?P<ranks>\d+(?:-\d+)?(?:, \d+(?:-\d+)?)*)\]")


@dataclass
class Display:
    """A display with its present content.

    Attributes:
        name: Its display id.
        data: What it shows, by MIME type.
        metadata: Jupyter's; a rank's display has its rank.
    """

    name: str
    data: Mapping[str, Any]
    metadata: Mapping[str, Any]


class Shown:
    """The text and the displays of a cell, in their order."""

    def __init__(self) -> None:
        self._entries: list[list[str] | Display] = []
        self._chars = 0
        self._kept = 0  # entries that no rank can clear any more
        self._lost = 0  # lines of text for which there was no room

    def text(self, text: str) -> None:
        """Add text as it is written: lines that begin with their labels."""
        last = self._entries[-1] if len(self._entries) > self._kept else None
        if isinstance(last, list):
            last.append(text)
        else:
            self._entries.append([text])
        self._chars += len(text)
        if self._chars > 2 * MAX_CHARS:
            self._lose()

    def display(
        self, name: str, data: Mapping[str, Any], metadata: Mapping[str, Any], *, update: bool
    ) -> None:
        """Add a display, or give new content to those of this name."""
        if not update:
            self._entries.append(Display(name, data, metadata))
            return
        for entry in self._entries:
            if isinstance(entry, Display) and entry.name == name:
                entry.data, entry.metadata = data, metadata

    def keep(self) -> None:
        """Keep what is shown now, whoever clears his output: it is of earlier processes."""
        self._kept = len(self._entries)

    def remove(self, rank: int) -> bool:
        """Remove what a rank has shown; return whether it was anything."""
        found = False
        for index in range(len(self._entries) - 1, self._kept - 1, -1):
            entry = self._entries[index]
            if isinstance(entry, Display):
                stays = entry.metadata.get("ddp", {}).get("rank") != rank
            else:
                before = "".join(entry)
                after = without_rank(before, rank)
                self._entries[index] = [after]
                self._chars -= len(before) - len(after)
                found = found or after != before
                stays = bool(after)
            if not stays:
                found = True
                del self._entries[index]
        return found

    def entries(self, logs: str) -> list[str | Display]:
        """Return all that is shown.

        Args:
            logs: Directory of the logs, for the message on lines left out.
        """
        joined = [e if isinstance(e, Display) else "".join(e) for e in self._entries]
        entries = [entry for entry in joined if entry]
        if self._lost:
            entries.insert(0, f"... {self._lost:,} lines left out here; all are in {logs}\n")
        return entries

    def _lose(self) -> None:
        """Remove the first lines, until half of the room is free."""
        for index, entry in enumerate(self._entries):
            if self._chars <= MAX_CHARS:
                break
            if isinstance(entry, Display):
                continue
            lines = "".join(entry).splitlines(keepends=True)
            count = 0
            while count < len(lines) and self._chars > MAX_CHARS:
                self._chars -= len(lines[count])
                count += 1
            self._lost += count
            self._entries[index] = ["".join(lines[count:])]


def without_rank(text: str, rank: int) -> str:
    """Return text without the lines of a rank.

    Args:
        text: Lines that begin with their labels.
        rank: The rank.
    """
    return "".join(_without(line, rank) for line in text.splitlines(keepends=True))


def _without(line: str, rank: int) -> str:
    """Return a line as the other ranks have shown it: empty if it is this rank's alone."""
    if not (found := _LABEL.match(line)):
        return line
    ranks: list[int] = []
    for part in found["ranks"].split(", "):
        first, _, last = part.partition("-")
        ranks += range(int(first), int(last or first) + 1)
    if rank not in ranks:
        return line
    others = [other for other in ranks if other != rank]
    return f"[{rank_names(others)}]{line[found.end() :]}" if others else ""
