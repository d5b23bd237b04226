"""Bad input: one clear line, nothing started."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.kernel import Kernel, plain

RUNS = "len(list(get_ipython().magics_manager.registry['DDPMagics'].controller.runs))"


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("%%ddp -n 0\n1", "'0' is no number of ranks"),
        ("%%ddp -n two\n1", "'two' is no number of ranks"),
        ("%%ddp -n -3\n1", "-n"),
        ("%%ddp --frobnicate\n1", "unrecognized arguments: --frobnicate"),
        ("%%ddp --bg\n1", "unrecognized arguments: --bg"),
        ("%%ddp -n 2\n  \n", "the cell is empty"),
        ("%%ddp -n gpu\n1", "there is no GPU"),
        ("%%ddp -g 3\n1", "GPU 3 not found"),
        ("%%ddp -g x\n1", "invalid GPU 'x'"),
        ("%%ddp -n 2 --backend nccl\n1", "2 ranks and 0 GPUs: nccl needs a GPU for each rank"),
        ("%%ddp -n 2 --show 5\n1", "--show names rank 5"),
        ("%%ddp -n 2 --show a\n1", "'a' is no list of ranks"),
        ("%%ddp --timeout -1\n1", "timeout"),
        ("%%ddp -n 1 -- 'open\n1", "No closing quotation"),
        ("%%ddp -o 2x\n1", "'2x' is no name"),
        ("%%ddp --capture a,2\n1", "'2' is no name"),
        ("%%ddp --session 'a b'\n1", "is no name"),
        ("%%ddp -n gpu=2\n1", "'gpu=2' is no number of ranks"),
    ],
)
def test_wrong_options(kernel: Kernel, cell: str, words: str) -> None:
    """A UsageError of one line; no run is made."""
    runs = kernel.value(RUNS)
    result = kernel.run(cell)
    assert result.error["ename"] == "UsageError"
    assert words in result.error["evalue"]
    assert "\n" not in result.error["evalue"].strip()
    assert kernel.value(RUNS) == runs


def test_an_empty_cell(kernel: Kernel) -> None:
    """No body at all: IPython's own way, or the help."""
    result = kernel.run("%%ddp -n 2")
    assert "empty" in (result.text + str(result.error)) or "--nproc-per-node" in result.text


def test_more_ranks_than_gpus(new_kernel: Callable[..., Kernel], tmp_path: Path) -> None:
    """With GPUs, by what nvidia-smi shows, nccl needs one for each rank."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, GPU-aa, Tiny, 10, 1000'\n")
    program.chmod(0o755)
    kernel = new_kernel({"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    result = kernel.run("%%ddp -n 4\n1")
    assert "4 ranks and 1 GPU: nccl needs a GPU for each rank" in result.error["evalue"]
    assert kernel.processes() == []


@pytest.mark.parametrize(
    ("cell", "line"),
    [
        ("%%ddp -n 2\nx = 1\nif x:\nprint(x)", 4),
        ("\n%%ddp -n 2\n\nx = = 1", 4),
        ("%%ddp -n 2\n!ls \\\n  -l\nx = = 1", 4),
        ("%%ddp -n 2\nx = 1\nreturn 5", 3),
    ],
)
def test_syntax_errors_are_found_in_the_kernel(kernel: Kernel, cell: str, line: int) -> None:
    """At the notebook's own line, as IPython shows it, before any process starts."""
    runs = kernel.value(RUNS)
    number = kernel.value("len(In)")
    result = kernel.run(cell)
    shown = result.traceback + plain(result.text)
    assert result.status == "error"
    assert result.error["ename"] in ("SyntaxError", "IndentationError")
    assert f"Cell In[{number}], line {line}" in shown, shown
    assert kernel.value(RUNS) == runs


def test_help(kernel: Kernel) -> None:
    """--help, and %ddp as a line, list the options; nothing is run."""
    for cell in ("%%ddp --help\n1", "%ddp", "%ddp --help"):
        result = kernel.run(cell)
        assert result.status == "ok"
        assert "--nproc-per-node" in result.text
        assert "--no-raise-error" in result.text
