"""Shows events in a notebook or a terminal: lines, figures, the status table.

All output is text or plain HTML, so a saved notebook, nbconvert and a terminal show the same. Text
goes through `sys.stdout` and displays through the shell's publisher, so `%%capture` works.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import ClassVar

from IPython.core.interactiveshell import InteractiveShell

from ddp_magic.display.journal.journal import Journal
from ddp_magic.display.outputs import Outputs
from ddp_magic.display.rank_displays import RankDisplays
from ddp_magic.display.record import RunRecord
from ddp_magic.display.run_words import head_line, summary
from ddp_magic.display.table import LiveTable, status_line
from ddp_magic.display.table_place import TablePlace
from ddp_magic.display.text.text_output import TextOutput
from ddp_magic.wire.kernel_events import (
    NodesGranted,
    Note,
    QuestionClosed,
    QuestionOpened,
    Restarted,
    RunEvent,
    Stream,
)
from ddp_magic.wire.states import State
from ddp_magic.wire.worker_events import ClearOutput, DisplayData

TABLE_S = 0.25
HEAD_AFTER_S = 0.05
TABLE_AFTER_S = 0.5  # a shorter run shows no table


class CellScreen:
    """The output of one `%%ddp` cell.

    Args:
        shell: The notebook's shell; None in a script.
        clock: Returns the time, in seconds.
        outputs: The cell's outputs; None for those of the cell that runs.
        table_place: Where the table stands; None for a place among the outputs.
    """

    _said_last: ClassVar[tuple[int | None, str] | None] = None  # number of the cell, devices

    def __init__(
        self,
        shell: InteractiveShell | None,
        clock: Callable[[], float] = time.monotonic,
        *,
        outputs: Outputs | None = None,
        table_place: TablePlace | None = None,
    ) -> None:
        self._shell = shell
        self._clock = clock
        self._outputs = outputs or Outputs(shell)
        self._given_place = table_place
        self._live = self._outputs.shows_displays
        self._displays = RankDisplays(self._outputs)
        self._text = TextOutput(self._outputs, self._displays, clock)
        self._table = LiveTable()
        self._table_place = TablePlace(self._outputs, "", "")
        self._last_table = self._head_due = 0.0
        self._progress: dict[int, tuple[str, ...]] = {}
        self._journal: Journal | None = None

    def start(self, record: RunRecord) -> None:
        """Show which devices the ranks run on."""
        if record.journal is not None:
            self._journal = Journal(record.journal)
            self._journal.begin(record)
        ranks = [rank.rank for rank in record.ranks]
        shown = [rank for rank in ranks if record.show is None or rank in record.show]
        self._displays.start(record, shown, self._journal)
        self._text.start(record, shown, self._journal)
        place = TablePlace(self._outputs, f"{record.id}-table", record.id)
        self._table_place = self._given_place or place
        if not record.quiet:
            self._begin(record)

    def _begin(self, record: RunRecord) -> None:
        if self._live:
            # A cell that ends at once without a word has only the closing line.
            self._head_due = self._clock() + HEAD_AFTER_S
            self._outputs.hold(lambda: self._show_head(record))
        else:
            print(record.devices, flush=True)  # noqa: T201 -- this is the screen

    def _show_head(self, record: RunRecord) -> None:
        cell = getattr(self._shell, "execution_count", None)
        if cell is not None and CellScreen._said_last == (cell, record.devices):
            return  # a loop of `launch`: each line would be an output more
        CellScreen._said_last = (cell, record.devices)
        self._table_place.begin(head_line(record.devices, record.started))

    def take(self, event: RunEvent) -> None:
        """Show an event now or at the next `tick`."""
        match event:
            case Stream():
                self._text.add(event)
            case DisplayData():
                self._text.add_display(event)
            case ClearOutput(rank=rank, wait=wait) if self._live:
                self._text.clear(rank, wait=wait)
            case QuestionOpened(rank=rank, prompt=prompt):
                self._text.ask(rank, prompt)
            case QuestionClosed(rank=rank, line=line):
                self._text.close_question(rank, line)
            case NodesGranted(nproc=nproc):
                self._text.resize(nproc)
            case Restarted(number=number):
                self._text.end()
                self._displays.restart(number)
                self._outputs.keep()
                if self._journal is not None:
                    self._journal.keep()
            case Note(text=text):
                self._text.note(text)
            case _:
                pass

    def tick(self, record: RunRecord) -> None:
        """Write pending text and update the table, if it is time."""
        self._text.tick()
        bars = self._text.bars
        for rank in self._progress.keys() - bars.keys():
            del self._progress[rank]
        self._progress.update(bars)
        now = self._clock()
        if now >= self._head_due:
            self._outputs.show_held()
        due = now - self._last_table >= TABLE_S and record.elapsed_s > TABLE_AFTER_S
        if due and (record.waits or not record.quiet):
            self._last_table = now
            self._show_state(record, now)

    def _show_state(self, record: RunRecord, now: float) -> None:
        status = self._outputs.status
        if self._live:
            room = self._outputs.room - self._displays.promised
            self._table_place.show(*self._table.render(record), now, room=room)
        elif status is not None and self._text.ends_a_line:
            status.show(status_line(record, status.chars))

    @property
    def wait_s(self) -> float:
        """Time until a `tick` has text to show, in seconds; infinity if there is none."""
        return self._text.wait_s

    @property
    def progress(self) -> Mapping[int, tuple[str, ...]]:
        """The ranks' progress bars, by rank, outer ones first; updated at each `tick`."""
        return self._progress

    def finish(self, record: RunRecord) -> None:
        """Show the remaining output, and replace the table by the closing line."""
        if self._outputs.status is not None:
            self._outputs.status.hide()
        self._text.end()
        for line in self._last_notes(record):
            self._text.note(line)
        if record.figure is not None:
            self._displays.show_profile(record.figure)
        if self._journal is not None:
            self._journal.end(record)
            if why := self._journal.failure:
                self._text.note(f"%ddp_show cannot show all of this again: {why}")
        # A table that told of a wait is not to stay.
        has_table = not self._table_place.is_empty
        if not record.quiet or record.state is not State.SUCCEEDED or has_table:
            self._close(record)

    def _close(self, record: RunRecord) -> None:
        if self._live:
            self._outputs.drop_held()
            head = ""
            if record.state is State.FAILED and self._outputs.is_tall:
                head = head_line(record.devices, record.started, summary(record))
            self._table_place.close(summary(record, with_clock=True), head=head)
        else:
            print(summary(record), flush=True)  # noqa: T201 -- this is the screen

    @staticmethod
    def _last_notes(record: RunRecord) -> list[str]:
        lines = [
            f"rank {rank.rank} left early: os._exit(0) in the cell"
            for rank in record.ranks
            if rank.left_early
        ]
        if record.swept:
            what = "process" if record.swept == 1 else "processes"
            lines.append(f"ended {record.swept} {what} that the ranks had left behind")
        return [*lines, *record.closing]
