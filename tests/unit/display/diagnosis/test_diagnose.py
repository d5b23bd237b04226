"""Who failed first, and how that is said."""

from __future__ import annotations

from pathlib import Path

from ddp_magic.display.diagnosis import diagnose
from ddp_magic.display.diagnosis.diagnose import CellCode, Failure, Surroundings
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.kernel_events import StackDumped
from ddp_magic.wire.messages import Error, Finished

CELL = CellCode("/run/cell.py", "Cell In[4]")


def _error(rank: int, evalue: str, time: float = 0.0, ename: str = "RuntimeError") -> Error:
    return Error(rank=rank, time=time, ename=ename, evalue=evalue, traceback=(), line=3)


def _raised(rank: int, time: float, evalue: str) -> Failure:
    return Failure(rank=rank, time=time, error=_error(rank, evalue, time))


def test_the_earliest_failure_is_the_cause() -> None:
    """By time, whatever the order of the ranks."""
    failures = [_raised(0, 2.0, "late"), _raised(1, 1.0, "early")]
    assert diagnose.first_failure(failures).rank == 1


def test_a_victim_is_blamed_only_if_there_is_nobody_else() -> None:
    """gloo's complaint comes milliseconds before the news of the death."""
    victim = _raised(0, 1.0, "[gloo/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1")
    death = Failure(rank=1, time=1.01, code=-9)
    assert diagnose.first_failure([victim, death]) is death
    assert diagnose.first_failure([victim]) is victim


def test_an_abort_says_what_cpp_raised() -> None:
    """Of several in its output the last one; gloo's complaint about sizes in words."""
    terminate = "terminate called after throwing an instance of 'std::{}'\n  what():  {}\nmore\n"
    words = terminate.format("out_of_range", "old") + terminate.format("bad_alloc", "no memory")
    aborted = Failure(rank=0, time=0.0, code=-6, last_words=words)
    assert diagnose.describe(aborted).endswith("SIGABRT (exit -6): C++ raised: no memory")
    assert not aborted.met_other_sizes
    sizes = "[enforce fail at pair.cc:456] op.preamble.length <= op.nbytes. 8 vs 4. Received data"
    words = terminate.format("x", sizes)
    aborted = Failure(rank=0, time=0.0, code=-6, last_words=words)
    assert "gloo received 8 bytes for a buffer of 4" in diagnose.describe(aborted)
    assert aborted.met_other_sizes
    silent = diagnose.describe(Failure(rank=0, time=0.0, code=-6, last_words="nothing of it"))
    assert silent.endswith("C code aborted; the rank's output above may say why")


def test_every_end_has_words() -> None:
    """Signal names, codes and what was said."""
    assert "SIGKILL (exit -9): often the machine ran out of memory" in diagnose.describe_exit(-9)
    assert "killed by SIGTERM" in diagnose.describe_exit(-15)
    assert "code 3" in diagnose.describe_exit(3)
    said = Finished(rank=2, time=0.0, code=1, message="no data")
    text = diagnose.describe(Failure(rank=2, time=0.0, code=1, finished=said))
    assert text == "rank 2 ended by sys.exit with code 1: no data"
    assert diagnose.describe(_raised(1, 0.0, "x")) == "rank 1 raised RuntimeError at line 3: x"


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
    frames = diagnose.stack(DUMP * 2, CELL)
    assert frames == [
        'File "/lib/torch/x.py", line 99, in all_reduce',
        "Cell In[4], line 7, in step",
        "Cell In[4], line 12, in <module>",
    ]
    assert diagnose.cell_line(frames, CELL) == (7, "")
    assert diagnose.stack("", CELL) == []
    assert diagnose.cell_line([], CELL) == (None, "")


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
    frames = diagnose.stack(dump, called)
    assert frames[1:] == ["Cell In[2], line 2, in helper", "Cell In[3], line 5, in step"]
    assert diagnose.cell_line(frames, called) == (2, "Cell In[2]")
    frames = diagnose.stack(dump, CellCode("/run/cell.py", "Cell In[4]", functions))
    assert frames[-1] == "Cell In[4], line 1, in <module>"
    assert diagnose.cell_line(frames, CellCode("/run/cell.py", "Cell In[4]", functions)) == (1, "")


def test_name_hints() -> None:
    """A name that is missing, and a prelude's name in the failing line."""
    error = _error(0, "name 'model' is not defined", ename="NameError")
    (hint,) = diagnose.name_hints(error, "a\nb\nmodel()\n", Surroundings({"model": 1}), set())
    assert hint.startswith("your notebook defines `model`, but it was not sent to the ranks")
    for words in (
        "Can't get attribute 'Net' on <module '__main__' from '/x.py'>",
        "Can't get attribute 'Net.Part' on <module 'ddp_magic.worker.child_main'>",
        "module '__main__' has no attribute 'Net'",
    ):
        loaded = _error(0, words, ename="AttributeError")
        (hint,) = diagnose.name_hints(loaded, "torch.load(p)", Surroundings({"Net": 1}), set())
        assert hint.startswith("your notebook defines `Net`, but it was not sent")
    elsewhere = _error(0, "Can't get attribute 'Net' on <module 'models'>", ename="AttributeError")
    assert diagnose.name_hints(elsewhere, "", Surroundings({"Net": 1}), set()) == []
    before = Surroundings(elsewhere={"model": ("Cell In[3]", "")}.__getitem__)
    (hint,) = diagnose.name_hints(error, "model", before, set())
    assert hint.startswith("`model` was last defined in Cell In[3], whose ranks have ended")
    kept = Surroundings(elsewhere={"model": ("Cell In[3]", "lab")}.__getitem__)
    (hint,) = diagnose.name_hints(error, "model", kept, set())
    assert "in session lab: --session lab runs this cell there" in hint
    text, names = "a\nb\ntrain(1)\n", {"train", "cells"}
    wrong_call = _error(0, "train() missing 2 required arguments", ename="TypeError")
    (hint,) = diagnose.name_hints(wrong_call, text, Surroundings(), names)
    assert hint == "`train` is from ddp_magic.prelude: your notebook does not define train"
    refused = _error(0, "train_set has no images", ename="ValueError")
    assert diagnose.name_hints(refused, text, Surroundings(), names) == []
    (hint,) = diagnose.name_hints(refused, text, Surroundings({"train": 1}), names)
    assert hint == (
        "`train` is from ddp_magic.prelude, because --capture leaves out your notebook's"
    )
    assert diagnose.name_hints(_error(0, "x"), "a\n", Surroundings(), {"train"}) == []


def test_a_stack_with_the_name_of_the_cell_as_faulthandler_writes_it(tmp_path: Path) -> None:
    """Not ASCII; and too long for it."""
    for path in ["/josé/☃/😀/cell_5.py", "/" + "é" * 600 + "/cell_5.py", "/plain/cell_5.py"]:
        code = compile("import faulthandler\nfaulthandler.dump_traceback(file)", path, "exec")
        with (tmp_path / "dump").open("w+") as file:
            exec(code, {"file": file})
        frames = diagnose.stack((tmp_path / "dump").read_text(), CellCode(path, "Cell In[5]"))
        assert frames == ["Cell In[5], line 2, in <module>"]


def test_a_name_that_a_spawned_child_lacks() -> None:
    """It is said what a child gets, where the cell has computed the name."""
    words = (
        "Caught NameError in DataLoader worker process 0.\nNameError: name 'size' is not defined"
    )
    error = _error(0, words, ename="NameError")
    (hint,) = diagnose.name_hints(error, "n, size = 1, make()\n", Surroundings(), set())
    assert hint.startswith("`size`: a spawned child gets the cell's imports, functions")
    assert diagnose.name_hints(error, "other = size\n", Surroundings(), set()) == []
    own = _error(0, "name 'size' is not defined", ename="NameError")
    assert diagnose.name_hints(own, "size = 1", Surroundings(), set()) == []


def test_a_stack_that_a_rank_wrote(tmp_path: Path) -> None:
    """From its file in the run's directory; none where it has none, or is not in the cell."""
    directory = RunDirectory(tmp_path)
    assert diagnose.read_stack(directory, 1, CELL) is None
    directory.stacks(1).write_text(DUMP)
    found = diagnose.read_stack(directory, 1, CELL)
    assert found is not None
    assert (found.rank, found.line) == (1, 7)
    assert found.frames[-1] == "Cell In[4], line 12, in <module>"
    other = diagnose.read_stack(directory, 1, CellCode("/run/other.py", "Cell In[4]"))
    assert other == StackDumped(rank=1, frames=(), line=None)


def test_a_deep_stack_is_cut() -> None:
    """Its innermost frames count."""
    frames = "".join(f'  File "/run/cell.py", line {i} in f\n' for i in range(30))
    found = diagnose.stack("Thread 0x1 (most):\n" + frames, CELL, limit=3)
    assert found == [f"Cell In[4], line {i}, in f" for i in range(3)]
