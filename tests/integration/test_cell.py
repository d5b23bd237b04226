"""What a cell finds, and what of it runs as it would anywhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.integration.kernel import Kernel, plain


def test_names_device_and_process_group_are_ready(kernel: Kernel) -> None:
    """rank, local_rank, world_size, device and a working default group are there."""
    result = kernel.run(
        "%%ddp -n 2\n"
        "t = torch.ones(1, device=device) * (rank + 1)\n"
        "dist.all_reduce(t)\n"
        "print(rank, local_rank, world_size, device, t.item(), dist.get_backend(), __name__)"
    )
    assert sorted(result.lines) == [
        "[rank 0] 0 0 2 cpu 3.0 gloo __main__",
        "[rank 1] 1 1 2 cpu 3.0 gloo __main__",
    ], result
    assert result.status == "ok"
    assert result.summary.startswith("2 ranks · ")
    assert result.summary.endswith(" · ok")


def test_ipython_syntax(kernel: Kernel) -> None:
    """`!cmd`, magics, a last expression, `display` and top-level await work in a rank."""
    result = kernel.run(
        "%%ddp -n 1\n"
        "!echo from the shell && \\\n"
        "  echo joined\n"
        "%timeit -n1 -r1 pass\n"
        "files = !echo one two\n"
        "print(files[0])\n"
        "import asyncio\n"
        "await asyncio.sleep(0)\n"
        "display('shown')\n"
        "display({'text/html': '<b>bold</b>', 'text/plain': 'bold'}, raw=True)\n"
        "6 * 7"
    )
    assert result.status == "ok", result
    text = result.text
    for expected in ("[rank 0] from the shell", "[rank 0] joined", "one two", "'shown'", "42"):
        assert expected in text, text
    assert "loop" in text  # %timeit's own words
    assert result.displays[0]["data"]["text/html"].endswith("<b>bold</b>")
    assert ">[rank 0]<" in result.displays[0]["data"]["text/html"]
    assert result.displays[0]["metadata"]["ddp"] == {"rank": 0}


def test_a_semicolon_hides_the_last_value(kernel: Kernel) -> None:
    """As in any notebook cell."""
    assert kernel.run("%%ddp -n 1\n6 * 7;").text == ""


def test_argv_follows_two_dashes(kernel: Kernel) -> None:
    """`sys.argv` is the cell's file and what follows `--`; argparse works."""
    result = kernel.run(
        "%%ddp -n 1 --seed 3 -- --lr 0.1 'two words'\n"
        "import argparse, sys\n"
        "p = argparse.ArgumentParser(); p.add_argument('--lr', type=float); p.add_argument('x')\n"
        "print(p.parse_args(), sys.argv[0] == __file__)"
    )
    assert result.text == "[rank 0] Namespace(lr=0.1, x='two words') True\n", result


def test_a_variable_in_the_arguments_arrives_as_it_is(kernel: Kernel) -> None:
    """Spaces, quotes, backslashes and braces of its value are the cell's; locals count too."""
    kernel.run("cfg = '{\"a b\": \"C:\\\\\\\\x\"}'; text = 'two words'; N = 1")
    result = kernel.run("%%ddp -n $N -- {cfg} $text '$text' {{x}}\nimport sys; print(sys.argv[1:])")
    expected = [kernel.value("cfg"), "two words", "$text", "{x}"]
    assert result.text == f"[rank 0] {expected}\n", result
    kernel.run(
        "def call(n):\n    get_ipython().run_cell_magic('ddp', '-n {n}', 'print(world_size)')"
    )
    assert sorted(kernel.run("call(2)").lines) == ["[rank 0] 2", "[rank 1] 2"]


def test_source_has_the_notebooks_lines(kernel: Kernel) -> None:
    """`inspect.getsource` and line numbers agree with the notebook cell."""
    result = kernel.run(
        "\n\n%%ddp -n 1\n\n"
        "import inspect, sys\n"
        "def f():\n"
        "    return sys._getframe().f_lineno\n"
        "print(f(), repr(inspect.getsource(f)))"
    )
    assert result.text == ("[rank 0] 7 'def f():\\n    return sys._getframe().f_lineno\\n'\n"), (
        result
    )


def test_dataloader_workers(kernel: Kernel) -> None:
    """Multi-process DataLoaders work in every way of starting them; the cell does not run again."""
    result = kernel.run(
        "%%ddp -n 2\n"
        "SIZE = 8\n"
        "class Squares(Dataset):\n"
        "    def __len__(self): return SIZE\n"
        "    def __getitem__(self, i): return torch.tensor(i * i), os.getpid()\n"
        "print('once')\n"
        "for how in ('fork', 'spawn', 'forkserver'):\n"
        "    loader = DataLoader(Squares(), num_workers=1, multiprocessing_context=how)\n"
        "    rows = [(x.item(), pid.item()) for x, pid in loader]\n"
        "    print(how, [x for x, _ in rows], os.getpid() in {pid for _, pid in rows})"
    )
    assert result.status == "ok", result
    squares = [i * i for i in range(8)]
    for rank in (0, 1):
        own = [line for line in result.lines if line.startswith(f"[rank {rank}]")]
        # On a busy machine Python's tracker of semaphores may end before its news has arrived.
        own = [line for line in own if "resource_tracker" not in line]
        assert own == [
            f"[rank {rank}] once",
            f"[rank {rank}] fork {squares} False",
            f"[rank {rank}] spawn {squares} False",
            f"[rank {rank}] forkserver {squares} False",
        ], result


def test_a_forked_child_displays_as_text(kernel: Kernel) -> None:
    """A child of a rank has no connection of its own: its displays are text, and do no harm."""
    result = kernel.run(
        "%%ddp -n 1\n"
        "import multiprocessing\n"
        "from IPython.display import HTML\n"
        "p = multiprocessing.get_context('fork').Process(target=display, args=(HTML('x'),))\n"
        "p.start(); p.join(); print(p.exitcode)\n"
        "display(HTML('<b>y</b>'))"
    )
    assert "[rank 0] <IPython.core.display.HTML object>" in result.lines
    assert "[rank 0] 0" in result.lines
    (display,) = result.displays
    assert display["data"]["text/html"].endswith("<b>y</b>")


def test_prelude_costs_nothing_when_unused(new_kernel: Callable[..., Kernel]) -> None:
    """Where no cell has named anything of the SAM stack, nothing of it is imported."""
    result = new_kernel().run(
        "%%ddp -n 1\nimport sys\n"
        "print([m for m in ('transformers', 'monai', 'sklearn') if m in sys.modules])"
    )
    assert result.text == "[rank 0] []\n", result


def test_a_cells_own_names_win(kernel: Kernel) -> None:
    """A cell that defines `train` or `F` gets its own, not the prelude's."""
    result = kernel.run("%%ddp -n 1\ndef train(): return 'mine'\nF = 1\nprint(train(), F)")
    assert result.text == "[rank 0] mine 1\n", result


def test_seed(kernel: Kernel) -> None:
    """--seed makes all ranks draw alike and runs repeat; without it every rank draws its own."""
    draw = "import random\nprint(random.random(), np.random.rand(), torch.rand(1).item())"
    first, second = (kernel.run(f"%%ddp -n 2 --seed 7\n{draw}") for _ in range(2))
    values = {line.split("] ")[1] for line in first.lines + second.lines}
    assert len(values) == 1, values
    free = kernel.run(f"%%ddp -n 2\n{draw}")
    columns = zip(*(line.split("] ")[1].split() for line in free.lines), strict=True)
    assert all(len(set(column)) == 2 for column in columns), free


def test_show_chooses_whose_output_is_shown(kernel: Kernel) -> None:
    """Hidden ranks run all the same, and their text is in their logs."""
    result = kernel.run("%%ddp -n 3 --show 0,2\nprint('here', rank)")
    assert sorted(result.lines) == ["[rank 0] here 0", "[rank 2] here 2"]
    status = kernel.run("print(get_ipython().run_line_magic('ddp_status', ''))").text
    directory = status.partition("logs in ")[2].splitlines()[0]
    assert Path(directory, "rank1.log").read_text() == "here 1\n"


def test_the_notebook_is_left_as_it_was(kernel: Kernel) -> None:
    """No torch, no variable, no handler, no environment variable, no directory changes in it."""
    probe = (
        "import os, signal, sys\n"
        "state = (dict(os.environ), os.getcwd(), list(sys.path),\n"
        "         [signal.getsignal(s) for s in (2, 15, 1, 17, 10)], lr)"
    )
    kernel.run("lr = 0.1\nmodel = 'mine'\n" + probe + "\nbefore = state")
    names = kernel.value("sorted(n for n in globals() if not n.startswith('_'))")
    result = kernel.run("%%ddp -n 2\nlr = 5\nmodel = 1\nos.chdir('/')\nos.environ['X'] = '1'")
    assert result.status == "ok", result
    kernel.run(probe)
    assert kernel.value("state == before and model == 'mine'")
    assert kernel.value("'torch' in sys.modules") is False
    assert kernel.value("sorted(n for n in globals() if not n.startswith('_'))") == names


def test_a_cell_is_in_the_history_as_it_was_typed(kernel: Kernel) -> None:
    cell = "%%ddp -n 1\nx = !echo {1}"
    message = kernel.client.execute(cell, store_history=True)
    kernel.finish(message)
    assert kernel.value("get_ipython().history_manager.input_hist_raw[-2]") == cell


def test_status(kernel: Kernel) -> None:
    """%ddp_status lists runs, newest first, with ranks, pids and states, as HTML and text."""
    kernel.run("%%ddp -n 1\nprint('pid=%d' % os.getpid())")
    failed = kernel.run(
        "%%ddp -n 2\nimport os\nif rank: os._exit(3)\nimport time; time.sleep(1000)"
    )
    assert failed.status == "error"
    kind, content = kernel.run("%ddp_status").outputs[-1]
    assert kind == "execute_result"
    text, markup = content["data"]["text/plain"], content["data"]["text/html"]
    assert text.index("FAILED") < text.index(" · 1 rank · ") < text.index(" · ok · ")
    assert "exited with code 3" in text
    assert "<table>" in markup
    assert "FAILED" in markup
    wrong = kernel.run("%ddp_status nothing")
    assert wrong.error["ename"] == "UsageError"


def test_no_raise_error_shows_but_does_not_raise(kernel: Kernel) -> None:
    """The failure is told; the cell succeeds."""
    result = kernel.run("%%ddp -n 2 --no-raise-error\n1 / rank")
    assert result.status == "ok"
    assert "ZeroDivisionError" in plain(result.text)


def test_the_line_takes_the_notebooks_variables(kernel: Kernel) -> None:
    """`{n}` and `$n` expand in the line, and not in the cell."""
    kernel.run("n = 3")
    result = kernel.run("%%ddp -n {n - 1} -- $n\nimport sys\nprint('{n}', '$n', sys.argv[1:])")
    assert sorted(result.lines) == [f"[rank {r}] {{n}} $n ['3']" for r in (0, 1)], result


def test_capture_and_time(kernel: Kernel) -> None:
    """%%capture and %%time above %%ddp work, with true line numbers below them."""
    kernel.run("%%capture out\n%%ddp -n 1\nprint('caught')")
    assert "caught" in kernel.value("out.stdout")
    timed = kernel.run("%%time\n%%ddp -n 1\nx = 1\nraise ValueError('line 4')")
    assert ", line 4" in timed.traceback or "line 4" in plain(timed.text)
