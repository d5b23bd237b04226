"""Asking ranks for their stacks, with ranks that are writes to a file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from ddp_magic.display.diagnosis.stack_dumps import CellCode
from ddp_magic.display.rank import Rank
from ddp_magic.kernel.watch.stacks import Stacks
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.kernel_events import StackDumped
from tests.unit.fakes import error

DUMP = """Current thread 0x00007f (most recent call first):
  File "/lib/x.py", line 7 in read
  File "/run/cell.py", line 3 in <module>

"""


def _ask(tmp_path: Path, writes: dict[int, str]) -> dict[int, tuple[str, ...]]:
    directory = RunDirectory(tmp_path)

    def dump(rank: int) -> None:
        with directory.stacks(rank).open("a") as file:
            file.write(writes.get(rank, ""))

    stacks = Stacks(directory, CellCode("/run/cell.py", "Cell In[2]"), wait_s=0.2)
    ranks = [Rank(rank=0, pid=7), Rank(rank=1, pid=8), Rank(rank=2)]
    found = stacks.ask(ranks, dump)
    return {stack.rank: stack.frames for stack in found}


def test_each_rank_writes_its_stack(tmp_path: Path) -> None:
    found = _ask(tmp_path, {0: DUMP, 1: DUMP.replace("line 3", "line 9")})
    assert found[0][-1] == "Cell In[2], line 3, in <module>"
    assert found[1][-1] == "Cell In[2], line 9, in <module>"


def test_a_rank_that_writes_none_is_left_out(tmp_path: Path) -> None:
    """Even if it has written one before."""
    RunDirectory(tmp_path).stacks(1).write_text(DUMP)
    assert set(_ask(tmp_path, {0: DUMP})) == {0}


def test_a_rank_that_is_not_there_is_not_asked(tmp_path: Path) -> None:
    """It has ended, or has not started: nobody would write."""
    stacks = Stacks(RunDirectory(tmp_path), CellCode("/run/cell.py", "Cell In[2]"), wait_s=0.2)
    asked: list[int] = []
    ranks = [Rank(rank=0, pid=7, code=0), Rank(rank=1), Rank(rank=2, pid=9)]
    assert stacks.ask(ranks, asked.append) == []
    assert asked == [2]


def test_the_stacks_of_ranks_that_crashed(tmp_path: Path) -> None:
    """Not of one that raised, or ended well: what it wrote earlier explains nothing."""
    directory = RunDirectory(tmp_path)
    ranks = [Rank(rank=n, code=code) for n, code in enumerate((-11, 0, 1, 1))]
    ranks[2].take(error(2))
    for rank in ranks:
        directory.stacks(rank.rank).write_text(DUMP if rank.rank < 3 else "")
    found = Stacks(directory, CellCode("/run/cell.py", "Cell In[2]")).of_crashes(ranks)
    assert [stack.rank for stack in found] == [0, 3]
    assert found[0].frames[-1] == "Cell In[2], line 3, in <module>"


def _silent(tmp_path: Path, rank: Rank, writes: str = DUMP) -> tuple[Stacks, list[StackDumped]]:
    """Look three times at a rank; the first look may ask it."""
    directory = RunDirectory(tmp_path)

    def dump(number: int) -> None:
        with directory.stacks(number).open("a") as file:
            file.write(writes)

    stacks = Stacks(directory, CellCode("/run/cell.py", "Cell In[2]"))
    return stacks, [stack for _ in range(3) for stack in stacks.of_silent([rank], 5.0, dump)]


def _running(silent_s: float, **more: Any) -> Rank:
    return Rank(rank=0, pid=7, device="cpu", heard=time.time() - silent_s, **more)


def test_a_rank_that_has_fallen_silent_is_asked_once_where_it_is(tmp_path: Path) -> None:
    """C code that holds the interpreter lock lets it send nothing; its last word is old."""
    rank = _running(9.0, line=1, call="time.sleep")
    _, (told,) = _silent(tmp_path, rank)
    rank.take(told)
    assert (rank.line, rank.call, rank.stack) == (3, "", ())


@pytest.mark.parametrize(
    ("silent_s", "more", "writes"),
    [
        (1.0, {}, DUMP),
        (9.0, {"code": 0}, DUMP),
        (9.0, {"killed": True}, DUMP),
        (9.0, {"takes_usr1": True}, DUMP),  # a handler of the user's would run instead
        (9.0, {}, ""),  # it is stopped
    ],
)
def test_a_rank_that_need_not_or_cannot_answer_tells_nothing(
    tmp_path: Path, silent_s: float, more: dict[str, Any], writes: str
) -> None:
    RunDirectory(tmp_path).stacks(0).write_text(DUMP)
    assert _silent(tmp_path, _running(silent_s, **more), writes)[1] == []


def test_where_a_rank_was_when_it_was_asked_is_not_where_it_died(tmp_path: Path) -> None:
    """It has gone on since."""
    rank = _running(9.0)
    stacks, _ = _silent(tmp_path, rank)
    rank.code = 3
    assert stacks.of_crashes([rank]) == []
    with RunDirectory(tmp_path).stacks(0).open("a") as file:
        file.write(DUMP)
    assert len(stacks.of_crashes([rank])) == 1
