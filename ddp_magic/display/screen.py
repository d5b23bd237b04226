"""Shows events in a notebook or a terminal: lines, figures, the status table.

All output is text or plain HTML, so a saved notebook, nbconvert and a terminal show the same. Text
goes through `sys.stdout` and displays through the shell's publisher, so `%%capture` works. Text is
written at most every `FLUSH_S` seconds, in one piece, because a Jupyter server silently drops
messages that arrive faster than 1000 a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from IPython.core.interactiveshell import InteractiveShell

from ddp_magic.display.fold import Fold
from ddp_magic.display.journal import Journal
from ddp_magic.display.labels import label
from ddp_magic.display.outputs import Outputs
from ddp_magic.display.places import with_cell_names
from ddp_magic.display.rank_displays import RankDisplays
from ddp_magic.display.rank_text import Page, RankText
from ddp_magic.display.record import RunRecord
from ddp_magic.display.status import clock, html_line, summary
from ddp_magic.display.table import LiveTable, status_line
from ddp_magic.display.table_place import TablePlace
from ddp_magic.display.throttle import BYTES_BURST, BYTES_PER_S, Bucket
from ddp_magic.wire.kernel_events import Note, Restarted, RunEvent, Stream
from ddp_magic.wire.messages import ClearOutput, DisplayData
from ddp_magic.wire.states import State

FLUSH_S = 0.05
TABLE_S = 0.25
TABLE_AFTER_S = 0.5  # a shorter run shows no table
PARTIAL_S = 0.2  # an unfinished line is shown when nothing follows for this long
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
        self._clock = clock
        self._outputs = Outputs(shell)
        self._live = self._outputs.shows_displays
        self._texts: dict[int, RankText] = {}
        self._progress: dict[int, str] = {}
        self._incoming: list[tuple[int, str]] = []
        self._came = 0.0  # when the first of them came
        self._fold: Fold[DisplayData] = Fold(())
        self._out: list[str] = []
        self._open_rank: int | None = None  # the rank whose unfinished line ends the screen
        self._last_flush = 0.0
        self._last_table = 0.0
        self._last_pages = 0.0
        self._table = LiveTable()
        self._table_place = TablePlace(self._outputs, "")
        self._displays = RankDisplays(self._outputs)
        self._cell_labels: Mapping[str, str] = {}
        self._journal: Journal | None = None

    # --- what a run calls ---------------------------------------------------------------------

    def start(self, record: RunRecord) -> None:
        """Show which devices the ranks run on."""
        size = Bucket(BYTES_BURST, BYTES_PER_S)
        self._cell_labels = record.cell_labels
        if record.journal is not None:
            self._journal = Journal(record.journal)
            self._journal.begin(record)
        for rank in record.ranks:
            self._texts[rank.rank] = RankText(rank.rank, str(rank.log), size)
        shown = [rank for rank in self._texts if record.show is None or rank in record.show]
        self._fold = Fold(shown)
        self._table_place = TablePlace(self._outputs, f"{record.id}-table")
        self._displays.start(record, shown, self._journal)
        if not record.quiet:
            self._begin(record)

    def _begin(self, record: RunRecord) -> None:
        if self._live:
            line = f"{record.devices} · {clock(record.started)}"
            self._table_place.begin(line, html_line(line))
        else:
            print(record.devices, flush=True)  # noqa: T201 -- this is the screen

    def take(self, event: RunEvent) -> None:
        """Show an event now or at the next `tick`."""
        match event:
            case Stream(rank=rank, text=text):
                self._came = self._came if self._incoming else self._clock()
                self._incoming.append((rank, text))
            case DisplayData(rank=rank) if self._fold.shows(rank):
                self._feed()
                if partial := self._texts[rank].lines.take_partial():
                    self._queue(self._texts[rank], [partial])
                self._fold.add(rank, event, self._clock())
            case ClearOutput(rank=rank):
                self._clear(self._texts[rank])
            case Restarted(number=number):
                self._end_texts()
                self._displays.restart(number)  # earlier displays stay
            case Note(text=text):
                self._flush(final=True)
                self._write_lines([text])
                self._write()
            case _:
                pass

    def _clear(self, text: RankText) -> None:
        """Replace the rank's last output by its next one.

        Text from before its first `clear_output()` is mixed with other ranks' text and stays.
        """
        self._feed()
        self._show([((text.rank,), item) for item in self._fold.take_all(text.rank)])
        text.replace_last = True
        if not self._live:
            return
        if partial := text.lines.take_partial():
            self._write_rank_line((text.rank,), partial)
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
        if due and (record.waits or not record.quiet):
            self._last_table = now
            self._show_state(record, now)

    def _show_state(self, record: RunRecord, now: float) -> None:
        status = self._outputs.status
        if self._live:
            room = self._outputs.room - self._displays.promised
            self._table_place.show(*self._table.render(record), now, room=room)
        elif status is not None and self._open_rank is None:
            status.show(status_line(record, status.chars))

    @property
    def wait_s(self) -> float:
        """Time until a `tick` has text to show, in seconds; infinity if there is none."""
        now = self._clock()
        due = now if self._incoming else self._fold.due
        return max(0.0, due - now, self._last_flush + FLUSH_S - now)

    @property
    def progress(self) -> Mapping[int, str]:
        """The ranks' progress bars, by rank; updated at each `tick`."""
        return self._progress

    def finish(self, record: RunRecord) -> None:
        """Show the remaining output, and replace the table by the closing line."""
        if self._outputs.status is not None:
            self._outputs.status.hide()
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
            self._displays.show_profile(record.figure)
            self._table_place.has_output_below(self._clock())
        if self._journal is not None:
            self._journal.end(record)
            if why := self._journal.failure:
                self._write_lines([f"%ddp_show cannot show all of this again: {why}"])
                self._write()
        # A table that told of a wait is not to stay.
        has_table = not self._table_place.is_empty
        if not record.quiet or record.state is not State.SUCCEEDED or has_table:
            self._close(record)

    def _close(self, record: RunRecord) -> None:
        if self._live:
            line = summary(record, with_clock=True)
            self._table_place.close(line, html_line(line))
        else:
            print(summary(record), flush=True)  # noqa: T201 -- this is the screen

    def _end_texts(self) -> None:
        """Show what is left of the ranks' text, and let what follows begin anew."""
        self._flush(final=True)
        now = self._clock()
        for text in self._texts.values():
            lines = text.throttle.admit(text.lines.end(), now)
            lines += text.throttle.release(now, final=True)
            if text.rank == self._open_rank and lines:
                self._out.append(lines.pop(0))  # the rest of the line on the screen
            self._queue(text, lines)
        self._show(self._fold.release(now, final=True))
        self._publish_pages(float("inf"))
        if self._open_rank is not None:
            self._out.append("\n")
            self._open_rank = None
        self._write()
        for text in self._texts.values():
            text.end()

    # --- text ---------------------------------------------------------------------------------

    def _flush(self, *, final: bool = False) -> None:
        """Show what is due; with `final`, everything but unfinished lines."""
        now = self._clock()
        self._feed()
        quiet = [text for text in self._texts.values() if now - text.last_text > PARTIAL_S]
        for text in quiet:
            self._queue(text, text.throttle.release(now))
        self._show(self._fold.release(now, final=final))
        for text in quiet:
            if text.lines.partial and text.page is None and not self._fold.has(text.rank):
                self._write_partial(text)
        self._write()

    def _feed(self) -> None:
        """Split what has come into lines, and let them wait for those of the other ranks."""
        now = self._clock()
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
            self._queue(text, admitted, self._came)

    def _queue(self, text: RankText, lines: Iterable[str], came: float | None = None) -> None:
        """Let lines wait for those of the other ranks, from when they came on, in seconds."""
        if not self._fold.shows(text.rank):
            return
        came = self._clock() if came is None else came
        for line in lines:
            named = with_cell_names(line, self._cell_labels)
            self._fold.add_line(text.rank, named, came, foldable=text.page is None)

    def _show(self, released: Iterable[tuple[tuple[int, ...], str | DisplayData]]) -> None:
        for ranks, item in released:
            if isinstance(item, DisplayData):
                self._display(item)
            else:
                self._write_rank_line(ranks, item)

    def _write_rank_line(self, ranks: tuple[int, ...], line: str) -> None:
        page = self._texts[ranks[0]].page if len(ranks) == 1 else None
        if page is not None:
            page.add([line])
        else:
            self._write_lines([f"{label(ranks)} {line}"])

    def _write_lines(self, lines: Iterable[str]) -> None:
        for line in lines:
            if self._open_rank is not None:
                self._out.append("\n")
                # Another rank's line breaks it: the rest of it starts a new line.
                self._open_rank = None
            self._out.append(line + "\n")

    def _write_partial(self, text: RankText) -> None:
        if not self._fold.shows(text.rank):
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
        self._out.append(f"{label([text.rank])} {piece}")
        self._open_rank = text.rank

    def _write(self, *, keep: bool = True) -> None:
        """Write the pending text.

        Args:
            keep: Whether it belongs into the journal.
        """
        if self._out:
            text = "".join(self._out)
            if keep and self._journal is not None:
                self._journal.text(text)
            self._outputs.write(text)
            self._last_flush = self._clock()  # what comes after a silence is shown at once
            self._table_place.has_output_below(self._last_flush)
            self._out = []

    # --- rich output --------------------------------------------------------------------------

    def _publish_pages(self, now: float) -> None:
        if now - self._last_pages < PAGE_S:
            return
        self._last_pages = now
        for rank, text in self._texts.items():
            if text.page is not None and text.page.changed and self._fold.shows(rank):
                self._displays.show_page(rank, text.page)
                self._table_place.has_output_below(now)

    def _display(self, event: DisplayData) -> None:
        self._write()
        self._write_lines(self._displays.show(event, self._texts[event.rank]))
        self._write(keep=False)  # the journal has the display
        self._table_place.has_output_below(self._clock())


def _join(pieces: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Join consecutive pieces of the same rank."""
    joined: list[tuple[int, list[str]]] = []
    for rank, text in pieces:
        if joined and joined[-1][0] == rank:
            joined[-1][1].append(text)
        else:
            joined.append((rank, [text]))
    return [(rank, "".join(texts)) for rank, texts in joined]
