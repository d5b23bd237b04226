"""What a person sees while a run goes on: text, displays, the table. In a notebook, a terminal."""

from __future__ import annotations

import contextlib
import io
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from IPython.core.displaypub import CapturingDisplayPublisher

from ddp_magic.display.journal import past_run
from ddp_magic.display.outputs import MAX_OUTPUTS, Outputs
from ddp_magic.display.rank import Rank
from ddp_magic.display.rank_displays import PAGE_S
from ddp_magic.display.record import RunRecord
from ddp_magic.display.screen import HEAD_AFTER_S, TABLE_AFTER_S, TABLE_S, CellScreen
from ddp_magic.display.text.fold import HOLD_S
from ddp_magic.display.text.page import MAX_WAITS
from ddp_magic.display.text.text_output import PARTIAL_S
from ddp_magic.display.text.written_lines import FLUSH_LINES, FLUSH_S, MAX_FLUSH_S
from ddp_magic.errors import LaunchError
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.kernel_events import (
    Doing,
    GroupEnded,
    Note,
    QuestionClosed,
    QuestionOpened,
    Restarted,
    RunEvent,
    Stream,
)
from ddp_magic.wire.states import State
from ddp_magic.wire.worker_events import ClearOutput, DisplayData
from tests.unit.fakes import FakeShell, exited, finished, heartbeat, ready, text

ENDED = 1_800_000_000.0  # s since the epoch


class Cell:
    """A cell's output, with a clock that the test turns."""

    def __init__(
        self,
        capsys: pytest.CaptureFixture[str],
        *,
        notebook: bool = True,
        shell: FakeShell | None = None,
        owns_cell: bool = True,
        **record: Any,
    ) -> None:
        self.shell = shell or FakeShell(notebook=notebook)
        self.now = 1000.0
        outputs = Outputs(self.shell, owns_cell=owns_cell)  # type: ignore[arg-type]
        self.screen = CellScreen(self.shell, lambda: self.now, outputs=outputs)  # type: ignore[arg-type]
        self.record = RunRecord(
            id="run-1",
            label="Cell In[1]",
            log_directory=RunDirectory(Path("/logs")),
            **{
                "devices": "3 ranks on the CPU",
                "ranks": [Rank(rank=r, log=Path(f"/logs/rank{r}.log")) for r in range(3)],
                **record,
            },
        )
        self.record.progress = self.screen.progress
        self._capsys = capsys
        self.screen.start(self.record)

    def show(self, *events: RunEvent, wait_s: float = HOLD_S + 0.01) -> str:
        """Return what the screen writes when these come, a while after the last ones."""
        for event in events:
            self.record.take(event)
            self.screen.take(event)
        self.now += wait_s
        self.screen.tick(self.record)
        return self.written()

    def finish(self, state: State = State.SUCCEEDED) -> str:
        self.record.state = state
        self.record.started, self.record.ended = ENDED - 5.5, ENDED
        self.screen.finish(self.record)
        return self.written()

    def written(self) -> str:
        return self._capsys.readouterr().out


def closing(words: str) -> str:
    """The closing line of a run that takes 5.5 s."""
    return f"3 ranks · 5.5 s · {time.strftime('%H:%M:%S', time.localtime(ENDED))} · {words}"


@pytest.fixture
def cell(capsys: pytest.CaptureFixture[str]) -> Cell:
    """Three ranks in a notebook."""
    return Cell(capsys)


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str]) -> Cell:
    """Three ranks in a terminal."""
    return Cell(capsys, notebook=False)


def test_quiet_shows_only_what_ranks_print(capsys: pytest.CaptureFixture[str]) -> None:
    """No devices, no table, no closing line; unless ranks wait for each other, or it fails."""
    for notebook in (True, False):
        quiet = Cell(capsys, notebook=notebook, quiet=True)
        quiet.record.started -= 10
        assert quiet.show(text(0, "a\n")) == "[rank 0] a\n"
        assert quiet.finish() == ""
        assert quiet.shell.tables == []
        failed = Cell(capsys, notebook=notebook, quiet=True)
        said = failed.finish(State.FAILED) + "".join(failed.shell.tables)
        assert re.fullmatch(r"3 ranks · 5\.5 s( · \d\d:\d\d:\d\d)? · failed", said.rstrip())
    waiting = Cell(capsys, quiet=True)
    waiting.record.started -= 10
    waiting.record.waits = ("ranks 1, 2 wait for rank 0",)
    waiting.show()
    assert "ranks 1, 2 wait for rank 0" in waiting.shell.tables[0]
    waiting.finish()
    assert waiting.shell.tables[-1] == closing("ok")


@pytest.mark.parametrize(("lines", "said"), [(5, ""), (100, " · 5.5 s · failed · boom")])
def test_above_much_output_stands_how_it_failed(cell: Cell, lines: int, said: str) -> None:
    """The closing line and the traceback are out of sight there."""
    cell.show(text(0, "".join(f"{i}\n" for i in range(lines))))
    cell.record.error = LaunchError("boom")
    cell.finish(State.FAILED)
    (_, first), (_, last) = cell.shell.visible
    assert re.sub(r"\d\d:\d\d:\d\d", "at", first) == f"3 ranks on the CPU · at{said}"
    assert last == closing("failed · boom")


def _html(rank: int, body: str = "<p>", mark: int = 1, **more: Any) -> DisplayData:
    return DisplayData(rank=rank, mark=mark, data={"text/html": body}, metadata={}, **more)


def _clear(rank: int, *, wait: bool = False) -> ClearOutput:
    return ClearOutput(rank=rank, mark=1, wait=wait)


# --- text -------------------------------------------------------------------------------------


def test_each_line_has_its_rank(cell: Cell) -> None:
    assert cell.show(text(1, "a\nb\n"), text(0, "c\n")) == "[rank 1] a\n[rank 1] b\n[rank 0] c\n"


def test_text_of_many_events_is_written_at_once(cell: Cell) -> None:
    """A Jupyter server drops messages that come too fast."""
    cell.show(text(0, "0\n"))  # this kind of line is known to be one rank's
    assert cell.show(*[text(0, f"{i}\n") for i in range(3)], wait_s=FLUSH_S / 2) == ""
    assert cell.show(wait_s=FLUSH_S) == "[rank 0] 0\n[rank 0] 1\n[rank 0] 2\n"


def test_a_long_text_is_added_to_more_rarely(cell: Cell) -> None:
    """JupyterLab draws all of it anew each time; below a display, a new text begins."""
    cell.show(text(0, "0\n"))
    many = "".join(f"{i}\n" for i in range(FLUSH_LINES - 100))
    cell.show(*(text(rank, many) for rank in range(3)))
    assert cell.show(text(0, "1\n"), wait_s=2 * FLUSH_S) == ""
    assert cell.screen.wait_s == pytest.approx(FLUSH_S)
    assert cell.show(wait_s=1.1 * FLUSH_S) == "[rank 0] 1\n"
    cell.show(_html(0), wait_s=MAX_FLUSH_S)
    cell.show(text(0, "2\n"))
    assert cell.show(text(0, "3\n"), wait_s=1.1 * FLUSH_S) == "[rank 0] 3\n"


def test_a_line_after_a_silence_is_shown_at_once(cell: Cell) -> None:
    """And the screen says when it wants to show what comes then."""
    cell.show(text(0, "0\n"))
    cell.show(wait_s=10)
    assert cell.screen.wait_s == float("inf")
    assert cell.show(text(0, "1\n"), wait_s=0) == "[rank 0] 1\n"
    assert cell.show(text(0, "2\n"), wait_s=0) == ""
    assert cell.screen.wait_s == pytest.approx(FLUSH_S)
    assert cell.show(wait_s=FLUSH_S * 1.01) == "[rank 0] 2\n"
    cell.show(text(0, "another\n"), wait_s=FLUSH_S * 1.01)
    assert cell.screen.wait_s == pytest.approx(HOLD_S - FLUSH_S * 1.01)


def test_a_line_in_pieces_is_one_line(cell: Cell) -> None:
    assert cell.show(text(0, "half")) == ""
    assert cell.show(text(0, " and half\n")) == "[rank 0] half and half\n"


def test_an_unfinished_line_is_shown_when_nothing_follows(cell: Cell) -> None:
    """What follows later goes on in the same line."""
    cell.show(text(0, "Password: "))
    assert cell.show(wait_s=PARTIAL_S + 0.1) == "[rank 0] Password: "
    assert cell.show(text(0, "given\nnext\n")) == "given\n[rank 0] next\n"


def test_a_line_that_another_rank_breaks(cell: Cell) -> None:
    """Its rest has a label of its own."""
    cell.show(text(0, "one "))
    assert cell.show(wait_s=PARTIAL_S + 0.1) == "[rank 0] one "
    assert cell.show(text(1, "other\n")) == "\n[rank 1] other\n"
    assert cell.show(text(0, "two\n")) == "[rank 0] two\n"


def test_an_unfinished_line_goes_on(cell: Cell) -> None:
    """Piece by piece, as dots that say that something goes on."""
    cell.show(text(0, "."))
    assert cell.show(wait_s=PARTIAL_S + 0.1) == "[rank 0] ."
    cell.show(text(0, "."))
    assert cell.show(wait_s=PARTIAL_S + 0.1) == "."
    assert cell.finish() == "\n"


def test_two_unfinished_lines(cell: Cell) -> None:
    """Each begins a line."""
    cell.show(text(0, "a"), text(1, "b"))
    assert cell.show(wait_s=PARTIAL_S + 0.1) == "[rank 0] a\n[rank 1] b"


def test_the_rest_is_shown_at_the_end(cell: Cell) -> None:
    """Without a newline; also of a line that is on the screen."""
    cell.show(text(0, "a"))
    cell.show(wait_s=PARTIAL_S + 0.1)
    cell.show(text(0, "b"), text(1, "c"), wait_s=0.01)
    assert cell.finish() == "b\n[rank 1] c\n"


def test_a_note_has_no_rank_and_comes_in_order(cell: Cell) -> None:
    assert cell.show(text(0, "a\n"), Note(text="note"), text(0, "b\n")) == (
        "[rank 0] a\nnote\n[rank 0] b\n"
    )


def test_a_flood_is_cut(cell: Cell) -> None:
    """Head and tail are shown, with a word on the rest and where it is."""
    cell.show(text(1, "".join(f"{i}\n" for i in range(10_000))))
    rest = cell.finish().splitlines()
    assert rest[0] == "[rank 1] ... 8,900 lines left out here; all are in /logs/rank1.log"
    assert rest[-1] == "[rank 1] 9999"


def test_only_some_ranks_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """`--show 1`: text, unfinished lines, displays and pages; notes are everybody's."""
    cell = Cell(capsys, show=frozenset([1]))
    assert cell.show(text(0, "a\n"), text(1, "b\n"), Note(text="note")) == "[rank 1] b\nnote\n"
    cell.show(text(0, "c"), text(1, "d"))
    assert cell.show(wait_s=PARTIAL_S + 0.1) == "[rank 1] d"
    cell.show(_html(0), _html(1))
    assert [meta["ddp"]["rank"] for _, meta, _, _ in cell.shell.displays] == [1]
    cell.show(text(0, "unfinished"))
    assert cell.show(_clear(0), text(0, "page\n"), wait_s=PAGE_S + 0.1) == ""
    assert len(cell.shell.displays) == 1


def test_a_bar_is_in_the_table_and_only_its_last_state_in_the_text(cell: Cell) -> None:
    assert cell.show(text(2, "\r 10%")) == ""
    assert cell.screen.progress[2] == (" 10%",)
    assert cell.show(text(2, "\r100%\n")) == ""
    assert cell.show(text(2, "next\n")) == "[rank 2] 100%\n[rank 2] next\n"
    assert cell.screen.progress[2] == ()


def test_ranks_whose_text_is_complete_cost_nothing(cell: Cell) -> None:
    """Of hundreds of ranks, only those with a bar or an unfinished line are looked at."""
    cell.show(*(text(rank, "line\n") for rank in range(3)))
    assert cell.screen.progress == {}
    cell.show(text(0, "line\n"), text(1, "\r 10%"), text(2, "unfinished"))
    assert cell.screen.progress == {1: (" 10%",), 2: ()}
    cell.show(text(1, "\r100%\n"), text(2, " line\n"))
    for _ in range(3):
        cell.show(wait_s=PARTIAL_S + 0.1)
    assert cell.screen.progress == {}
    cell.show(text(1, "\r 50%"))
    assert cell.screen.progress == {1: (" 50%",)}


def test_a_bar_that_has_ended_is_shown_soon(cell: Cell) -> None:
    """Though nothing follows it: a nested bar would have returned to it by now."""
    cell.show(text(2, "\r100%\n"), wait_s=PARTIAL_S + 0.1)
    shown = [cell.show(wait_s=PARTIAL_S + 0.1) for _ in range(3)]
    assert "".join(shown) == "[rank 2] 100%\n"


def test_a_line_that_a_bar_does_not_continue(cell: Cell) -> None:
    """A bar that ends beside an unfinished line has a line of its own."""
    cell.show(text(0, "loss: "))
    assert cell.show(wait_s=PARTIAL_S + 0.1) == "[rank 0] loss: "
    bar = Stream(rank=0, text="\r100%\n", writer=2, begins=True)
    cell.show(bar, wait_s=PARTIAL_S + 0.1)
    shown = [cell.show(wait_s=PARTIAL_S + 0.1) for _ in range(3)]
    assert "".join(shown) == "\n[rank 0] 100%\n"
    assert cell.show(text(0, "0.5\n")) == "[rank 0] 0.5\n"


def test_nested_bars_are_rows_of_their_rank(cell: Cell) -> None:
    """The other columns are the rank's."""
    cell.record.started = time.time() - TABLE_AFTER_S - 1
    nested = "\router 10%\n\rinner 20%\x1b[A"
    cell.show(ready(0), text(0, nested), text(1, "\rother"), wait_s=TABLE_S + 0.1)
    cell.show()
    *_, first, second, third, _ = cell.shell.tables[-1].splitlines()
    assert (first.split()[0], second.split(), third.split()[0]) == ("0", ["inner", "20%"], "1")
    assert first.endswith("outer 10%")


# --- displays ---------------------------------------------------------------------------------


def test_a_display_has_a_label_and_its_rank(cell: Cell) -> None:
    """In its place among the text."""
    written = cell.show(text(1, "before\n"), _html(1, "<b>"), text(1, "after\n"))
    assert written == "[rank 1] before\n[rank 1] after\n"
    ((data, metadata, _, update),) = cell.shell.displays
    assert (metadata, update) == ({"ddp": {"rank": 1}}, False)
    assert data["text/html"].endswith("<b>")
    assert ">[rank 1]<" in data["text/html"]
    assert cell.shell.published[1][0] == data  # after the first line, before the table


def test_what_is_unfinished_before_a_display_is_shown_before_it(cell: Cell) -> None:
    assert cell.show(text(0, "loss: "), _html(0)) == "[rank 0] loss: \n"


def test_what_has_no_place_for_a_label_has_a_line(cell: Cell) -> None:
    """Above it, and once: an update has none."""
    plot = DisplayData(
        rank=2, mark=1, data={"application/x": {}, "text/html": "x"}, metadata={}, display_id="a"
    )
    assert cell.show(plot) == "[rank 2]\n"
    assert cell.show(replace(plot, update=True)) == ""
    assert [data for data, *_ in cell.shell.displays] == [plot.data] * 2
    recorder = Recorder(cell.shell)
    with contextlib.redirect_stdout(recorder):
        cell.show(replace(plot, display_id="b"))
    assert recorder.places == [2]  # the first line and the other plot were there, not this one


def test_many_displays_share_the_last_output(capsys: pytest.CaptureFixture[str]) -> None:
    """It says how many there were, and how to see all; other ranks have theirs."""
    cell = Cell(capsys)
    for number in range(100):
        cell.show(text(0, f"{number}\n"), _html(0, f"<p>{number}"))
    cell.show(_html(1, "<p>other"))
    shown = [data["text/html"] for data, *_ in cell.shell.displays]
    assert shown[99].endswith("<p>99")
    assert "; %ddp_show run-1 shows all<" in shown[99]
    assert "the last of " not in shown[100]
    new = [meta["ddp"]["rank"] for _, meta, _, update in cell.shell.displays if not update]
    assert new.count(1) == 1
    assert 5 < new.count(0) < 20


def test_a_table_that_moves_below_an_unfinished_line_ends_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The rest has a label, here and in the journal."""
    cell = Cell(capsys, journal=tmp_path / "journal.jsonl")
    cell.show(text(1, "loads"))
    assert cell.show(wait_s=PARTIAL_S + 0.1) == "[rank 1] loads"
    cell.record.started = time.time() - TABLE_AFTER_S - 1
    cell.show(wait_s=TABLE_S + 0.1)
    assert "since" in cell.shell.tables[-1]
    assert cell.show(text(1, "done\n")) == "[rank 1] done\n"
    cell.finish()
    run = past_run.read(tmp_path / "journal.jsonl")
    assert run is not None
    kept = "".join(entry.get("text", "") for entry in run.outputs())
    assert kept == "[rank 1] loads\n[rank 1] done\n"


def test_the_journal_has_all_displays_that_share_an_output(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cell = Cell(capsys, journal=tmp_path / "journal.jsonl")
    for number in range(100):
        cell.show(_html(0, f"<p>{number}"))
    cell.finish()
    run = past_run.read(tmp_path / "journal.jsonl")
    assert run is not None
    kept = [entry["display"]["text/html"] for entry in run.outputs() if "display" in entry]
    assert kept == [f"<p>{number}" for number in range(100)]


class Recorder(io.StringIO):
    """Standard output that knows how many displays there were before each text."""

    def __init__(self, shell: FakeShell) -> None:
        super().__init__()
        self._shell = shell
        self.places: list[int] = []

    def write(self, text: str) -> int:
        self.places.append(sum(not update for *_, update in self._shell.published))
        return super().write(text)

    @property
    def outputs(self) -> int:
        """Number of outputs: displays, and texts between them."""
        return sum(not update for *_, update in self._shell.published) + len(set(self.places))


@pytest.mark.parametrize(("nproc", "rounds"), [(1, 60), (3, 10), (3, 40), (20, 3), (64, 2)])
def test_an_error_after_any_displays_is_in_sight(
    capsys: pytest.CaptureFixture[str], nproc: int, rounds: int
) -> None:
    """JupyterLab draws 50 outputs: text, displays, tables that have moved, the error's."""
    cell = Cell(capsys, ranks=[Rank(rank=r) for r in range(nproc)])
    recorder = Recorder(cell.shell)
    cell.record.started = time.time() - 100
    with contextlib.redirect_stdout(recorder):
        for number in range(rounds):
            for rank in range(nproc):
                cell.show(text(rank, f"{number}\n"), _html(rank), wait_s=3)
        cell.finish(State.FAILED)
    assert 20 < recorder.outputs < MAX_OUTPUTS


def test_three_figures_of_four_ranks_are_all_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """With text between them, in a run of some minutes."""
    cell = Cell(capsys, ranks=[Rank(rank=r) for r in range(4)])
    cell.record.started = time.time() - 100
    for number in range(3):
        for rank in range(4):
            cell.show(text(rank, f"{number}\n"), _html(rank), wait_s=10)
    assert sum(not update for *_, update in cell.shell.displays) == 12


def test_displays_do_not_meet(cell: Cell) -> None:
    """Each has an id of its own, also those that ranks have given the same id."""
    cell.show(_html(0), _html(0), _html(0, display_id="x"), _html(1, display_id="x"))
    assert len({display_id for _, _, display_id, _ in cell.shell.displays}) == 4


def test_a_display_ends_an_unfinished_line(cell: Cell) -> None:
    """What follows of it stands below the display, with a label."""
    cell.show(text(0, "one "))
    assert cell.show(wait_s=PARTIAL_S + 0.1) == "[rank 0] one "
    assert cell.show(_html(0), text(0, "two ")) == "\n"
    assert cell.show(wait_s=PARTIAL_S + 0.1) == "[rank 0] two "
    assert cell.show(_html(1)) == "\n"
    assert cell.show(text(0, "three\n")) == "[rank 0] three\n"


def test_pages_of_many_ranks_are_in_sight(capsys: pytest.CaptureFixture[str]) -> None:
    """Beside displays; those that have no room share one output."""
    cell = Cell(capsys, ranks=[Rank(rank=r) for r in range(64)])
    for rank in range(64):
        cell.show(_clear(rank), text(rank, "page\n"), wait_s=PAGE_S + 0.1)
    for _ in range(5):
        cell.show(wait_s=10.0)
    assert sum(not update for *_, update in cell.shell.published) < MAX_OUTPUTS - 3
    assert "[rank 63] the last of " in cell.shell.displays[-1][0]["text/plain"]


def test_an_update_of_a_display(cell: Cell) -> None:
    """It takes its place; the label is inside, so that no first value stays beside it."""
    value = {"text/plain": "0.5"}
    first = DisplayData(rank=0, mark=1, data=value, metadata={}, display_id="x")
    assert cell.show(first) == ""
    assert cell.show(replace(first, data={"text/plain": "0.25"}, update=True)) == ""
    assert cell.shell.visible[1:] == [("run-1-0-own-x", "[rank 0] 0.25")]
    html = _html(1, "<b>", display_id="x")
    assert cell.show(html, replace(html, data={"text/html": "<i>"}, update=True)) == ""
    assert re.fullmatch("<div[^>]*>.rank 1.</div>\\s*<i>", cell.shell.published[-1][0]["text/html"])
    assert [name for name, _ in cell.shell.visible[1:]] == ["run-1-0-own-x", "run-1-1-own-x"]


def test_two_displays_of_one_id(cell: Cell) -> None:
    """The second takes the place of the first, so that none is stale."""
    value = DisplayData(rank=0, mark=1, data={"text/plain": "a"}, metadata={}, display_id="x")
    cell.show(value, value, replace(value, data={"text/plain": "b"}, update=True))
    assert [shown for _, shown in cell.shell.visible[1:]] == ["[rank 0] b"]
    unknown = replace(value, display_id="unknown", update=True)
    cell.show(unknown)
    assert len(cell.shell.visible) == 2


def test_clear_output_removes_all_of_its_rank(cell: Cell) -> None:
    """Text and displays; what other ranks have shown, and the table, is there again."""
    cell.show(text(0, "a\n"), _html(0, "old"), text(1, "b\n"), _html(1, "other"), text(0, "half"))
    cell.show(wait_s=PARTIAL_S + 0.1)
    assert cell.show(_clear(0)) == "[rank 1] b\n"
    assert cell.shell.cleared == [True]
    assert [name for name, _ in cell.shell.visible] == ["run-1-table", "run-1-1-1"]
    assert cell.finish() == ""


def test_clear_output_with_wait_removes_nothing_until_something_follows(cell: Cell) -> None:
    cell.show(text(0, "a\n"))
    cell.show(_clear(0, wait=True))
    assert cell.shell.cleared == []
    cell.show(text(0, "b\n"), wait_s=PAGE_S + 0.1)
    _wait_for_page(cell)
    assert cell.shell.cleared == [True]
    assert cell.shell.visible[1:] == [("run-1-0-page0", "[rank 0] b")]


def test_a_flood_can_be_cleared(cell: Cell) -> None:
    """Also what of it was held back."""
    flood = "".join(f"{i}\n" for i in range(10_000))
    cell.show(text(0, flood), text(1, flood))
    written = cell.show(_clear(0), text(0, "last\n"), wait_s=10.0)
    again = written.rpartition("[rank 1] 0\n")[2]
    assert "[rank 0]" not in again
    assert cell.show(_clear(1), text(1, "last\n"), wait_s=10.0) == ""
    _wait_for_page(cell)
    shown = [text for name, text in cell.shell.visible if "table" not in name]
    assert shown == ["[rank 0] last", "[rank 1] last"]
    assert cell.finish() == ""


def test_ranks_that_clear_at_once_are_redrawn_once(cell: Cell) -> None:
    cell.show(*(text(rank, "a\n") for rank in range(3)))
    cell.show(*(_clear(rank) for rank in range(3)))
    assert cell.shell.cleared == [True]


def test_what_else_the_cell_has_shown_is_not_cleared(capsys: pytest.CaptureFixture[str]) -> None:
    """A second `launch` in the cell, or prints of its own: Jupyter would remove them too."""
    cell = Cell(capsys, owns_cell=False)
    assert cell.show(text(0, "before\n")) == "[rank 0] before\n"
    cell.show(_clear(0), text(0, "after\n"), wait_s=PAGE_S + 0.1)
    assert cell.shell.cleared == []


def test_only_what_is_captured_cannot_be_cleared(capsys: pytest.CaptureFixture[str]) -> None:
    """`%%capture`: it holds text that nobody can remove."""
    cell = Cell(capsys)
    cell.shell.display_pub = CapturingDisplayPublisher()  # type: ignore[assignment]
    cell.show(text(0, "a\n"))
    assert cell.show(_clear(0), text(0, "b\n"), wait_s=PAGE_S + 0.1) == ""


def test_pages(cell: Cell) -> None:
    """What a rank shows between two `clear_output()` is apart; the next page replaces it."""
    assert cell.show(text(0, "before\n")) == "[rank 0] before\n"
    for i in range(3):
        events = (_clear(0), text(0, f"step {i}\nloss\n"), _html(0, f"<{i}>"))
        assert cell.show(*events, wait_s=PAGE_S + 0.1) == ""
        _wait_for_page(cell)
    assert [(data.get("text/plain"), name, update) for data, _, name, update in _pages(cell)] == [
        ("[rank 0] step 0\n[rank 0] loss", "run-1-0-page0", False),
        ("[rank 0]", "run-1-0-page1", False),
        ("[rank 0] step 1\n[rank 0] loss", "run-1-0-page0", True),
        ("[rank 0]", "run-1-0-page1", True),
        ("[rank 0] step 2\n[rank 0] loss", "run-1-0-page0", True),
        ("[rank 0]", "run-1-0-page1", True),
    ]
    assert _pages(cell)[-1][0]["text/html"].endswith("<2>")


def _wait_for_page(cell: Cell) -> None:
    """Until the first page is shown, which waits for more."""
    for _ in range(MAX_WAITS):
        cell.show(wait_s=PAGE_S + 0.1)


def _pages(cell: Cell) -> list[tuple[dict[str, Any], dict[str, Any], str, bool]]:
    return [shown for shown in cell.shell.displays if "-page" in shown[2]]


def test_a_page_is_not_published_at_each_line(cell: Cell) -> None:
    """But its last state is, at the end."""
    cell.show(_clear(0), text(0, "a\n"), wait_s=PAGE_S + 0.1)
    _wait_for_page(cell)
    for _ in range(5):
        cell.show(_clear(0), text(0, "b\n"), wait_s=0.01)
    assert len(cell.shell.displays) == 1
    cell.finish()
    assert [data["text/plain"] for data, *_ in cell.shell.displays] == ["[rank 0] a", "[rank 0] b"]


def test_other_ranks_go_on_beside_a_page(cell: Cell) -> None:
    assert cell.show(_clear(0), text(0, "page\n"), text(1, "line\n")) == "[rank 1] line\n"


# --- the table --------------------------------------------------------------------------------


def test_the_first_line_is_the_devices(cell: Cell) -> None:
    """And the time of day. In a notebook it is where the table will be, after a moment."""
    assert cell.shell.tables == []
    assert cell.show(wait_s=HEAD_AFTER_S) == ""
    (line,) = cell.shell.tables
    assert re.fullmatch(r"3 ranks on the CPU · \d\d:\d\d:\d\d", line)
    assert cell.written() == ""


def test_runs_of_one_cell_say_their_devices_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A loop of `launch` has two outputs for each run: its text and its closing line."""
    shell = FakeShell()
    for number, devices in ((7, "a"), (7, "a"), (7, "b"), (8, "b")):
        shell.execution_count = number
        cell = Cell(capsys, shell=shell, devices=devices)
        cell.show(text(0, "x\n"))
        cell.finish()
    heads = [table.split(" · ")[0] for table in shell.tables]
    assert heads == ["a", "3 ranks", "3 ranks", "b", "3 ranks", "b", "3 ranks"]


def test_a_quick_run_has_no_table(cell: Cell) -> None:
    """If it puts nothing out, its closing line is its only output, and replaces the first line."""
    cell.show(ready(0), wait_s=TABLE_S + 0.1)
    assert cell.finish() == ""
    assert cell.shell.tables[1:] == [closing("ok")]
    assert [update for *_, update in cell.shell.published] == [False, True]


def test_a_run_that_ends_at_once_has_one_message(cell: Cell) -> None:
    """Each message costs the cell of a session half a millisecond."""
    cell.finish()
    assert cell.shell.tables == [closing("ok")]
    assert [update for *_, update in cell.shell.published] == [False]


def test_the_closing_line_stands_below_the_output(cell: Cell) -> None:
    """The first line stays above it."""
    cell.show(text(0, "a\n"))
    cell.finish()
    first, last = cell.shell.published
    assert not last[3]
    assert last[2] != first[2]
    assert last[0]["text/plain"] == closing("ok")


def test_the_table_is_updated_in_place(cell: Cell) -> None:
    """At most four times a second, and only where something has changed."""
    cell.record.started = time.time() - TABLE_AFTER_S - 1
    now = time.time()
    cell.show(ready(0), heartbeat(0, 7, time=now), wait_s=TABLE_S + 0.1)
    cell.show(heartbeat(0, 8, time=now), wait_s=TABLE_S / 2)
    cell.show(heartbeat(0, 9, time=now), wait_s=TABLE_S + 0.1)
    assert len(cell.shell.tables) == 3
    assert "running  9" in cell.shell.tables[-1]
    ids = {display_id for _, _, display_id, _ in cell.shell.published}
    assert ids == {"run-1-table"}
    assert [update for *_, update in cell.shell.published] == [False, True, True]


def test_the_first_table_stands_below_the_text(cell: Cell) -> None:
    """And below the first line, which stays."""
    cell.show(text(0, "a\n"))
    cell.record.started = time.time() - TABLE_AFTER_S - 1
    cell.show(wait_s=TABLE_S + 0.1)
    assert [update for *_, update in cell.shell.published] == [False, False]
    assert "since" in cell.shell.tables[-1]


def test_the_table_says_what_is_done(cell: Cell) -> None:
    cell.record.started = time.time() - 1
    cell.show(Doing(text="importing transformers"), wait_s=TABLE_S + 0.1)
    assert "importing transformers" in cell.shell.tables[-1].splitlines()[0]


def test_the_end_says_what_ranks_left(cell: Cell) -> None:
    """Processes, and their own early end."""
    cell.show(ready(0), ready(1), exited(1, 0), finished(0), exited(0, 0), GroupEnded(swept=2))
    assert cell.finish() == (
        "rank 1 left early: os._exit(0) in the cell\n"
        "ended 2 processes that the ranks had left behind\n"
    )


def test_one_process_is_one(cell: Cell) -> None:
    cell.show(GroupEnded(swept=1))
    assert cell.finish() == "ended 1 process that the ranks had left behind\n"


# --- a terminal, a script ---------------------------------------------------------------------


def test_a_terminal_has_lines_only(terminal: Cell) -> None:
    """The devices first, the summary last; no table, which it could only print again."""
    assert terminal.written() == "3 ranks on the CPU\n"
    terminal.record.started = time.time() - 10
    assert terminal.show(text(0, "a\n"), wait_s=TABLE_S + 1) == "[rank 0] a\n"
    assert terminal.finish(State.FAILED) == "3 ranks · 5.5 s · failed\n"
    assert terminal.shell.published == []


def test_a_display_in_a_terminal_is_its_text(terminal: Cell) -> None:
    """All lines of it."""
    terminal.written()
    plain = DisplayData(rank=0, mark=1, data={"text/plain": "a\nb", "image/png": ""}, metadata={})
    shown = terminal.show(plain)
    assert shown.startswith("[rank 0] a\n[rank 0] b\n[rank 0] the figure could not be saved: ")
    assert terminal.shell.displays == []


def test_clear_output_in_a_terminal_clears_nothing(terminal: Cell) -> None:
    terminal.written()
    assert terminal.show(text(0, "a\n"), _clear(0), text(0, "b\n")) == "[rank 0] a\n[rank 0] b\n"


def test_updates_of_a_display_in_a_terminal(terminal: Cell) -> None:
    """It cannot be replaced there: the first value is shown, and at the end the last."""
    terminal.written()
    value = DisplayData(rank=0, mark=1, data={"text/plain": "0 %"}, metadata={}, display_id="x")
    assert terminal.show(value) == "[rank 0] 0 %\n"
    for i in range(5):
        data = {"text/plain": f"{i} %"}
        assert terminal.show(replace(value, data=data, update=True)) == ""
    assert terminal.finish().splitlines()[0] == "[rank 0] 4 %"


def test_a_script_has_no_shell(capsys: pytest.CaptureFixture[str]) -> None:
    """`python train.py` with `launch`."""
    cell = Cell(capsys)
    cell.screen = CellScreen(None, lambda: cell.now)
    cell.screen.start(cell.record)
    cell.show(text(0, "a\n"), _html(0))
    assert cell.finish() == "3 ranks · 5.5 s · ok\n"


def test_lines_of_all_ranks_are_folded(cell: Cell) -> None:
    """In a cell, around figures too; a rank's own lines stay in their places."""
    events: list[RunEvent] = []
    for rank in range(3):
        events += [text(rank, f"begin\nrank {rank}\n"), _html(rank), text(rank, "end\n")]
    shown = cell.show(*events)
    assert shown.splitlines() == [
        "[ranks 0-2] begin",
        *[f"[rank {rank}] rank {rank}" for rank in range(3)],
        "[ranks 0-2] end",
    ]


def test_only_the_ranks_that_are_shown_are_folded(capsys: pytest.CaptureFixture[str]) -> None:
    cell = Cell(capsys, show=frozenset([0, 2]))
    shown = cell.show(*[text(rank, "a\n") for rank in range(3)], text(0, "b\n"))
    assert shown == "[ranks 0, 2] a\n[rank 0] b\n"


def test_a_note_waits_for_nobody(cell: Cell) -> None:
    assert cell.show(text(0, "a\n"), Note(text="n"), text(1, "a\n"), wait_s=0) == "[rank 0] a\nn\n"


def test_a_place_in_a_cell_has_the_cells_name(capsys: pytest.CaptureFixture[str]) -> None:
    """As in the tracebacks that IPython writes."""
    cell = Cell(capsys, cell_labels={"/nb/cell_5.py": "Cell In[5]"})
    shown = cell.show(text(1, '  File "/nb/cell_5.py", line 4, in work\n'))
    assert shown == "[rank 1]   Cell In[5], line 4, in work\n"


# --- restarts ---------------------------------------------------------------------------------


def test_text_before_a_restart_is_shown_to_its_end(cell: Cell) -> None:
    """Unfinished lines and bars too; what the new ranks write begins a new line."""
    cell.show(text(0, "half"), text(1, "\r 50%|#####"))
    restarted = cell.show(Restarted(number=1), Note(text="restart 1 of 3"), text(0, "new\n"))
    assert restarted == "[rank 0] half\n[rank 1]  50%|#####\nrestart 1 of 3\n[rank 0] new\n"
    assert cell.screen.progress[1] == ()


def test_a_line_on_the_screen_is_ended_by_a_restart(cell: Cell) -> None:
    cell.show(text(0, "half"))
    assert cell.show(wait_s=PARTIAL_S + 0.1) == "[rank 0] half"
    assert cell.show(Restarted(number=1), text(0, "new\n")) == "\n[rank 0] new\n"


def test_displays_before_a_restart_stay(cell: Cell) -> None:
    """Those of the same id, and a rank's page, are of another attempt."""
    outputs = [_html(0, display_id="x"), _clear(0), text(0, "page\n")]
    for events in (outputs, [Restarted(number=1), *outputs]):
        cell.show(*events, wait_s=max(PAGE_S, TABLE_AFTER_S))
        cell.show()
    cell.finish()
    ids = [(display_id, update) for _, _, display_id, update in cell.shell.displays]
    assert ids == [
        ("run-1-0-own-x", False),
        ("run-1-0-page0", False),
        ("run-1-restart1-0-own-x", False),
        ("run-1-0-page0", False),
        ("run-1-restart1-0-page0", False),
    ]
    seen = [name for name, _ in cell.shell.visible]
    assert seen == ["run-1-table", "run-1-0-page0", "run-1-restart1-0-page0", "run-1-table2"]


# --- questions ----------------------------------------------------------------------------------


def test_what_was_written_is_shown_before_a_question(cell: Cell) -> None:
    """An unfinished line, too; the question itself is in the front end's box, below it."""
    cell.screen.take(text(0, "a\n"))
    cell.screen.take(text(1, "who"))
    cell.screen.take(QuestionOpened(rank=1, prompt="? "))
    assert cell.written() == "[rank 0] a\n[rank 1] who\n"
    assert cell.show(text(1, "after\n")) == "[rank 1] after\n"


def test_a_page_goes_on_after_a_question(cell: Cell) -> None:
    """What it has is shown before the question, what follows as ever."""
    cell.show(_clear(0), text(0, "one\n"))
    cell.show(QuestionOpened(rank=1, prompt="? "), QuestionClosed(rank=1, number=1, line="x"))
    _wait_for_page(cell)
    cell.show(text(0, "two\n"), wait_s=2 * PAGE_S)
    assert _pages(cell)[-1][0]["text/plain"] == "[rank 0] one\n[rank 0] two"


def test_a_rank_that_asks_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """What a debugger prints would be hidden otherwise."""
    cell = Cell(capsys, show=frozenset([0]))
    cell.screen.take(text(1, "-> x = 1\n"))
    cell.screen.take(text(2, "hidden\n"))
    cell.screen.take(QuestionOpened(rank=1, prompt="(Pdb) "))
    assert cell.written() == "[rank 1] -> x = 1\n"
    assert cell.show(text(1, "5\n"), text(2, "hidden\n")) == "[rank 1] 5\n"
    assert cell.show(text(0, "same\n"), text(1, "same\n")) == "[ranks 0-1] same\n"


def test_a_question_that_is_withdrawn_leaves_no_box(cell: Cell) -> None:
    """Jupyter removes a box with all outputs of its cell; those are shown again, answers too."""
    cell.show(text(0, "a\n"), QuestionOpened(rank=1, prompt="name? "))
    cell.show(QuestionClosed(rank=1, number=1, line="[rank 1] name? Bob"))
    assert cell.shell.cleared == []
    cell.show(QuestionOpened(rank=1, prompt="age? "))
    assert cell.show(QuestionClosed(rank=1, number=2)) == "[rank 0] a\n[rank 1] name? Bob\n"
    assert cell.shell.cleared == [True]


def test_a_question_that_was_not_shown_has_no_box(cell: Cell) -> None:
    cell.show(QuestionOpened(rank=1, prompt="name? "))
    cell.show(QuestionClosed(rank=1, number=1, line="[rank 1] name? Bob"))
    cell.show(QuestionClosed(rank=2, number=1))
    assert cell.shell.cleared == []


def test_a_terminal_shows_the_question_itself(terminal: Cell) -> None:
    """Behind what its rank has written; Enter ends the line."""
    terminal.written()
    terminal.screen.take(text(1, "who"))
    terminal.screen.take(QuestionOpened(rank=1, prompt="? "))
    assert terminal.written() == "[rank 1] who? "
    assert terminal.show(QuestionClosed(rank=1, number=1, line="x")) == ""
    assert terminal.show(text(0, "b\n")) == "[rank 0] b\n"


def test_a_terminal_shows_the_question_again_below_other_text(terminal: Cell) -> None:
    terminal.written()
    terminal.screen.take(QuestionOpened(rank=1, prompt="name? "))
    assert terminal.written() == "[rank 1] name? "
    assert terminal.show(text(0, "b\n")) == "\n[rank 0] b\n[rank 1] name? "
    assert terminal.show(QuestionClosed(rank=1, number=1)) == ""  # dropped: nobody pressed Enter
    assert terminal.show(text(0, "c\n")) == "\n[rank 0] c\n"


def test_question_and_answer_are_in_the_journal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The box of the front end is gone after a reload."""
    journal = tmp_path / "journal"
    cell = Cell(capsys, journal=journal)
    cell.show(QuestionClosed(rank=1, number=1, line="[rank 1] name? Bob"))
    assert json.loads(journal.read_text().splitlines()[-1])["text"] == "[rank 1] name? Bob\n"
