"""Bad input: one clear line, nothing started."""

from __future__ import annotations

import pytest

from tests.integration.kernel import Kernel, plain

RUNS = "len(list(get_ipython().magics_manager.registry['DDPMagics'].controller.runs))"


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("%%ddp -n 0\n1", "%%ddp -n: invalid rank count '0': use 1, 2, ..., gpu, cpu or auto"),
        ("%%ddp -n {N}\n1", "%%ddp: cannot expand {N}: NameError: name 'N' is not defined"),
        ("%%ddp -n {1/0}\n1", "%%ddp: cannot expand {1/0}: ZeroDivisionError: division by zero"),
        (
            "%%ddp --nprocs 2\n1",
            "%%ddp: unrecognized option --nprocs: did you mean --nproc-per-node?",
        ),
        ("%%ddp -s 'open\n1", "%%ddp: missing closing quote in: -s 'open"),
        ("%%ddp -n 2 --show 5\n1", "%%ddp --show: invalid rank 5: this run has ranks 0 to 1"),
        ("%%ddp -n 2\n  \n", "%%ddp: the cell is empty: write the program below this line"),
        ("%ddp -n 2", "%ddp runs a cell: write %%ddp, in the first line of the cell"),
    ],
)
def test_wrong_lines(kernel: Kernel, cell: str, message: str) -> None:
    """A UsageError of one line; no run is made."""
    runs = kernel.value(RUNS)
    result = kernel.run(cell)
    assert result.error["ename"] == "UsageError"
    assert result.text.startswith(f"UsageError: {message}"), result
    assert len(result.lines) == 1
    assert kernel.value(RUNS) == runs


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


def test_a_notebook_with_its_own_in(kernel: Kernel) -> None:
    """`In, Out = 3, 5` are numbers of a user's, and a cell runs all the same."""
    assert kernel.run("history = In; In = 3").status == "ok"
    result = kernel.run("%%ddp -n 1\nprint(rank)")
    kernel.run("In = history")
    assert result.status == "ok", result.traceback
