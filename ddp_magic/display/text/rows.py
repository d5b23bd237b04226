"""One row of a terminal: its text in pieces, and whether it is a bar's, blank or taken."""

from __future__ import annotations

TAIL_CHARS = 1000


class Row:
    """One row of text, kept in pieces: joining each new piece would copy the row.

    Attributes:
        is_bar: Whether it was written over, as a progress bar is.
        is_blank: Whether nothing can be seen in it.
        is_held: Whether it is blank and may be a bar's: a bar below it is written first.
        taken: Whether its beginning was taken before it was finished.
    """

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self.is_bar = False
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
