"""Whole lines and unfinished ones, on a screen that the test looks at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ddp_magic.display.journal.journal import Journal
from ddp_magic.display.outputs import Outputs
from ddp_magic.display.text.written_lines import FLUSH_S, WrittenLines
from tests.unit.fakes import FakeShell


class Screen:
    """A notebook's or a terminal's screen, and a clock that the test turns."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *, notebook: bool = True) -> None:
        self.now = 1000.0
        self.outputs = Outputs(FakeShell(notebook=notebook))  # type: ignore[arg-type]
        self.written = WrittenLines(self.outputs, lambda: self.now)
        self._capsys = capsys

    def flushed(self) -> str:
        """Return what is written since the last time."""
        self.written.flush()
        return self.seen()

    def seen(self) -> str:
        return self._capsys.readouterr().out


@pytest.fixture
def screen(capsys: pytest.CaptureFixture[str]) -> Screen:
    return Screen(capsys)


def test_what_is_added_is_written_in_one_piece(screen: Screen) -> None:
    screen.written.add(["a", "b"])
    assert screen.seen() == ""
    number = screen.outputs.number
    assert screen.flushed() == "a\nb\n"
    assert screen.outputs.number == number + 1
    assert screen.written.due == screen.now + FLUSH_S


def test_an_unfinished_line_goes_on_to_its_end(screen: Screen) -> None:
    screen.written.add_unfinished(1, "one ")
    assert screen.flushed() == "[rank 1] one "
    assert screen.written.open_rank == 1
    screen.written.add_unfinished(1, "two ")
    screen.written.finish_line("three")
    assert screen.flushed() == "two three\n"
    assert screen.written.open_rank is None


def test_another_line_breaks_it(screen: Screen) -> None:
    """Whole or unfinished."""
    screen.written.add_unfinished(1, "one")
    screen.written.add(["a"])
    screen.written.add_unfinished(2, "two")
    screen.written.add_unfinished(1, "three")
    assert screen.flushed() == "[rank 1] one\na\n[rank 2] two\n[rank 1] three"


def test_a_line_that_is_ended(screen: Screen) -> None:
    """Once: whole lines have an end."""
    screen.written.add_unfinished(1, "one")
    for expected in ("[rank 1] one\n", ""):
        screen.written.end_line()
        assert screen.seen() == expected


def test_what_stands_below_it_leaves_it_behind(screen: Screen) -> None:
    """The rest begins a new line: there is no way back."""
    screen.written.add_unfinished(1, "one")
    screen.written.flush()
    screen.written.leave_behind()
    assert screen.written.open_rank == 1
    screen.outputs.display({}, {}, "table", update=False)
    screen.written.leave_behind()
    assert screen.written.open_rank is None


def test_a_line_of_a_rank_whose_output_is_removed(screen: Screen) -> None:
    """It is written before, and does not go on."""
    screen.written.add_unfinished(1, "one")
    screen.written.remove(2)
    assert screen.written.open_rank == 1
    screen.written.remove(1)
    assert screen.written.open_rank is None


def test_a_terminals_question_is_below_what_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    """Until it is closed, whatever comes meanwhile."""
    terminal = Screen(capsys, notebook=False)
    terminal.written.ask(1, "name? ")
    assert terminal.seen() == "[rank 1] name? "
    terminal.written.add(["a"])
    assert terminal.flushed() == "\na\n[rank 1] name? "
    terminal.written.close_question(1, "[rank 1] name? Bob")
    terminal.written.add(["b"])
    assert terminal.flushed() == "b\n"  # Enter has ended the line


def test_a_question_that_is_withdrawn_is_a_line_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal = Screen(capsys, notebook=False)
    terminal.written.ask(1, "name? ")
    terminal.written.close_question(1, "")
    terminal.written.add(["b"])
    assert terminal.flushed() == "[rank 1] name? \nb\n"


def test_the_journal_has_what_is_on_the_screen(screen: Screen, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    screen.written.start(Journal(path))
    screen.written.add_unfinished(1, "one")
    screen.written.flush()
    screen.outputs.display({}, {}, "table", update=False)
    screen.written.leave_behind()
    screen.written.ask(2, "name? ")
    screen.written.close_question(2, "[rank 2] name? Bob")
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    assert "".join(texts) == "[rank 1] one\n[rank 2] name? Bob\n"
