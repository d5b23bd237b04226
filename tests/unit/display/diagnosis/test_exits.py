"""Ranks that have finished their cell, and do not end."""

from __future__ import annotations

import pytest

from ddp_magic.display.diagnosis.exits import held_exits
from ddp_magic.display.diagnosis.hangs import explain
from ddp_magic.display.rank import Rank
from ddp_magic.wire.states import Phase
from tests.unit.fakes import EARLY, exited, finished, heartbeat, ready

THREAD = "its thread Thread-1 (load) (line 4, in time.sleep)"


def _exits(number: int, what: str, seconds: float = 7.0) -> Rank:
    rank = Rank(rank=number)
    last = heartbeat(number, phase=Phase.EXITING, exit_wait=what, time=EARLY + seconds)
    for event in (ready(number), finished(number), last):
        rank.take(event)
    return rank


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ((THREAD, ""), [f"rank 0 has finished, and waits at the exit for 7 s for {THREAD}"]),
        (
            (THREAD, THREAD),
            [f"ranks 0, 1 have finished, and wait at the exit for 7 s for {THREAD}"],
        ),
    ],
)
def test_what_an_exit_waits_for_is_told(what: tuple[str, str], words: list[str]) -> None:
    ranks = [_exits(number, one) for number, one in enumerate(what)]
    assert held_exits(ranks, 5.0)[:1] == words
    assert set(words) <= set(explain(ranks, EARLY + 7.0))


def test_a_rank_that_sends_its_results_does_not_exit() -> None:
    """It takes its time with values of several GB, and a session's rank stays."""
    assert held_exits([_exits(2, "")], 5.0) == []


def test_a_short_exit_and_one_that_has_come_to_its_end_are_not_told() -> None:
    ended = _exits(1, THREAD)
    ended.take(exited(1, 0))
    assert held_exits([_exits(0, THREAD, seconds=4.0), ended], 5.0) == []
