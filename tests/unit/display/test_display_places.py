"""Which output shows a display: its own while there is room, a shared one afterwards."""

from __future__ import annotations

import itertools

import pytest

from ddp_magic.display.display_places import DisplayPlaces, Place
from ddp_magic.display.outputs import MAX_OUTPUTS

ROOM = MAX_OUTPUTS - 5


class Cell:
    """A cell with some ranks whose displays are counted; each may have text after it."""

    def __init__(self, nproc: int, *, text_between: bool = True) -> None:
        self.places = DisplayPlaces(range(nproc), ROOM)
        self.each = 2 if text_between else 1
        self.used = 2  # first line, text
        self._numbers = itertools.count()

    def show(self, rank: int, times: int = 1) -> list[Place]:
        found = []
        for _ in range(times):
            name = f"{rank}-{next(self._numbers)}"
            found.append(self.places.place(rank, name, ROOM - self.used))
            self.used += 0 if found[-1].update else self.each
        return found


def own(places: list[Place]) -> int:
    return sum(not place.update for place in places)


def test_four_ranks_with_three_figures_each() -> None:
    """All are shown, in any order, also with text between them."""
    for order in ([0, 1, 2, 3] * 3, sorted([0, 1, 2, 3] * 3)):
        cell = Cell(4)
        places = [place for rank in order for place in cell.show(rank)]
        assert own(places) == 12


@pytest.mark.parametrize("nproc", [1, 2, 4, 8, 16, 64])
@pytest.mark.parametrize("text_between", [False, True])
def test_no_number_of_displays_needs_more_room(nproc: int, text_between: bool) -> None:
    """And each rank's last one is in some output."""
    cell = Cell(nproc, text_between=text_between)
    for _ in range(30):
        for rank in range(nproc):
            cell.show(rank)
    assert cell.used <= ROOM + cell.each


def test_a_rank_that_draws_alone_has_room() -> None:
    """What the others have not used is kept for them: three displays each."""
    cell = Cell(4, text_between=False)
    assert own(cell.show(0, 100)) >= 15
    assert [own(cell.show(rank, 5)) >= 3 for rank in (1, 2, 3)] == [True] * 3


def test_the_last_output_of_a_rank_is_shared() -> None:
    """It counts what it has shown; the outputs of other ranks are not touched."""
    cell = Cell(2)
    places = cell.show(1, 60)
    alone = [place for place in places if not place.update]
    shared = [place for place in places if place.update]
    assert {place.name for place in shared} == {alone[-1].name}
    assert [place.shares for place in shared] == list(range(2, len(shared) + 2))


def test_new_content_stays_in_its_output() -> None:
    """Without another count, also where the output is shared."""
    places = DisplayPlaces([0], ROOM)
    assert places.place(0, "a", 10) == Place(name="a", update=False, shares=1)
    assert places.place(0, "a", 10) == Place(name="a", update=True, shares=1)
    assert places.place(0, "b", 0) == Place(name="a", update=True, shares=2)
    assert places.place(0, "b", 0) == Place(name="a", update=True, shares=2)


def test_ranks_without_any_output_share_one() -> None:
    cell = Cell(64)
    places = [cell.show(rank)[0] for rank in range(64)]
    names = {place.name for place in places}
    assert len(names) < 25
    assert len({place.name for place in places[-20:]}) == 1
