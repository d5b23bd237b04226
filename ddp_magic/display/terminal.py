"""What a terminal shows in place of a notebook's displays: a status line, figures as files."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from ddp_magic.display.labels import IMAGES, as_text, image_bytes, image_of, label
from ddp_magic.system.run_directory import RunDirectory


class StatusLine:
    """The last line of a terminal, rewritten in place."""

    def __init__(self) -> None:
        self._shown = ""

    @property
    def chars(self) -> int:
        """Longest line that the terminal does not wrap."""
        # The terminal itself knows: COLUMNS keeps the size that it had at its start.
        with contextlib.suppress(OSError, ValueError):
            if columns := os.get_terminal_size(sys.stdout.fileno()).columns:
                return columns - 1
        return shutil.get_terminal_size().columns - 1

    def show(self, text: str) -> None:
        """Show a line in the place of the last one."""
        if text != self._shown:
            self._shown = text
            sys.stdout.write(f"\r\x1b[K{text}")
            sys.stdout.flush()

    def hide(self) -> str:
        """Remove the line, for text that comes now; return it."""
        hidden, self._shown = self._shown, ""
        if hidden:
            sys.stdout.write("\r\x1b[K")
            sys.stdout.flush()
        return hidden


def is_terminal() -> bool:
    """Return whether stdout is a terminal that can rewrite a line."""
    return sys.stdout.isatty() and os.environ.get("TERM") not in (None, "", "dumb")


def display_lines(
    data: Mapping[str, Any], directory: RunDirectory, rank: int | None, display: str
) -> list[str]:
    """Return a display as lines of text; a figure is saved, and its file named.

    Args:
        data: What is displayed, by MIME type.
        directory: The run's.
        rank: Whose display it is; None for lines without a label.
        display: Its name.
    """
    name = "" if rank is None else f"{label([rank])} "
    lines = [f"{name}{line}" for line in as_text(data.get("text/plain", "")).splitlines()]
    if (kind := image_of(data)) is None:
        return lines or [name.rstrip()]
    path = directory.figure(display, IMAGES[kind])
    try:
        path.write_bytes(image_bytes(kind, data[kind]))
    except (OSError, ValueError) as error:  # a full disk; what is no base64
        return [*lines, f"{name}the figure could not be saved: {error}"]
    return [*lines, f"figure: {path}"]
