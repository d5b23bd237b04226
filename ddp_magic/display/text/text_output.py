"""The text of all ranks on the screen, in one order with their displays.

Text is written at most every `written_lines.FLUSH_S` seconds, in one piece, because a Jupyter
server silently drops messages that arrive faster than 1000 a second. What comes after a silence is
shown at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from ddp_magic.display.journal.journal import Journal
from ddp_magic.display.labels import label
from ddp_magic.display.outputs import Outputs
from ddp_magic.display.places import with_cell_names
from ddp_magic.display.rank_displays import RankDisplays
from ddp_magic.display.record import RunRecord
from ddp_magic.display.text.fold import Fold
from ddp_magic.display.text.page import Page
from ddp_magic.display.text.rank_text import RankText
from ddp_magic.display.text.throttle import BYTES_BURST, BYTES_PER_S, Bucket
from ddp_magic.display.text.written_lines import FLUSH_S, WrittenLines
from ddp_magic.wire.kernel_events import Stream
from ddp_magic.wire.worker_events import DisplayData

PARTIAL_S = 0.2  # an unfinished line is shown when nothing follows for this long


class TextOutput:
    """The lines of all ranks, and what stands between them.

    Args:
        outputs: Where text is written.
        displays: What shows the displays.
        clock: Returns the time, in seconds.
    """

    def __init__(
        self, outputs: Outputs, displays: RankDisplays, clock: Callable[[], float]
    ) -> None:
        self._outputs = outputs
        self._displays = displays
        self._clock = clock
        self._texts: dict[int, RankText] = {}
        self._unsettled: dict[int, RankText] = {}  # at hundreds of ranks, few at a time
        self._incoming: list[Stream] = []
        self._came = 0.0  # when the first of them came
        self._fold: Fold[DisplayData] = Fold(())
        self._shown: tuple[int, ...] = ()
        self._written = WrittenLines(outputs, clock)
        self._cell_labels: Mapping[str, str] = {}
        self._logs = ""

    def start(self, record: RunRecord, shown: Iterable[int], journal: Journal | None) -> None:
        """Begin a run.

        Args:
            record: The run.
            shown: The ranks whose output is shown.
            journal: Where the text is kept; None for nowhere.
        """
        size = Bucket(BYTES_BURST, BYTES_PER_S)
        self._texts = {rank.rank: RankText(rank.rank, str(rank.log), size) for rank in record.ranks}
        self._unsettled = {}
        self._shown = tuple(shown)
        self._fold = Fold(self._shown)
        self._cell_labels, self._logs = record.cell_labels, str(record.logs)
        self._written.start(journal)

    def resize(self, nproc: int) -> None:
        """Wait for lines of so many ranks only, of those that the run began with."""
        self._fold = Fold(rank for rank in self._shown if rank < nproc)

    # --- what comes ---------------------------------------------------------------------------

    def add(self, event: Stream) -> None:
        """Take text of a rank."""
        self._came = self._came if self._incoming else self._clock()
        self._incoming.append(event)

    def add_display(self, event: DisplayData) -> None:
        """Take a display, which keeps its place among the rank's lines."""
        if not self._fold.shows(event.rank):
            self._displays.keep(event, self._texts[event.rank])
            return
        self._feed()
        if self._written.open_rank == event.rank:
            self._written.end_line()
        now = self._clock()
        for text in self._texts.values():  # bars that have ended stand above it
            if text.rank == event.rank or now - text.last_text > FLUSH_S:
                self._admit(text, text.lines.settle())
        if partial := self._texts[event.rank].lines.take_partial():
            self._queue(self._texts[event.rank], [partial])
        self._fold.add(event.rank, event, now)

    def clear(self, rank: int, *, wait: bool) -> None:
        """Begin a new page of a rank: what it shows from now on is apart from the others'.

        Args:
            rank: The rank.
            wait: Whether its output stays until something follows.
        """
        if not self._fold.shows(rank):
            self._displays.drop_kept(rank)
            return
        text = self._texts[rank]
        self._feed()
        self._queue(text, text.throttle.release(self._clock(), final=True))
        if partial := text.lines.take_partial():
            self._queue(text, [partial])
        self._show([((rank,), item) for item in self._fold.take_all(rank)])
        if text.page is None:
            self._written.flush()
            text.page, text.has_old_output = Page(rank, text.log), True
        text.page.clear(wait=wait)
        if not wait:
            self._remove_old(text)

    def _remove_old(self, text: RankText) -> None:
        """Remove what the rank has shown before its first page, at the next `tick`."""
        if not text.has_old_output:
            return
        text.has_old_output = False
        self._written.remove(text.rank)

    def note(self, line: str) -> None:
        """Show a line of ddp_magic's own, below all that has come."""
        self._flush(final=True)
        self._written.add([line])
        self._written.flush()

    def ask(self, rank: int, prompt: str) -> None:
        """Show all that was written before a question; in a terminal, the question too.

        What the rank writes is shown from now on.
        """
        self._fold.show_too(rank)
        self._flush(final=True)
        if self._texts[rank].lines.partial:
            self._write_partial(self._texts[rank])
        # A box breaks the line that it stands below; a terminal's own question goes on after it.
        if self._outputs.shows_displays or self._written.open_rank not in (None, rank):
            self._written.end_line()
        self._written.flush()
        self._publish_pages(at_once=True)
        self._written.ask(rank, prompt)

    def close_question(self, rank: int, line: str) -> None:
        """Keep question and answer, which the front end or the terminal has shown."""
        self._written.close_question(rank, line)

    # --- what is shown ------------------------------------------------------------------------

    @property
    def wait_s(self) -> float:
        """Time until a `tick` has text to show, in seconds; infinity if there is none."""
        now = self._clock()
        due = now if self._incoming else self._fold.due
        return max(0.0, due - now, self._written.due - now)

    @property
    def bars(self) -> dict[int, tuple[str, ...]]:
        """The progress bars of the ranks that may have some, by rank, outer ones first."""
        return {rank: text.lines.bars for rank, text in self._unsettled.items()}

    @property
    def ends_a_line(self) -> bool:
        """Whether no unfinished line is on the screen."""
        return self._written.open_rank is None

    def tick(self) -> None:
        """Show what is due."""
        if self._clock() >= self._written.due:
            self._flush()
            self._outputs.redraw(self._logs)
        self._publish_pages()

    def end(self) -> None:
        """Show what is left of the ranks' text, and let what follows begin anew."""
        self._flush(final=True)
        now = self._clock()
        for text in self._texts.values():
            lines = text.throttle.admit(text.lines.end(), now)
            lines += text.throttle.release(now, final=True)
            if text.rank == self._written.open_rank and lines and text.lines.continues:
                self._written.add_unfinished(text.rank, lines.pop(0))  # of the line on the screen
            self._queue(text, lines)
        self._show(self._fold.release(now, final=True))
        self._written.flush()
        self._outputs.redraw(self._logs)
        self._publish_pages(final=True)
        self._written.end_line()
        self._displays.end()
        for text in self._texts.values():
            text.end()

    # --- lines --------------------------------------------------------------------------------

    def _flush(self, *, final: bool = False) -> None:
        """Show what is due; with `final`, everything but unfinished lines."""
        now = self._clock()
        self._feed()
        for text in list(self._unsettled.values()):
            if now - text.last_age > PARTIAL_S:
                text.last_age = now
                self._admit(text, text.lines.age())
        quiet = [text for text in self._unsettled.values() if now - text.last_text > PARTIAL_S]
        for text in quiet:
            self._queue(text, text.throttle.release(now))
        self._show(self._fold.release(now, final=final))
        for text in quiet:
            if text.lines.partial and text.page is None and not self._fold.has(text.rank):
                self._write_partial(text)
            if text.is_settled:
                del self._unsettled[text.rank]
        self._written.flush()

    def _feed(self) -> None:
        """Split what has come into lines, and let them wait for those of the other ranks."""
        now = self._clock()
        self._written.leave_behind()
        incoming, self._incoming = self._incoming, []
        for piece in _join(incoming):
            text = self._texts[piece.rank]
            text.last_text = now
            lines = text.lines.feed(piece.text, piece.writer, begins=piece.begins)
            if lines and self._written.open_rank == piece.rank and text.lines.continues:
                self._written.finish_line(lines.pop(0))  # its beginning is on the screen
            self._admit(text, lines, self._came)

    def _admit(self, text: RankText, lines: list[str], came: float | None = None) -> None:
        admitted = lines if text.page is not None else text.throttle.admit(lines, self._clock())
        if not text.is_settled:
            self._unsettled[text.rank] = text
        if admitted:
            self._queue(text, admitted, came)

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
        text = self._texts[ranks[0]]
        if len(ranks) == 1 and text.page is not None:
            self._remove_old(text)
            text.page.add([line])
        else:
            self._written.add([f"{label(ranks)} {line}"])

    def _write_partial(self, text: RankText) -> None:
        if not self._fold.shows(text.rank):
            return
        piece = text.throttle.admit_partial(text.lines.partial, self._clock())
        if not piece:
            return
        text.lines.take_partial()
        self._written.add_unfinished(text.rank, piece)

    def _publish_pages(self, *, at_once: bool = False, final: bool = False) -> None:
        pages = {rank: text.page for rank, text in self._texts.items() if text.page is not None}
        self._displays.show_pages(pages, self._clock(), at_once=at_once, final=final)

    def _display(self, event: DisplayData) -> None:
        text = self._texts[event.rank]
        if text.page is None:
            self._written.end_line()
        else:
            self._remove_old(text)
        self._displays.show(event, text)


def _join(pieces: list[Stream]) -> list[Stream]:
    """Join consecutive pieces of the same rank, but not two writes of a stream."""
    joined: list[tuple[Stream, list[str]]] = []
    for piece in pieces:
        last = joined[-1][0] if joined else None
        same = last is not None and (last.rank, last.writer) == (piece.rank, piece.writer)
        if same and not piece.begins:
            joined[-1][1].append(piece.text)
        else:
            joined.append((piece, [piece.text]))
    return [replace(first, text="".join(texts)) for first, texts in joined]
