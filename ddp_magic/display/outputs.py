"""The outputs of one cell in a notebook: text, displays, the table. Counts them.

JupyterLab draws 50 outputs of a cell, and hides the others behind a button: the traceback of a
failure among them. Text that follows text is one output with it; text that follows a display is
another one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell

from ddp_magic.display.labels import as_text, colored
from ddp_magic.display.shown import Shown
from ddp_magic.display.terminal import StatusLine, is_terminal

MAX_OUTPUTS = 45
# JupyterLab draws all of a text anew when something is added to it, and a color costs ten times as
# much as the line that has it.
MAX_COLORED_LINES = 300
# Text, notes, a figure of the profile, the closing line, the traceback: they come at the end.
_ENDING = 5
# A page shows some 40 lines of a cell; Notebook 7 gives a cell with more a window of its own.
_TALL_LINES = 40
_DISPLAY_LINES = 12  # of a small figure


class Outputs:
    """The outputs of one cell.

    Args:
        shell: The notebook's shell; None in a script.
        stays: Whether these are the outputs of the cell that runs now, also after its end and from
            other threads.
        owns_cell: Whether nothing else shows something in the cell: only then it can be cleared.

    Attributes:
        shows_displays: Whether displays can be shown, and updated in place.
        status: The last line of a terminal; None elsewhere.
    """

    def __init__(
        self, shell: InteractiveShell | None, *, stays: bool = False, owns_cell: bool = True
    ) -> None:
        self._owns_cell = owns_cell
        self._shell = shell
        self._stdout = sys.stdout if stays else None
        self._publisher = _publisher_of_this_cell(shell.display_pub) if shell and stays else None
        self._has_colors = has_colors(shell)
        self._count = self._number = 0
        self._text_is_last = False
        self._lines = self._all_lines = 0
        self._shown = Shown()
        self._has_to_redraw = False
        self._held: Callable[[], None] | None = None
        self.shows_displays = is_notebook(shell)
        # A terminal's last line is that of the prompt, once the cell has ended.
        has_status = not self.shows_displays and is_terminal() and not stays
        self.status = StatusLine() if has_status else None

    @property
    def number(self) -> int:
        """Number of texts, displays and answers so far, without updates: it grows with each."""
        return self._number

    @property
    def room(self) -> int:
        """Number of outputs that may follow, without those at the end."""
        return MAX_OUTPUTS - _ENDING - self._count

    @property
    def lines_of_text(self) -> int:
        """Number of lines of the output to which text is added; 0 if text begins a new one."""
        return self._lines if self._text_is_last and self.shows_displays else 0

    @property
    def is_tall(self) -> bool:
        """Whether a page does not show the first and the last output at once."""
        return self._all_lines > _TALL_LINES

    def hold(self, show: Callable[[], None]) -> None:
        """Hold back what is to stand above the cell's first output until that comes.

        Args:
            show: Shows it.
        """
        self._held = show

    def show_held(self) -> None:
        """Show what is held back."""
        held, self._held = self._held, None
        if held is not None:
            held()

    def drop_held(self) -> None:
        """Do not show what is held back."""
        self._held = None

    def write(self, text: str) -> None:
        """Show text."""
        self.show_held()
        self._number += 1
        if self.shows_displays:
            self._shown.text(text)
        self._put_text(text)

    def _put_text(self, text: str) -> None:
        if not self._text_is_last:
            self._count += 1
            self._text_is_last, self._lines = True, 0
        has_colors = self._has_colors and self.lines_of_text < MAX_COLORED_LINES
        self._lines += (lines := text.count("\n"))
        self._all_lines += lines
        hidden = self.status.hide() if self.status is not None else ""
        out = self._stdout or sys.stdout
        out.write(colored(text) if has_colors else text)
        out.flush()
        if self.status is not None and hidden and text.endswith("\n"):
            self.status.show(hidden)

    def note_answer(self, line: str) -> None:
        """Note an output of the front end's own: a question and its answer."""
        self.show_held()
        self._number += 1
        self._count += 1
        self._text_is_last = False
        if self.shows_displays:
            self._shown.text(f"{line}\n")

    def remove_box(self) -> None:
        """Remove the box of a question that nobody waits for any more, at the next `redraw`."""
        self._has_to_redraw = self._has_to_redraw or self.shows_displays

    def display(
        self, data: Mapping[str, Any], metadata: Mapping[str, Any], name: str, *, update: bool
    ) -> None:
        """Show a display, or new content in the place of one.

        Args:
            data: What it is, by MIME type.
            metadata: Jupyter's.
            name: Its display id.
            update: Whether it takes the place of the one of this name.
        """
        if self._shell is None or not self.shows_displays:
            return
        self.show_held()
        self._number += not update
        self._shown.display(name, data, metadata, update=update)
        self._put_display(data, metadata, name, update=update)

    def _put_display(
        self, data: Mapping[str, Any], metadata: Mapping[str, Any], name: str, *, update: bool
    ) -> None:
        assert self._shell is not None  # noqa: S101 -- it shows displays
        if not update:
            self._count += 1
            self._all_lines += _DISPLAY_LINES
            self._text_is_last = False
        if self._has_colors and "ddp" in metadata and data.keys() == {"text/plain"}:
            data = {"text/plain": colored(as_text(data["text/plain"]))}
        publisher = self._publisher or self._shell.display_pub
        publisher.publish(data, metadata, transient={"display_id": name}, update=update)

    def keep(self) -> None:
        """Keep what is shown now, whichever rank clears its output: it is of earlier processes."""
        self._shown.keep()

    def remove(self, rank: int) -> None:
        """Remove all that a rank has shown, at the next `redraw`."""
        if self.shows_displays and self._shown.remove(rank):
            self._has_to_redraw = True

    def redraw(self, logs: str) -> None:
        """Show all anew that is to stay: Jupyter removes all outputs of a cell or none.

        Args:
            logs: Directory of the logs, for the message on lines left out.
        """
        if not self._has_to_redraw or self._shell is None:
            return
        self._has_to_redraw = False
        publisher = self._publisher or self._shell.display_pub
        if not self._owns_cell or isinstance(publisher, CapturingDisplayPublisher):
            return  # the rest of the cell's output would go too; what is captured stays
        entries = self._shown.entries(logs)
        (self._stdout or sys.stdout).flush()
        publisher.clear_output(wait=bool(entries))
        self._count, self._text_is_last = 0, False
        for entry in entries:
            if isinstance(entry, str):
                self._put_text(entry)
            else:
                self._put_display(entry.data, entry.metadata, entry.name, update=False)


def _publisher_of_this_cell(publisher: Any) -> Any:  # noqa: ANN401 -- IPython's or ipykernel's
    """Return a publisher that goes on publishing into this cell.

    ipykernel's own follows the cells: in version 6 the newest cell, whatever the thread.
    """
    if not hasattr(publisher, "set_parent"):  # a terminal's; that of %%capture
        return publisher
    ours = type(publisher)(session=publisher.session, pub_socket=publisher.pub_socket)
    ours.topic = publisher.topic
    ours.set_parent({"header": publisher.parent_header})
    return ours


def is_notebook(shell: InteractiveShell | None) -> bool:
    """Return whether displays can be updated in place; a terminal would print them again."""
    return hasattr(shell, "kernel")


def has_colors(shell: InteractiveShell | None) -> bool:
    """Return whether text may have colors: not in a file, with `%%capture` or with NO_COLOR."""
    if os.environ.get("NO_COLOR") or str(getattr(shell, "colors", "")).lower() == "nocolor":
        return False
    if is_notebook(shell):
        return type(sys.stdout).__module__.startswith("ipykernel.")
    return is_terminal()
