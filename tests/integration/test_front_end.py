"""What Jupyter asks of the magics beside running a cell: completion and help."""

from __future__ import annotations

import pytest

from tests.integration.kernel import Kernel, wait_gone
from tests.limits import HANG_S


def _complete(kernel: Kernel, code: str, cursor: int | None = None) -> tuple[str, list[str]]:
    """Return the text that TAB replaces, and by what."""
    cursor = len(code) if cursor is None else cursor
    reply = kernel.client.complete(code, cursor, reply=True, timeout=HANG_S)["content"]
    return code[reply["cursor_start"] : reply["cursor_end"]], reply["matches"]


def test_completion(kernel: Kernel) -> None:
    """Options and values, and nothing else, in the line of the magic; as ever below it."""
    kernel.run("images = 1")
    kernel.run("%%ddp -n 1 -s lab\nx = 1")
    assert _complete(kernel, "%%ddp --se") == ("--se", ["--session", "--seed"])
    assert _complete(kernel, "%%ddp -n g\nprint(1)", 10) == ("g", ["gpu"])
    assert _complete(kernel, "%%ddp -s ") == ("", ["lab"])
    assert _complete(kernel, "%%ddp --capture none,im") == ("im", ["images"])
    assert _complete(kernel, "%%ddp --pull loss@a") == ("a", ["all"])
    for line in ("%%ddp --seed ", "%%ddp --timeout ", "%%ddp -o "):
        assert _complete(kernel, line) == ("", [""]), "IPython's own names are no values"
    assert _complete(kernel, "%%ddp --seed i") == ("i", ["i"])
    assert _complete(kernel, "%ddp_stop l") == ("l", ["lab"])
    assert len(_complete(kernel, "%ddp_status 1")[1]) == 1
    assert "images" in _complete(kernel, "%%ddp -n 2\nprint(im")[1]
    kernel.run("%ddp_stop --all")


@pytest.mark.parametrize(
    "cell", ["%%ddp", "%%ddp\n", "%%ddp --help", "%%ddp -h\n1", "%ddp", "%ddp --help"]
)
def test_help(kernel: Kernel, cell: str) -> None:
    """With and without a body, which IPython demands of a cell magic."""
    result = kernel.run(cell)
    assert result.status == "ok", result
    assert "-n, --nproc-per-node N" in result.text
    assert "%%ddp -n 2\n  print(rank" in result.text


def test_help_of_line_magics(kernel: Kernel) -> None:
    assert "Usage: %ddp_status" in kernel.run("%ddp_status --help").text
    assert "--all" in kernel.run("%ddp_stop -h").text


@pytest.mark.parametrize("cell", ["%%ddp?", "%ddp?"])
def test_question_mark(kernel: Kernel, cell: str) -> None:
    """The pager shows the same help."""
    reply = kernel.client.execute(cell, reply=True, timeout=HANG_S)["content"]
    assert "-n, --nproc-per-node N" in reply["payload"][0]["data"]["text/plain"]


def test_an_empty_cell(kernel: Kernel) -> None:
    """Options without a program are an error."""
    result = kernel.run("%%ddp -n 2")
    assert result.lines == [
        "UsageError: %%ddp: the cell is empty: write the program below this line "
        "(%%ddp --help lists the options)"
    ]


def test_unload_removes_all_of_it(kernel: Kernel) -> None:
    """The forkserver too. Reloading neither loses nor doubles it."""
    assert kernel.run("%reload_ext ddp_magic").status == "ok"
    assert _complete(kernel, "%%ddp --se") == ("--se", ["--session", "--seed"])
    assert kernel.run("%%ddp -n 1\nprint('on')").text == "[rank 0] on\n"
    assert kernel.run("%%ddp -n 1 -s kept\nx = 1").status == "ok"
    assert kernel.processes() != []
    forkserver = kernel.forkserver()
    assert forkserver is not None
    assert kernel.run("%unload_ext ddp_magic").text == "session kept (1 rank) ended\n"
    assert wait_gone([forkserver.pid, *(p.pid for p in kernel.processes())], 3.0) == []
    assert "--session" not in _complete(kernel, "%%ddp --se")[1]
    gone = kernel.run("%%ddp --help")
    assert "Cell magic `%%ddp` not found" in gone.text + str(gone.error)
    assert kernel.run("%load_ext ddp_magic").status == "ok"
    assert kernel.run("%%ddp -n 1\nprint('again')").text == "[rank 0] again\n"
