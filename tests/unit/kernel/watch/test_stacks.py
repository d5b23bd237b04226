"""Asking ranks for their stacks, with ranks that are writes to a file."""

from __future__ import annotations

from pathlib import Path

from ddp_magic.display.diagnosis.diagnose import CellCode
from ddp_magic.kernel.watch import stacks
from ddp_magic.system.run_directory import RunDirectory

DUMP = """Current thread 0x00007f (most recent call first):
  File "/lib/x.py", line 7 in read
  File "/run/cell.py", line 3 in <module>

"""


def _ask(tmp_path: Path, writes: dict[int, str]) -> dict[int, tuple[str, ...]]:
    directory = RunDirectory(tmp_path)

    def dump(rank: int) -> None:
        with directory.stacks(rank).open("a") as file:
            file.write(writes.get(rank, ""))

    found = stacks.ask(
        [0, 1], directory, dump, code=CellCode("/run/cell.py", "Cell In[2]"), wait_s=0.2
    )
    return {stack.rank: stack.frames for stack in found}


def test_each_rank_writes_its_stack(tmp_path: Path) -> None:
    found = _ask(tmp_path, {0: DUMP, 1: DUMP.replace("line 3", "line 9")})
    assert found[0][-1] == "Cell In[2], line 3, in <module>"
    assert found[1][-1] == "Cell In[2], line 9, in <module>"


def test_a_rank_that_writes_none_is_left_out(tmp_path: Path) -> None:
    """Even if it has written one before."""
    RunDirectory(tmp_path).stacks(1).write_text(DUMP)
    assert set(_ask(tmp_path, {0: DUMP})) == {0}
