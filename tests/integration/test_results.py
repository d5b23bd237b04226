"""What comes back from the ranks: --pull, -o, launch, run; the errors' own classes."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.kernel import Kernel, frames_of_ours, unfolded


@pytest.fixture(autouse=True)
def no_names(kernel: Kernel) -> None:
    """Each test begins without the names of the one before."""
    kernel.run("%reset -f")


# --- --pull ---------------------------------------------------------------------------------------


def test_pull(kernel: Kernel) -> None:
    """From rank 0, from all as a list, from one, and an attribute by its own name."""
    result = kernel.run(
        "%%ddp -n 3 --pull a,b@all,c@2,trainer.state\n"
        "class Trainer: state = {'step': 7}\n"
        "a, b, c, trainer = f'{rank}a', rank * 10, [rank], Trainer()"
    )
    assert result.status == "ok", result.traceback
    assert kernel.value("(a, b, c, state)") == ("0a", [0, 10, 20], [2], {"step": 7})
    assert kernel.value("'trainer' in globals()") is False


def test_arrays_tensors_and_modules(kernel: Kernel) -> None:
    """Whole and writable; a module unwrapped from DDP, with its optimizer still its own."""
    result = kernel.run(
        """%%ddp -n 2 --pull array,views,model,opt,frame
import numpy as np
array = np.arange(1e6)
base = torch.arange(6.); views = [base, base[2:]]
model = DDP(torch.nn.Linear(2, 1))
opt = torch.optim.Adam(model.parameters())
model(torch.ones(1, 2)).sum().backward(); opt.step()
frame = {'loss': [torch.tensor(1.5)]}"""
    )
    assert result.status == "ok", result.traceback
    kernel.run("array[0] = 5; views[0][2] = 9")
    assert kernel.value("(float(array.sum()), views[1][0].item())") == (499999500005.0, 9.0)
    assert kernel.value("(type(model).__name__, frame['loss'][0].item())") == ("Linear", 1.5)
    assert kernel.value("opt.param_groups[0]['params'][0] is model.weight") is True
    assert kernel.value("opt.state[model.weight]['step'].item()") == 1.0


def test_a_tensor_for_a_notebook_whose_directory_is_gone(
    new_kernel: Callable[..., Kernel],
) -> None:
    """It imports torch, which ends a process whose working directory was removed."""
    kernel = new_kernel()
    kernel.run("import os\nos.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')")
    result = kernel.run("%%ddp -n 2 --pull x\nx = torch.ones(2)")
    assert result.status == "ok", result
    assert "the notebook's working directory was removed: the ranks use another" in result.text
    assert kernel.value("x.tolist()") == [1.0, 1.0]


def test_a_notebooks_class_stays_the_notebooks(kernel: Kernel) -> None:
    """An object of it that went and came back is still an instance."""
    kernel.run("class Config:\n    lr = 1\nconfig = Config()")
    kernel.run("%%ddp -n 1 --pull config\nconfig.lr = 2")
    assert kernel.value("(isinstance(config, Config), config.lr)") == (True, 2)


def test_what_was_never_set(kernel: Kernel) -> None:
    """An error that names it; the notebook's old value stays; the others come."""
    kernel.run("best = 'old'")
    result = kernel.run("%%ddp -n 2 --pull best,other\nother = 1\nif rank == 5: best = 2")
    assert "PullError: --pull: `best` of rank 0 was never set" in result.traceback
    assert kernel.value("(best, other)") == ("old", 1)


def test_from_a_failed_run(kernel: Kernel) -> None:
    """Only what was set on all asked ranks, and then it says so."""
    kernel.run("seen = 'old'")
    # Rank 1 waits: if it failed first, rank 0 would be stopped, perhaps before it sets anything.
    result = kernel.run(
        "%%ddp -n 2 --pull seen\nimport time\nseen = 'new'\ntime.sleep(1000 * rank)\n1 / 0"
    )
    assert "ZeroDivisionError" in result.traceback
    assert "pulled, although the run did not succeed: seen" in result.text
    assert kernel.value("seen") == "new"
    result = kernel.run(
        "%%ddp -n 2 --capture none --pull seen@all\nif rank == 0: seen = 1\ndist.barrier()\n1 / 0"
    )
    assert "pulled" not in result.text
    assert kernel.value("seen") == "new"


def test_a_sharded_tensor_is_refused_with_what_to_write(kernel: Kernel) -> None:
    result = kernel.run(
        "%%ddp -n 2 --pull w,full\n"
        "from torch.distributed.device_mesh import init_device_mesh\n"
        "from torch.distributed.tensor import distribute_tensor, Shard\n"
        "w = distribute_tensor(torch.arange(4.), init_device_mesh('cpu', (2,)), [Shard(0)])\n"
        "full = w.full_tensor()"
    )
    assert "`w` of rank 0 cannot be pulled: it is a sharded tensor (DTensor)" in result.traceback
    assert "full_tensor()" in result.traceback
    assert kernel.value("full.tolist()") == [0, 1, 2, 3]


# --- the run --------------------------------------------------------------------------------------


def test_the_run(kernel: Kernel) -> None:
    """-o binds it, also where the cell failed."""
    kernel.run("%%ddp -n 2 -o run --pull x\nx = 3\nprint('hello from', rank)")
    assert kernel.value("(run.state.value, run.results, run.error)") == (
        "SUCCEEDED",
        {"x": 3},
        None,
    )
    assert kernel.value("[r.stdout for r in run.ranks]") == ["hello from 0\n", "hello from 1\n"]
    assert kernel.value("([r.exit for r in run.ranks], run.elapsed_s > 0)") == ([0, 0], True)
    text = kernel.run("print(repr(run))").text
    assert "SUCCEEDED" in text
    assert "results: x" in text
    kernel.run("%%ddp -n 2 -o run --no-raise-error\nimport sys\nif rank: sys.exit(3)\n")
    assert kernel.value("([r.exit for r in run.ranks][1], type(run.error).__name__)") == (
        3,
        "WorkerLostError",
    )


def test_what_stayed(kernel: Kernel) -> None:
    """The last line names values, not functions, and says how to get them."""
    kernel.run("import torch\nnet = torch.nn.Linear(1, 1)\nunused = 1")
    result = kernel.run(
        "%%ddp -n 2\nimport math\ndef f(): pass\nhistory, _private = [1, 2, 3], 2\nunused\n"
        "i, log = 5, open('log', 'w')\n"
        "with torch.no_grad(): net.weight += 1"
    )
    assert result.summary.endswith(
        "ok · stayed in the ranks: history, net (--pull NAME, or --session)"
    )
    assert kernel.run("%%ddp -n 2\nprint(1)").summary.endswith("ok")
    assert kernel.run("%%ddp -n 2 --pull x\nx = 1").summary.endswith("ok")


@pytest.mark.parametrize(
    ("raised", "caught"),
    [
        ("torch.cuda.OutOfMemoryError('no')", "torch.cuda.OutOfMemoryError"),
        ("KeyError('k')", "KeyError"),
        ("FileNotFoundError(2, 'no', 'f')", "OSError"),
        ("UnicodeDecodeError('utf-8', b'x', 0, 1, 'bad')", "UnicodeDecodeError"),
        ("Mine('m')", "Mine"),
        ("ExceptionGroup('g', [ValueError()])", "ddp_magic.WorkerError"),
    ],
)
def test_errors_are_of_the_ranks_own_class(raised: str, caught: str, kernel: Kernel) -> None:
    """`except` around a run finds what was raised in it, with our message and traceback."""
    if "Group" in raised and sys.version_info < (3, 11):
        pytest.skip("Python 3.11's")
    kernel.run("import torch, ddp_magic\nclass Mine(Exception): pass")
    result = kernel.run(
        f"try:\n    ddp_magic.run('raise {raised.replace(chr(39), chr(34))}', nproc_per_node=2)\n"
        f"except {caught} as e:\n    print('caught', e, isinstance(e, ddp_magic.WorkerError))"
    )
    assert "caught rank" in result.text, result.traceback
    assert result.text.strip().splitlines()[-1].endswith("True")


# --- from Python ----------------------------------------------------------------------------------


def test_launch(kernel: Kernel) -> None:
    """A function of the notebook's on every rank; results one a rank; in a loop."""
    kernel.run(
        "import ddp_magic, numpy as np\nscale = 2\n"
        "def program(x, data):\n    t = torch.ones(1) * rank\n    dist.all_reduce(t)\n"
        "    return x * scale + rank, data.sum(), t.item()\n"
    )
    result = kernel.run(
        "out = [ddp_magic.launch(program, i, np.ones(3), nproc_per_node=2).results "
        "for i in range(3)]"
    )
    assert result.status == "ok", result.traceback
    rows = kernel.value("[[tuple(map(float, v)) for v in row] for row in out]")
    assert rows == [[(2 * i, 3, 1), (2 * i + 1, 3, 1)] for i in range(3)]


def test_wrong_options_from_python(kernel: Kernel) -> None:
    """Each is one line that names it."""
    for call, words in (
        ("launch(print, pull='x')", "TypeError: launch has no option pull"),
        ("launch(5)", "TypeError: launch takes a function, not int"),
        ("run('x = 1', nproc_per_node=0)", "ValueError: nproc_per_node: invalid rank count 0"),
        ("run('x = 1', nproc_per_node=2, show=[2])", "ValueError: show: invalid rank 2"),
        ("launch(print, ranks=2)", "TypeError: unrecognized option ranks: did you mean"),
        ("run('x = = 1')", "SyntaxError: invalid syntax"),
        ("run('return 1')", "SyntaxError: 'return' outside function"),
        ("run('def f(:')", "SyntaxError: invalid syntax"),
        ("run(5)", "TypeError: run takes the text of a cell, not int"),
    ):
        result = kernel.run(f"import ddp_magic\nddp_magic.{call}")
        assert words in result.traceback
        assert not frames_of_ours(result.traceback)


def test_launch_fails_as_the_function_does(kernel: Kernel) -> None:
    """With the function's own lines, and nothing bound in the notebook."""
    kernel.run("import ddp_magic\ndef bad():\n    return {}['missing']")
    result = kernel.run("ddp_magic.launch(bad, nproc_per_node=2)")
    assert "----> 3     return {}['missing']" in result.traceback
    assert kernel.value("[n for n in globals() if n.startswith('_fun') or n == '_result']") == []
    result = kernel.run("r = ddp_magic.launch(bad, no_raise_error=True); print(r.state.value)")
    assert result.text.strip().endswith("FAILED")


def test_run(kernel: Kernel) -> None:
    """The text of a cell, with the notebook's names and IPython's syntax."""
    kernel.run("import ddp_magic\nbase = 5")
    kernel.run("r = ddp_magic.run('x = base + rank\\n!echo shell', nproc_per_node=2, pull='x@all')")
    assert kernel.value("(r.results, [k.stdout.strip() for k in r.ranks])") == (
        {"x": [5, 6]},
        ["shell", "shell"],
    )
    assert kernel.value("'x' in globals()") is False


def test_a_plain_script(tmp_path: Path) -> None:
    """No IPython: a script's own functions and data, and nothing left at its end."""
    script = tmp_path / "sweep.py"
    script.write_text(
        textwrap.dedent(
            """
            import ddp_magic

            factor = 10

            def program(x):
                import torch, torch.distributed as dist
                t = torch.ones(1) * x
                dist.all_reduce(t)
                print("in rank", t.item())
                return factor * t.item()

            for x in (1, 2):
                print(ddp_magic.launch(program, x, nproc_per_node=2).results)
            try:
                ddp_magic.launch(lambda: 1 / 0, nproc_per_node=2)
            except ZeroDivisionError as error:
                print("caught", error)
            """
        )
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=300, check=True
    )
    lines = done.stdout.splitlines()
    assert "[20.0, 20.0]" in lines
    assert "[40.0, 40.0]" in lines
    assert sum("in rank 2.0" in line for line in unfolded(done.stdout).splitlines()) == 2
    assert lines[-1].startswith("caught rank ")
    assert lines[-1].endswith("raised ZeroDivisionError at sweep.py, line 16: division by zero")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="an exception has no notes")
@pytest.mark.slow
def test_a_script_shows_who_waits_for_whom_with_its_own_lines(tmp_path: Path) -> None:
    """Python's own traceback ends with it; also in a module that the script imports."""
    (tmp_path / "parts.py").write_text("def add(x, dist):\n    dist.all_reduce(x)\n")
    script = tmp_path / "sweep.py"
    script.write_text(
        textwrap.dedent(
            """
            import time, torch, torch.distributed as dist
            import ddp_magic, parts

            def program():
                if dist.get_rank() == 1:
                    time.sleep(1000)
                parts.add(torch.ones(2), dist)

            if __name__ == "__main__":
                ddp_magic.launch(program, nproc_per_node=2, time_limit=6)
            """
        )
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=300, check=False
    )
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(
        r"rank 0 waits in all_reduce #1 \(sweep\.py, line 8, which calls parts\.py, line 2\) for "
        r"\d+ s; rank 1 has not joined: it is at sweep\.py, line 7, in time\.sleep",
        last,
    ), done


@pytest.mark.slow
def test_values_of_failed_runs_are_freed(kernel: Kernel) -> None:
    """What an error's traceback keeps alive holds no results: each run's are replaced."""
    mapped = "sum('memfd' in line for line in open('/proc/self/maps'))"
    kernel.run("import ddp_magic, gc")
    for _ in range(3):
        failed = kernel.run(
            "%%ddp -n 2 --pull z\nimport time\nz = torch.ones(10**6)\n"
            "if rank == 1: time.sleep(0.5); 1 / 0"
        )
        assert "pulled, although the run did not succeed: z" in failed.text
        caught = kernel.run(
            "ddp_magic.run('import time, torch\\nz = torch.ones(10**6)\\n"
            "if rank == 1: time.sleep(0.5); 1 / 0', nproc_per_node=2, pull='z')"
        )
        assert caught.status == "error"
    kernel.run("del z; gc.collect()")
    assert kernel.value(mapped) == 0
