"""Where the table stands: below the newest output, at few outputs' cost."""

from __future__ import annotations

import itertools

import pytest

from ddp_magic.display.outputs import Outputs
from ddp_magic.display.table_place import FIRST_MOVE_S, MAX_MOVES, TablePlace
from tests.unit.fakes import FakeShell


class Cell:
    """A cell with a table, and other outputs; what a notebook would show of it."""

    def __init__(self) -> None:
        self.shell = FakeShell()
        self.outputs = Outputs(self.shell)  # type: ignore[arg-type]
        self.place = TablePlace(self.outputs, "run-table", "run-7")
        self.now = 0.0
        self.version = 0
        self.texts = 0

    def text(self) -> None:
        """Put something out below the table."""
        self.texts += 1
        name = f"text{self.texts}"
        self.outputs.display({"text/plain": "text"}, {}, name, update=False)

    def update(self, wait_s: float = 0.0, room: int = 30) -> None:
        """Show another table after a while; it has been seen at once, too."""
        self.place.show(f"before {self.version}", "markup", self.now, room=room)
        self.now += wait_s
        self.version += 1
        self.place.show(f"table {self.version}", "markup", self.now, room=room)

    @property
    def seen(self) -> list[str]:
        """The outputs in order, with their last contents."""
        outputs: dict[str, str] = {}
        for data, _, name, update in self.shell.published:
            assert update == (name in outputs)
            outputs[name] = data["text/plain"]
        return list(outputs.values())


@pytest.fixture
def cell() -> Cell:
    """A cell whose first line is shown."""
    made = Cell()
    made.place.begin("head")
    return made


def test_the_first_table_takes_the_place_of_the_first_line(cell: Cell) -> None:
    cell.update()
    assert cell.seen == ["table 1"]


def test_the_first_line_stays_above_the_output(cell: Cell) -> None:
    """Wherever the table was when the output came."""
    cell.text()
    cell.update()
    assert cell.seen == ["head", "text", "table 1"]


def test_a_table_moves_below_output_that_stays(cell: Cell) -> None:
    """Not at once: each move costs outputs."""
    cell.update()
    cell.text()
    cell.update(FIRST_MOVE_S / 2)
    assert cell.seen == ["table 2", "text"]
    cell.update(FIRST_MOVE_S)
    assert cell.seen == ["head", "text", "table 3"]


def test_moves_become_rarer(cell: Cell) -> None:
    """In a run that puts something out for ever, most are soon after its start."""
    moved = []
    for second in range(1000):
        cell.text()
        before = len(cell.seen)
        cell.update(1.0)
        if len(cell.seen) > before:
            moved.append(second)
    assert len(moved) == 1 + MAX_MOVES  # the first time, the first line stays
    gaps = [b - a for a, b in itertools.pairwise(moved)]
    assert gaps == sorted(gaps)


def test_a_place_that_was_left_is_empty(cell: Cell) -> None:
    for _ in range(2):
        cell.text()
        cell.update(100)
    cell.text()
    cell.update(100)
    assert cell.seen == ["head", "text", "", "text", "", "text", "table 3"]


def test_no_move_without_room(cell: Cell) -> None:
    cell.update()
    cell.text()
    cell.update(100, room=1)
    assert cell.seen == ["table 2", "text"]


def test_the_same_table_is_not_sent_again(cell: Cell) -> None:
    cell.place.show("same", "", 0, room=9)
    cell.place.show("same", "", 1, room=9)
    assert len(cell.shell.published) == 2


def test_a_table_that_gets_old_says_how_to_see_more(cell: Cell) -> None:
    """By itself, in a page that was loaded again: hidden until then, and gone with the table."""
    cell.update()
    *_, (data, _, _, _) = cell.shell.published
    assert 'style="max-height:0;visibility:hidden;animation:' in data["text/html"]
    assert "%ddp_show run-7" in data["text/html"]
    assert "ddp_show" not in data["text/plain"]
    cell.place.close("closing")
    assert "ddp_show" not in cell.shell.published[-1][0]["text/html"]


@pytest.mark.parametrize("with_table", [False, True])
def test_the_closing_line_is_the_last_output(cell: Cell, with_table: bool) -> None:
    """And the first line the first."""
    if with_table:
        cell.update()
    cell.text()
    cell.place.close("closing")
    assert cell.seen == ["head", "text", "closing"]


def test_the_closing_line_takes_the_table_s_place(cell: Cell) -> None:
    cell.text()
    cell.update()
    cell.place.close("closing")
    assert cell.seen == ["head", "text", "closing"]


def test_the_closing_line_stands_below_an_answer(cell: Cell) -> None:
    """Which the front end itself has put out, below the table: `q` in a debugger."""
    cell.update()
    cell.outputs.note_answer("[rank 0] (Pdb) q")
    cell.place.close("closing")
    assert cell.seen == ["head", "closing"]


@pytest.mark.parametrize("moves", [0, 1, 3])
def test_the_first_line_may_say_how_it_ended(cell: Cell, moves: int) -> None:
    """Wherever the table has been."""
    for _ in range(moves):
        cell.text()
        cell.update(100)
    cell.text()
    cell.place.close("closing", head="head: failed")
    assert [cell.seen[0], cell.seen[-1]] == ["head: failed", "closing"]
    assert "head" not in cell.seen


def test_the_first_line_may_be_the_closing_line(cell: Cell) -> None:
    cell.update()
    cell.place.close("closing", head="head: failed")
    assert cell.seen == ["closing"]


def test_a_closing_line_alone() -> None:
    """Of a quiet run that failed."""
    quiet = Cell()
    quiet.text()
    quiet.place.close("closing")
    assert quiet.seen == ["text", "closing"]
