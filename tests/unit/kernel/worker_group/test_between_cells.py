"""What the ranks of a session say while no cell runs."""

from __future__ import annotations

import os

import pytest

from ddp_magic.kernel.worker_group.between_cells import BetweenCells
from ddp_magic.wire.kernel_events import Note, PulledValues
from ddp_magic.wire.worker_events import Results
from tests.unit.fakes import heartbeat, text


def test_what_a_person_should_see_is_kept_once() -> None:
    """In its order; not where the ranks were, for example."""
    between = BetweenCells()
    between.keep([text(0, "a\n"), heartbeat(0)])
    between.keep([Note(text="b"), text(1, "c\n")])
    assert between.take() == [text(0, "a\n"), Note(text="b"), text(1, "c\n")]
    assert between.take() == []


def test_the_memory_of_values_is_let_go() -> None:
    """Some come without."""
    read_end, write_end = os.pipe()
    results = Results(rank=0, names=("x",), sizes=(1,))
    between = BetweenCells()
    between.keep([PulledValues(results=results, fd=fd) for fd in (read_end, None)])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(read_end)
    assert between.take() == []
    os.close(write_end)
