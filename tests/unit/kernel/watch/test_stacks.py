"""Asking ranks for their stacks, with ranks that are writes to a file."""

from __future__ import annotations

from pathlib import Path

from ddp_magic.display.diagnosis.stack_dumps import CellCode
from ddp_magic.display.rank import Rank
from ddp_magic.kernel.watch.stacks import Stacks
from ddp_magic.system.run_directory import RunDirectory
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
