"""One row of a terminal: its text in pieces, and whether it is a bar's, blank or taken."""

from __future__ import annotations

import re

TAIL_CHARS = 1000
_CHUNK_CHARS = 4000  # so little is copied to remove a character from a long row
_COLOR_CHARS = 64  # of sequences that may stand behind a character
_TOKEN = re.compile(r"\x1b\[[0-9;:]*m|.", re.DOTALL)


class Row:
    """One row of text, kept in pieces: joining each new piece would copy the row.

    Attributes:
        is_bar: Whether it was written over, as a progress bar is.
        is_edited: Whether characters were removed from its end, as from a progress in percent.
        is_blank: Whether nothing can be seen in it.
        is_held: Whether it is blank and may be a bar's: a bar below it is written first.
        taken: Whether its beginning was taken before it was finished.
    """

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self.is_bar = self.is_edited = False
        self.is_blank = True
        self.is_held = False
        self.taken = False

    def add(self, piece: str) -> None:
        """Append text."""
        self._pieces.append(piece)
        self.is_blank = self.is_blank and piece.isspace()

    def clear(self) -> None:
        """Remove all text."""
        self._pieces = []
        self.is_blank = True
        self.is_edited = False

    def erase(self, count: int) -> None:
        """Remove characters from the end; colors stay."""
        self.is_edited = True
        end: list[str] = []
        size = 0
        while self._pieces and size < count + _COLOR_CHARS:
            last = self._pieces.pop()
            if len(last) > _CHUNK_CHARS:
                parts = range(0, len(last), _CHUNK_CHARS)
                self._pieces += [last[start : start + _CHUNK_CHARS] for start in parts]
                continue
            end.append(last)
            size += len(last)
        tokens = _TOKEN.findall("".join(reversed(end)))
        colors: list[str] = []
        while tokens and count:
            token = tokens.pop()
            if len(token) > 1:
                colors.append(token)
            else:
                count -= 1
        self._pieces.append("".join(tokens + colors[::-1]))
        self.is_blank = all(not piece or piece.isspace() for piece in self._pieces)

    @property
    def text(self) -> str:
        """All text of the row."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def tail(self) -> str:
        """Return the last `TAIL_CHARS` characters, for the table."""
        end: list[str] = []
        size = 0
        for piece in reversed(self._pieces):
            end.insert(0, piece)
            size += len(piece)
            if size >= TAIL_CHARS:
                break
        return "".join(end)[-TAIL_CHARS:]
