"""Lines that all ranks print are one, exactly; no rank's order changes, and little is delayed."""

from __future__ import annotations

import random

import pytest

from ddp_magic.display.text.fold import ALONE_LINES, HOLD_S, Fold

SOON, LATE = HOLD_S / 3, HOLD_S * 1.1


class Ranks:
    """What some ranks print, and when it is shown; with a clock that the test turns."""

    def __init__(self, nproc: int = 3) -> None:
        self.fold: Fold[object] = Fold(range(nproc))
        self.now = 100.0
        self.shown: list[str] = []

    def print(self, rank: int, *lines: str) -> Ranks:
        for line in lines:
            self.fold.add_line(rank, line, self.now)
        return self

    def wait(self, seconds: float, *, final: bool = False) -> list[str]:
        """Return what is shown then: `012 line`."""
        self.now += seconds
        found = [
            f"{''.join(map(str, ranks))} {what}"
            for ranks, what in self.fold.release(self.now, final=final)
        ]
        self.shown += found
        return found


def test_a_line_of_all_ranks_is_one() -> None:
    """At once when the last of them has printed it."""
    ranks = Ranks().print(0, "same").print(1, "same")
    assert ranks.wait(SOON) == []
    assert ranks.print(2, "same").wait(SOON) == ["012 same"]
    assert ranks.wait(LATE) == []


def test_a_line_of_some_ranks_is_theirs() -> None:
    """Not of all: each is shown, in the order in which they came."""
    ranks = Ranks().print(2, "same").print(0, "same")
    assert ranks.wait(SOON) == []
    assert ranks.wait(LATE) == ["2 same", "0 same"]


@pytest.mark.parametrize("other", ["same ", " same", "Same", "same\r", "same 1", ""])
def test_only_identical_lines_are_one(other: str) -> None:
    ranks = Ranks(2).print(0, "same").print(1, other)
    assert ranks.wait(LATE) == ["0 same", f"1 {other}"]


def test_the_order_of_each_rank_is_kept() -> None:
    """Lines of one rank before a common one are shown before it."""
    ranks = Ranks(2).print(0, "a", "same", "b").print(1, "c", "d", "same")
    assert ranks.wait(LATE) == ["0 a", "1 c", "1 d", "01 same", "0 b"]


def test_lines_that_cross_keep_their_order() -> None:
    """Of two that all have printed in different order, one is folded."""
    ranks = Ranks(2).print(0, "a", "b").print(1, "b", "a")
    assert ranks.wait(LATE) == ["1 b", "01 a", "0 b"]


def test_a_line_that_is_repeated() -> None:
    """As often as all ranks have printed it; the rest is of one."""
    ranks = Ranks(2).print(0, "x", "x", "x").print(1, "x", "x")
    assert ranks.wait(SOON) == ["01 x", "01 x"]
    assert ranks.wait(LATE) == ["0 x"]


def test_any_lines_stay_complete_and_in_order() -> None:
    """Random lines at random times: each rank's are all there, in its order."""
    for seed in range(200):
        draw = random.Random(seed)
        ranks = Ranks(3)
        printed: list[list[str]] = [[], [], []]
        for _ in range(40):
            rank, line = draw.randrange(3), draw.choice("abc")
            printed[rank].append(line)
            ranks.print(rank, line)
            if draw.random() < 0.3:
                ranks.wait(draw.choice([0, SOON, LATE]))
        ranks.wait(0, final=True)
        for rank in range(3):
            of_rank = [line for who, line in map(str.split, ranks.shown) if str(rank) in who]
            assert of_rank == printed[rank]
        assert all(len(line.split()[0]) in (1, 3) for line in ranks.shown)


def test_other_things_keep_their_place() -> None:
    """A figure comes after the line before it and before the line after it; lines still meet."""
    ranks = Ranks(2)
    for rank in range(2):
        ranks.print(rank, "before")
        ranks.fold.add(rank, "FIGURE", ranks.now)
        ranks.print(rank, "after")
    assert ranks.wait(SOON) == ["01 before", "0 FIGURE", "1 FIGURE", "01 after"]


def test_other_things_do_not_overtake_lines_of_other_ranks() -> None:
    """A figure after a barrier is below what another rank had printed before the barrier."""
    ranks = Ranks(2).print(0, "done")
    assert ranks.wait(LATE) == ["0 done"]
    ranks.print(1, "one")
    ranks.fold.add(0, "FIGURE", ranks.now)
    assert ranks.fold.due > ranks.now
    assert ranks.wait(SOON) == []
    assert ranks.wait(LATE) == ["1 one", "0 FIGURE"]
    ranks.fold.add(0, "FIGURE", ranks.now)  # nothing waits
    assert ranks.wait(0) == ["0 FIGURE"]
    ranks.print(1, "two")
    ranks.fold.add(0, "FIGURE", ranks.now)
    assert ranks.print(0, "two").wait(0) == ["0 FIGURE", "01 two"]


def test_what_must_not_be_folded_is_not() -> None:
    ranks = Ranks(2)
    for rank in range(2):
        ranks.fold.add_line(rank, "page", ranks.now, foldable=False)
    assert ranks.wait(0) == ["0 page", "1 page"]


def test_one_rank_never_waits() -> None:
    assert Ranks(1).print(0, "a").wait(0) == ["0 a"]


def test_a_kind_of_line_waits_in_vain_once() -> None:
    """Lines of a loop, which differ in their numbers: the second one is shown at once."""
    ranks = Ranks().print(0, "step 1, loss 0.5")
    assert ranks.wait(LATE) == ["0 step 1, loss 0.5"]
    assert ranks.print(0, "step 2, loss 0.25").wait(0) == ["0 step 2, loss 0.25"]


def test_lines_that_correspond_do_not_wait() -> None:
    """Each rank has printed its own: nothing is to come."""
    ranks = Ranks()
    for rank in range(3):
        assert ranks.wait(0) == []
        ranks.print(rank, f"rank {rank} of 3")
    assert ranks.wait(0) == [f"{rank} rank {rank} of 3" for rank in range(3)]


def test_lines_of_a_kind_that_has_waited_are_shown_together() -> None:
    """Of the last bars of ranks, say: one text and not three."""
    ranks = Ranks().print(0, "bar 0: 100%")
    ranks.wait(SOON)
    ranks.print(1, "bar 1: 100%", "other")
    assert ranks.wait(LATE - SOON) == ["0 bar 0: 100%", "1 bar 1: 100%"]


def test_a_rank_that_prints_alone_does_not_wait() -> None:
    """Whatever it prints, after its first lines."""
    ranks = Ranks()
    words = ["one", "two", "three", "four", "five"]
    for word in words[:ALONE_LINES]:
        assert ranks.print(0, word).wait(0) == []
        ranks.wait(LATE)
    for word in words[ALONE_LINES:]:
        assert ranks.print(0, word).wait(0) == [f"0 {word}"]


def test_lines_wait_again_once_all_ranks_print_them() -> None:
    """The first one is shown three times, since nobody expected it."""
    ranks = Ranks()
    for word in "abcde":
        ranks.print(0, word).wait(LATE)
    for epoch in range(3):
        for rank in range(3):
            ranks.print(rank, f"epoch {epoch} done").wait(SOON)
        ranks.wait(LATE)
    assert ranks.shown[-2:] == ["012 epoch 1 done", "012 epoch 2 done"]
    assert [line for line in ranks.shown if "epoch 0" in line] == [
        f"{rank} epoch 0 done" for rank in range(3)
    ]


def test_ranks_that_print_lines_of_their_own_still_fold_others() -> None:
    """However many of their own come first: other ranks write too."""
    ranks = Ranks()
    for word in ("shard", "file", "seed", "host"):
        for rank in range(3):
            ranks.print(rank, f"{word} {'xyz'[rank]}")
        ranks.wait(LATE)
    for rank in range(3):
        ranks.print(rank, "ready").wait(SOON)
    assert ranks.shown[-1] == "012 ready"
