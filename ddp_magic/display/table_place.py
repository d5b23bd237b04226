"""Where the live table of a run stands in a notebook: below what was put out last.

Jupyter cannot move an output. JupyterLab and Notebook 7 are told to draw the table last, by a style
that comes with it. For other front ends, the table moves now and then: it is shown again below, and
its old place becomes empty. Each move costs two outputs, so the moves become rarer.
"""

from __future__ import annotations

from ddp_magic.display.grid import html_line
from ddp_magic.display.outputs import Outputs

FIRST_MOVE_S = 5.0  # after output has come below the table; then twice that, four times that
MAX_MOVES = 6

# Of JupyterLab's elements, one holds the outputs of a cell, and each output has one of its own.
_STYLE = """<style>
.jp-OutputArea:has(> .jp-OutputArea-child .{name}) {{ display: flex; flex-direction: column }}
.jp-OutputArea:has(> .jp-OutputArea-child .{name}) > * {{ flex: none; min-width: 0 }}
.jp-OutputArea > .jp-OutputArea-child:has(.{name}) {{ order: 1 }}
@keyframes ddp-old {{ to {{ max-height: 9em; visibility: visible }} }}
</style>"""
# Each new table starts the animation anew. It ends in a page that gets none: one that was loaded
# again, or whose kernel has ended. What Jupyter shows there would say "running" for ever.
OLD_S = 10
_OLD = (
    '<div style="max-height:0;visibility:hidden;animation:ddp-old 1ms {seconds}s forwards">'
    "{words}</div>"
)


class TablePlace:
    """The place of a run's table, and of the line that replaces it at the end.

    Args:
        outputs: The cell's outputs.
        name: The display id of the first place.
        run_id: Name of the run.
    """

    def __init__(self, outputs: Outputs, name: str, run_id: str) -> None:
        self._outputs = outputs
        self._name = name
        words = (
            f"no news for {OLD_S} s: after a page reload or a kernel restart, "
            f"%ddp_show {run_id} shows the rest"
        )
        self._old = _OLD.format(seconds=OLD_S, words=html_line(words))
        self._head = ("", "")  # what stays in the first place
        self._place = self._number = 0
        self._shown = ""
        self._below_since: float | None = None
        self._next_move_s = FIRST_MOVE_S
        self._moves = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been shown."""
        return not self._place

    def begin(self, line: str) -> None:
        """Show the line that stays above the output."""
        self._head = (line, html_line(line))
        self._put(*self._head, new=True)

    @property
    def _is_last(self) -> bool:
        return self._outputs.number == self._number

    def show(self, text: str, markup: str, now: float, *, room: int) -> None:
        """Show the table.

        Args:
            text: The table.
            markup: The same as HTML.
            now: Time, in seconds.
            room: Number of outputs that it may use to move.
        """
        if text == self._shown:
            return
        style = _STYLE.format(name=f"ddp-{self._name}")
        markup = f'<div class="ddp-{self._name}">{markup}{self._old}</div>{style}'
        if self.is_empty:
            self._put(text, markup, new=True)
        elif not self._is_last and self._shown == self._head[0]:
            self._move(text, markup)  # the first table: no place becomes empty
        elif self._has_to_move(now) and room > 1:
            self._moves += 1
            self._next_move_s *= 2
            self._move(text, markup)
        else:
            self._put(text, markup)

    def _has_to_move(self, now: float) -> bool:
        if self._is_last or self._moves == MAX_MOVES:
            return False
        if self._below_since is None:
            self._below_since = now
        return now - self._below_since >= self._next_move_s

    def close(self, line: str, *, head: str = "") -> None:
        """Replace the table by a line that stands below all output.

        Args:
            line: The line.
            head: What stands above the output from now on; empty for what stands there.
        """
        is_above = self._place > 1 or not self._is_last  # else the line takes its place
        if head and self._head[0] and is_above:
            self._head = (head, html_line(head))
            if self._place > 1:  # else it is shown when the table leaves its place
                self._publish(*self._head, 1, update=True)
        if not self.is_empty and not self._is_last:
            self._move(line, html_line(line))
        else:
            self._put(line, html_line(line), new=self.is_empty)

    def _move(self, text: str, markup: str) -> None:
        left, was_shown = self._place, self._shown
        stays = self._head if left == 1 else ("", "")
        if stays[0] != was_shown:
            self._publish(*stays, left, update=True)
        self._put(text, markup, new=True)

    def _put(self, text: str, markup: str, *, new: bool = False) -> None:
        if new:
            self._place += 1
            self._below_since = None
        self._shown = text
        self._publish(text, markup, self._place, update=not new)
        if new:
            self._number = self._outputs.number

    def _publish(self, text: str, markup: str, place: int, *, update: bool) -> None:
        name = self._name if place == 1 else f"{self._name}{place}"
        self._outputs.display({"text/plain": text, "text/html": markup}, {}, name, update=update)
