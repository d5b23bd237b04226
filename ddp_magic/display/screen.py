"""Shows events in a notebook or a terminal: lines, figures, the status table.

All output is text or plain HTML, so a saved notebook, nbconvert and a terminal show the same. Text
goes through `sys.stdout` and displays through the shell's publisher, so `%%capture` works. Text is
written at most every `FLUSH_S` seconds, in one piece, because a Jupyter server silently drops
messages that arrive faster than 1000 a second.
"""

from __future__ import annotations

import base64
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from ddp_magic.display.journal import Journal
from ddp_magic.display.places import with_cell_names
from ddp_magic.display.rank_text import Page, RankText
from ddp_magic.display.record import RunRecord
from ddp_magic.display.status import html_line, summary, table_html, table_text
from ddp_magic.display.throttle import BYTES_BURST, BYTES_PER_S, Bucket
from ddp_magic.wire.kernel_events import Note, Restarted, RunEvent, Stream
from ddp_magic.wire.messages import ClearOutput, DisplayData
from ddp_magic.wire.states import State

FLUSH_S = 0.05
TABLE_S = 0.25
TABLE_AFTER_S = 0.5  # a shorter run shows no table
PARTIAL_S = 0.2  # an unfinished line is shown when nothing follows for this long
LABEL_CHARS = 80
PAGE_S = 0.5  # between two updates of a page


class CellScreen:
    """The output of one `%%ddp` cell.

    Args:
        shell: The notebook's shell; None in a script.
        clock: Returns the time, in seconds.
    """

    def __init__(
        self, shell: InteractiveShell | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._shell = shell
        self._clock = clock
        self._live = is_notebook(shell)
        self._texts: dict[int, RankText] = {}
        self._progress: dict[int, str] = {}
        self._incoming: list[tuple[int, str]] = []
        self._out: list[str] = []
        self._open_rank: int | None = None  # the rank whose unfinished line ends the screen
        self._last_flush = 0.0
        self._last_table = 0.0
        self._last_pages = 0.0
        self._shown_table = ""
        self._show: frozenset[int] | None = None
        self._cell_labels: Mapping[str, str] = {}
        self._run_id = self._id = ""
        self._journal: Journal | None = None

    # --- what a run calls ---------------------------------------------------------------------

    def start(self, record: RunRecord) -> None:
        """Show which devices the ranks run on."""
        size = Bucket(BYTES_BURST, BYTES_PER_S)
        self._run_id = self._id = record.id
        self._show, self._cell_labels = record.show, record.cell_labels
        if record.journal is not None:
            self._journal = Journal(record.journal)
            self._journal.begin(record)
        for rank in record.ranks:
            self._texts[rank.rank] = RankText(rank.rank, str(rank.log), size)
        if not record.quiet:
            self._say(record.devices)

    def take(self, event: RunEvent) -> None:
        """Show an event now or at the next `tick`."""
        match event:
            case Stream(rank=rank, text=text):
                self._incoming.append((rank, text))
            case DisplayData():
                self._display(event)
            case ClearOutput(rank=rank):
                self._clear(self._texts[rank])
            case Restarted(number=number):
                self._end_texts()
                self._id = f"{self._run_id}-restart{number}"  # earlier displays stay
            case Note(text=text):
                self._flush()
                self._write_lines([text])
                self._write()
            case _:
                pass

    def _clear(self, text: RankText) -> None:
        """Replace the rank's last output by its next one.

        Text from before its first `clear_output()` is mixed with other ranks' text and stays.
        """
        text.replace_last = True
        if not self._live:
            return
        self._flush()
        if partial := text.lines.take_partial():
            self._write_rank_lines(text.rank, [partial])
        text.page = text.page or Page(text.log)
        text.page.clear()

    def tick(self, record: RunRecord) -> None:
        """Write pending text and update the table, if it is time."""
        now = self._clock()
        if now - self._last_flush >= FLUSH_S:
            self._flush()
        for rank, text in self._texts.items():
            self._progress[rank] = text.lines.progress
        self._publish_pages(now)
        due = now - self._last_table >= TABLE_S and record.elapsed_s > TABLE_AFTER_S
        if self._live and due and (record.waits or not record.quiet):
            self._last_table = now
            self._publish_table(table_text(record), table_html(record))

    @property
    def progress(self) -> Mapping[int, str]:
        """The ranks' progress bars, by rank; updated at each `tick`."""
        return self._progress

    def finish(self, record: RunRecord) -> None:
        """Show the remaining output, and replace the table by the closing line."""
        self._end_texts()
        for rank in record.ranks:
            if rank.left_early:
                self._write_lines([f"rank {rank.rank} left early: os._exit(0) in the cell"])
        if record.swept:
            what = "process" if record.swept == 1 else "processes"
            self._write_lines([f"ended {record.swept} {what} that the ranks had left behind"])
        self._write_lines(record.closing)
        self._write()
        if record.figure is not None:
            self._publish_figure(record.figure)
        if self._journal is not None:
            self._journal.end(record)
            if why := self._journal.failure:
                self._write_lines([f"%ddp_show cannot show all of this again: {why}"])
                self._write()
        # A table that told of a wait is not to stay.
        if not record.quiet or record.state is not State.SUCCEEDED or self._shown_table:
            self._say(summary(record))

    def _end_texts(self) -> None:
        """Show what is left of the ranks' text, and let what follows begin anew."""
        self._flush()
        for text in self._texts.values():
            lines = text.throttle.admit(text.lines.end(), self._clock())
            lines += text.throttle.release(self._clock(), final=True)
            if text.rank == self._open_rank and lines:
                self._out.append(lines.pop(0))  # the rest of the line on the screen
            self._write_rank_lines(text.rank, lines)
        self._publish_pages(float("inf"))
        if self._open_rank is not None:
            self._out.append("\n")
            self._open_rank = None
        for text in self._texts.values():
            text.end()

    # --- text ---------------------------------------------------------------------------------

    def _flush(self) -> None:
        now = self._clock()
        self._last_flush = now
        incoming, self._incoming = self._incoming, []
        for rank, joined in _join(incoming):
            text = self._texts[rank]
            text.last_text = now
            lines = text.lines.feed(joined)
            if lines and self._open_rank == rank:
                # The beginning of this line is already on the screen.
                self._out.append(lines.pop(0) + "\n")
                self._open_rank = None
            admitted = lines if text.page is not None else text.throttle.admit(lines, now)
            self._write_rank_lines(rank, admitted)
        for text in self._texts.values():
            quiet = now - text.last_text > PARTIAL_S
            if quiet:
                self._write_rank_lines(text.rank, text.throttle.release(now))
            if quiet and text.lines.partial and text.page is None:
                self._write_partial(text)
        self._write()

    def _write_rank_lines(self, rank: int, lines: Iterable[str]) -> None:
        lines = [with_cell_names(line, self._cell_labels) for line in lines]
        page = self._texts[rank].page
        if page is not None:
            page.add(lines)
        elif self._show is None or rank in self._show:
            self._write_lines(f"[rank {rank}] {line}" for line in lines)

    def _write_lines(self, lines: Iterable[str]) -> None:
        for line in lines:
            if self._open_rank is not None:
                self._out.append("\n")
                # Another rank's line breaks it: the rest of it starts a new line.
                self._open_rank = None
            self._out.append(line + "\n")

    def _write_partial(self, text: RankText) -> None:
        if self._show is not None and text.rank not in self._show:
            return
        piece = text.throttle.admit_partial(text.lines.partial, self._clock())
        if not piece:
            return
        text.lines.take_partial()
        if self._open_rank == text.rank:
            self._out.append(piece)
            return
        if self._open_rank is not None:
            self._out.append("\n")
        self._out.append(f"[rank {text.rank}] {piece}")
        self._open_rank = text.rank

    def _write(self) -> None:
        if self._out:
            text = "".join(self._out)
            if self._journal is not None:
                self._journal.text(text)
            sys.stdout.write(text)
            sys.stdout.flush()
            self._out = []

    def _publish_pages(self, now: float) -> None:
        if now - self._last_pages < PAGE_S:
            return
        self._last_pages = now
        for rank, text in self._texts.items():
            if text.page is None or not text.page.changed:
                continue
            if self._show is not None and rank not in self._show:
                continue
            self._publish(
                {"text/plain": text.page.text(rank)},
                {"ddp": {"rank": rank}},
                f"{self._id}-{rank}-page",
                update=text.page.shown,
            )
            text.page.changed, text.page.shown = False, True

    # --- rich output --------------------------------------------------------------------------

    def _display(self, event: DisplayData) -> None:
        self._flush()
        if self._show is not None and event.rank not in self._show:
            return
        text = self._texts[event.rank]
        if partial := text.lines.take_partial():
            self._write_rank_lines(event.rank, [partial])
        update, display_id = event.update, event.display_id
        if display_id is not None:
            display_id = f"{self._id}-{event.rank}-own-{display_id}"
        elif text.replace_last and text.last_display is not None:
            display_id, update = text.last_display, True
        else:
            text.displays += 1
            display_id = f"{self._id}-{event.rank}-{text.displays}"
        text.replace_last = False
        if not update:
            text.last_display = display_id
            self._label(event)
        metadata = {**event.metadata, "ddp": {"rank": event.rank}}
        self._publish(event.data, metadata, display_id, update=update)

    def _publish_figure(self, png: bytes) -> None:
        data = {"image/png": base64.b64encode(png).decode(), "text/plain": "(profile)"}
        self._publish(data, {"ddp": {"profile": True}}, f"{self._id}-profile", update=False)

    def _publish(
        self, data: Mapping[str, Any], metadata: Mapping[str, Any], display_id: str, *, update: bool
    ) -> None:
        if self._journal is not None:
            self._journal.display(data, metadata, display_id, update=update)
        if self._shell is not None and self._live:
            self._shell.display_pub.publish(
                data, metadata, transient={"display_id": display_id}, update=update
            )

    def _label(self, event: DisplayData) -> None:
        plain = str(event.data.get("text/plain", ""))
        drawn = any(kind.startswith("image/") for kind in event.data)
        if self._live and (drawn or "\n" in plain or len(plain) > LABEL_CHARS):
            plain = ""
        if plain:
            self._write_lines(f"[rank {event.rank}] {line}" for line in plain.splitlines())
        else:
            self._write_lines([f"[rank {event.rank}]"])
        self._write()

    # --- the table ----------------------------------------------------------------------------

    def _say(self, line: str) -> None:
        """Show a line in the place of the table."""
        if self._live:
            self._publish_table(line, html_line(line))
        else:
            print(line, flush=True)  # noqa: T201 -- this is the screen

    def _publish_table(self, text: str, markup: str) -> None:
        if text == self._shown_table or self._shell is None:
            return
        update = bool(self._shown_table)
        self._shown_table = text
        self._shell.display_pub.publish(
            {"text/plain": text, "text/html": markup},
            {},
            transient={"display_id": f"{self._run_id}-table"},
            update=update,
        )


def is_notebook(shell: InteractiveShell | None) -> bool:
    """Return whether displays can be updated in place; a terminal would print them again."""
    return hasattr(shell, "kernel")


def _join(pieces: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Join consecutive pieces of the same rank."""
    joined: list[tuple[int, list[str]]] = []
    for rank, text in pieces:
        if joined and joined[-1][0] == rank:
            joined[-1][1].append(text)
        else:
            joined.append((rank, [text]))
    return [(rank, "".join(texts)) for rank, texts in joined]
