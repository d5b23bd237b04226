"""What a rank shows between two calls of `clear_output()`: text and displays, in places. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

PAGE_LINES = 100
PAGE_CHARS = 20_000
MAX_WAITS = 3  # calls for which the first page waits
_BLANK = {"text/plain": ""}


@dataclass(frozen=True, kw_only=True)
class Content:
    """New content of a place.

    Attributes:
        place: Number of the place on the screen.
        data: What is shown there, by MIME type.
        metadata: Jupyter's.
        update: Whether the place is there already.
    """

    place: int
    data: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    update: bool


class _Text:
    """Text between two displays: its last lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._left_out = 0

    def add(self, line: str) -> None:
        self.lines.append(line[:PAGE_CHARS])
        size = sum(map(len, self.lines))
        while len(self.lines) > PAGE_LINES or size > PAGE_CHARS:
            size -= len(self.lines.pop(0))
            self._left_out += 1

    def shown(self, rank: int, log: str) -> dict[str, Any]:
        lines = self.lines
        if self._left_out:
            words = f"... {self._left_out:,} lines left out here; all are in {log}"
            lines = [words, *lines]
        return {"text/plain": "\n".join(f"[rank {rank}] {line}" for line in lines)}


@dataclass
class _Display:
    data: Mapping[str, Any]
    metadata: Mapping[str, Any]
    own_id: str | None


class Page:
    """What a rank shows between two calls of `clear_output()`.

    The next page takes the same places one after the other, so that nothing flickers. What it
    leaves over becomes blank: at once, or, with `clear_output(wait=True)`, when it is complete.

    Args:
        rank: Whose it is.
        log: Path of the rank's log, for the message on lines left out.
    """

    def __init__(self, rank: int, log: str) -> None:
        self._rank = rank
        self._log = log
        self._entries: list[_Text | _Display] = []
        self._shown: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []
        self._is_cleared = False  # by a call after which nothing has come
        self._complete = 0  # places of the last page, which stay until this one is complete
        self._waits = MAX_WAITS

    def clear(self, *, wait: bool) -> None:
        """Begin a new page: with `wait`, when something comes for it."""
        if not self._is_cleared:
            self._complete = len(self._entries)
        self._is_cleared = True
        if not wait:
            self._begin()
            self._complete = 0

    def _begin(self) -> None:
        if self._is_cleared:
            self._entries = []
            self._is_cleared = False

    def add(self, lines: Iterable[str]) -> None:
        """Append lines."""
        for line in lines:
            self._begin()
            if not self._entries or not isinstance(self._entries[-1], _Text):
                self._entries.append(_Text())
            entry = self._entries[-1]
            if isinstance(entry, _Text):
                entry.add(line)

    def display(
        self,
        data: Mapping[str, Any],
        metadata: Mapping[str, Any],
        own_id: str | None = None,
        *,
        update: bool = False,
    ) -> None:
        """Append a display, or give new content to those that the cell has given the same id."""
        if not update:
            self._begin()
            self._entries.append(_Display(data, metadata, own_id))
            return
        for entry in self._entries:
            if isinstance(entry, _Display) and entry.own_id == own_id:
                entry.data, entry.metadata = data, metadata

    def changes(self, *, final: bool = False) -> list[Content]:
        """Return what is to be shown since the last call.

        Args:
            final: Whether nothing more comes for this page.
        """
        is_new = bool(self._entries) and not (self._shown or final or self._is_cleared)
        if is_new and self._waits:
            self._waits -= 1
            return []  # more may come, and the places of a rank are to be next to each other
        now: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = [
            (entry.shown(self._rank, self._log), {})
            if isinstance(entry, _Text)
            else (entry.data, entry.metadata)
            for entry in self._entries
        ]
        stays = len(now) if final else max(len(now), self._complete)
        now += self._shown[len(now) : stays]
        now += [(_BLANK, {})] * (len(self._shown) - len(now))
        before, self._shown = self._shown, now
        return [
            Content(place=place, data=data, metadata=metadata, update=place < len(before))
            for place, (data, metadata) in enumerate(now)
            if place >= len(before) or before[place] != (data, metadata)
        ]
