"""The lines on the screen: the last one may be unfinished, or a terminal's open question."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ddp_magic.display.journal.journal import Journal
from ddp_magic.display.labels import label
from ddp_magic.display.outputs import Outputs

FLUSH_S = 0.05
# A front end lays all of a text out anew when something is added (JupyterLab 4.6: 10 ms for each
# 1000 lines): the longer it is, the more rarely.
FLUSH_LINES = 1000  # are written every `FLUSH_S`, twice as many every 2 `FLUSH_S`
MAX_FLUSH_S = 0.5


class WrittenLines:
    """Writes lines to the screen and the journal, many in one piece.

    Args:
        outputs: Where text is written.
        clock: Returns the time, in seconds.

    Attributes:
        open_rank: The rank whose unfinished line ends the screen; None if none does.
    """

    def __init__(self, outputs: Outputs, clock: Callable[[], float]) -> None:
        self.open_rank: int | None = None
        self._outputs = outputs
        self._clock = clock
        self._journal: Journal | None = None
        self._out: list[str] = []
        self._open_number = 0  # of outputs, when the unfinished line was written
        self._asked: tuple[int, str] | None = None  # in a terminal: the open question
        self._has_box = False  # whether the front end shows the box of a question
        self._last_write = 0.0

    def start(self, journal: Journal | None) -> None:
        """Keep what is written in a run's journal; None for nowhere."""
        self._journal = journal

    # --- when ---------------------------------------------------------------------------------

    @property
    def due(self) -> float:
        """When more may be written, in seconds."""
        return self._last_write + self._flush_s

    @property
    def _flush_s(self) -> float:
        """Time between two writes, in seconds."""
        return min(MAX_FLUSH_S, FLUSH_S * (1 + self._outputs.lines_of_text // FLUSH_LINES))

    # --- lines --------------------------------------------------------------------------------

    def add(self, lines: Iterable[str]) -> None:
        """Add whole lines, with the next `flush`."""
        for line in lines:
            if self.open_rank is not None:
                self._out.append("\n")
                # Another rank's line breaks it: the rest of it starts a new line.
                self.open_rank = None
            self._out.append(line + "\n")

    def add_unfinished(self, rank: int, piece: str) -> None:
        """Add a piece of a rank's line that may go on: of the unfinished one, if it is its own."""
        if self.open_rank == rank:
            self._out.append(piece)
            return
        if self.open_rank is not None:
            self._out.append("\n")
        self._out.append(f"{label([rank])} {piece}")
        self.open_rank = rank

    def finish_line(self, rest: str) -> None:
        """Add the rest of the unfinished line."""
        self._out.append(rest + "\n")
        self.open_rank = None

    def end_line(self) -> None:
        """Write what was added; what follows does not go on in the unfinished line."""
        if self.open_rank is not None:
            self._out.append("\n")
            self.open_rank = None
        self.flush()

    def leave_behind(self) -> None:
        """Give up the unfinished line if the table is below it now: its rest begins a new one."""
        if self.open_rank is not None and self._outputs.number != self._open_number:
            self.open_rank = None
            if self._journal is not None:
                self._journal.text("\n")

    def remove(self, rank: int) -> None:
        """Remove all that a rank has shown, at the next redrawing of the outputs."""
        self.flush()
        self._outputs.remove(rank)
        if self._journal is not None:
            self._journal.clear(rank)
        if self.open_rank == rank:
            self.open_rank = None

    def flush(self) -> None:
        """Write what was added."""
        if self._out:
            text = "".join(self._out)
            if self._journal is not None:
                self._journal.text(text)
            self._outputs.write(text)
            self._open_number = self._outputs.number
            self._last_write = self._clock()
            self._out = []
            if self._asked is not None and self.open_rank is None:
                self._write_question(*self._asked)  # the text has broken its line

    # --- questions ----------------------------------------------------------------------------

    def ask(self, rank: int, prompt: str) -> None:
        """Show a question, in a terminal: a front end's input box has the question in it."""
        self._has_box = self._outputs.shows_displays
        if not self._has_box:
            self._asked = (rank, prompt)
            self._write_question(rank, prompt)

    def _write_question(self, rank: int, prompt: str) -> None:
        self._outputs.write(prompt if self.open_rank == rank else f"{label([rank])} {prompt}")
        self.open_rank, self._open_number = rank, self._outputs.number

    def close_question(self, rank: int, line: str) -> None:
        """Keep question and answer, which the front end or the terminal has shown."""
        if line:
            self._outputs.note_answer(line)
        elif self._has_box:
            self._outputs.remove_box()
        self._has_box = False
        if line and self._journal is not None:
            self._journal.text(line + "\n")
        if self._asked is not None and self._asked[0] == rank:
            self._asked = None
            if line and self.open_rank == rank:
                self.open_rank = None  # Enter has ended the line
