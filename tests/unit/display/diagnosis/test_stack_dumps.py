"""Stacks as faulthandler writes them, and as a person reads them."""

from __future__ import annotations

from pathlib import Path

from ddp_magic.display.diagnosis import stack_dumps
from ddp_magic.display.diagnosis.stack_dumps import CellCode, cell_line, read_stack, stack
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.kernel_events import StackDumped

CELL = CellCode("/run/cell.py", "Cell In[4]")

DUMP = """\
Thread 0x00007f (most recent call first):
  File "/lib/selectors.py", line 5 in select
  File "/pkg/worker.py", line 9 in _beat

Current thread 0x00007e (most recent call first):
  File "/lib/torch/x.py", line 99 in all_reduce
  File "/run/cell.py", line 7 in step
  File "/run/cell.py", line 12 in <module>
  File "/lib/IPython/i.py", line 1 in run_code
"""


def test_the_stack_of_the_thread_in_the_cell() -> None:
    """Innermost first, down to the cell's own module level, under the notebook's name."""
    frames = stack(DUMP * 2, CELL)
    assert frames == [
        'File "/lib/torch/x.py", line 99, in all_reduce',
        "Cell In[4], line 7, in step",
        "Cell In[4], line 12, in <module>",
    ]
    assert cell_line(frames, CELL) == (7, "")
    assert stack("", CELL) == []
    assert cell_line([], CELL) == (None, "")


def test_a_stack_has_no_frames_of_ours() -> None:
    """As that of our function around torch's, which creates groups."""
    ours = Path(stack_dumps.__file__).parents[2] / "worker" / "process_group.py"
    place = '  File "/run/cell.py", line 7'
    dump = DUMP.replace(place, f'  File "{ours}", line 84 in helper\n{place}')
    frames = stack(dump, CELL)
    assert len(frames) == 3
    assert not any("helper" in frame for frame in frames)


def test_a_stack_names_the_notebooks_functions_by_their_cells() -> None:
    """The generated cell that calls one is left out, and its line is not told."""
    dump = (
        "Current thread 0x1 (most recent call first):\n"
        '  File "/lib/torch/x.py", line 9 in all_reduce\n'
        '  File "/tmp/ipykernel_1/7.py", line 2 in helper\n'
        '  File "/tmp/ipykernel_1/8.py", line 5 in step\n'
        '  File "/run/cell.py", line 1 in <module>\n'
    )
    functions = {"/tmp/ipykernel_1/7.py": "Cell In[2]", "/tmp/ipykernel_1/8.py": "Cell In[3]"}
    called = CellCode("/run/cell.py", "Cell In[4]", functions, is_call=True)
    frames = stack(dump, called)
    assert frames[1:] == ["Cell In[2], line 2, in helper", "Cell In[3], line 5, in step"]
    assert cell_line(frames, called) == (2, "Cell In[2]")
    frames = stack(dump, CellCode("/run/cell.py", "Cell In[4]", functions))
    assert frames[-1] == "Cell In[4], line 1, in <module>"
    assert cell_line(frames, CellCode("/run/cell.py", "Cell In[4]", functions)) == (1, "")


def test_a_stack_with_the_name_of_the_cell_as_faulthandler_writes_it(tmp_path: Path) -> None:
    """Not ASCII; and too long for it."""
    for path in ["/josé/☃/😀/cell_5.py", "/" + "é" * 600 + "/cell_5.py", "/plain/cell_5.py"]:
        code = compile("import faulthandler\nfaulthandler.dump_traceback(file)", path, "exec")
        with (tmp_path / "dump").open("w+") as file:
            exec(code, {"file": file})
        frames = stack((tmp_path / "dump").read_text(), CellCode(path, "Cell In[5]"))
        assert frames == ["Cell In[5], line 2, in <module>"]


def test_a_stack_that_a_rank_wrote(tmp_path: Path) -> None:
    """From its file in the run's directory; none where it has none, or is not in the cell."""
    directory = RunDirectory(tmp_path)
    assert read_stack(directory, 1, CELL) is None
    directory.stacks(1).write_text(DUMP)
    found = read_stack(directory, 1, CELL)
    assert found is not None
    assert (found.rank, found.line) == (1, 7)
    assert found.frames[-1] == "Cell In[4], line 12, in <module>"
    other = read_stack(directory, 1, CellCode("/run/other.py", "Cell In[4]"))
    assert other == StackDumped(rank=1, frames=(), line=None)


def test_a_deep_stack_is_cut() -> None:
    """Its innermost frames count."""
    frames = "".join(f'  File "/run/cell.py", line {i} in f\n' for i in range(30))
    found = stack("Thread 0x1 (most):\n" + frames, CELL, limit=3)
    assert found == [f"Cell In[4], line {i}, in f" for i in range(3)]
