"""The notebook's cells as they were typed, while they run. A magic gets only its line and body."""

from __future__ import annotations

import re
import threading

# Lines above a body that show nothing before it has run: cell magics, such as `%%time`, comments.
_HEAD = re.compile(r"(?:[ \t]*(?:#.*)?\n|%%\w.*\n)*")


class TypedCells(threading.local):
    """The cells that run in this thread: one, and those that its code runs (`run_cell`)."""

    def __init__(self) -> None:
        self._cells: list[str] = []

    def begin(self, text: str) -> None:
        """Note that a cell begins to run."""
        self._cells.append(text)

    def end(self) -> None:
        """Note that it has run."""
        if self._cells:  # else: the one that has loaded the extension
            self._cells.pop()

    @property
    def current(self) -> str:
        """The text of the innermost cell; empty if it is not known."""
        return self._cells[-1] if self._cells else ""

    def has_only(self, code: str) -> bool:
        """Return whether the notebook's cell shows only what this code shows.

        Args:
            code: The body of a cell magic, or a line magic.
        """
        head, found, rest = self.current.rpartition(code.strip())
        alone = found and not rest.strip() and _HEAD.fullmatch(head)
        return len(self._cells) == 1 and bool(alone)
