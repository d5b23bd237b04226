"""What ranks ask: `input()`, debuggers, `--debug`, with a front end that answers."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.integration.kernel import Kernel, frames_of_ours, plain
from tests.limits import HANG_S, within


def _cell(text: str, options: str = "-n 2") -> str:
    return f"%%ddp {options}\n{textwrap.dedent(text).strip()}"


def _asked(kernel: Kernel, cell: str) -> str:
    """Start a cell; return its id once it asks."""
    message_id = kernel.start(cell, can_ask=True)
    kernel.question(message_id)
    return message_id


def test_ranks_are_asked_one_after_the_other(kernel: Kernel) -> None:
    prompts, result = kernel.talk(_cell("print(input('name? '))"), "Ann", "Bob")
    assert sorted(prompts) == ["[rank 0] name? ", "[rank 1] name? "]
    first = prompts[0].partition("]")[0]
    assert f"{first}] Ann" in result.lines
    assert len(result.lines) == 2


def test_all_that_reads_asks(kernel: Kernel) -> None:
    """`input`, `getpass` and `sys.stdin`; answers of any text, and none."""
    cell = """
        import sys
        from getpass import getpass
        print([getpass(), input("a\\nb? "), input(), sys.stdin.readline()])
        try:
            input("more? ")
        except EOFError:
            print("ended")
    """
    prompts, result = kernel.talk(_cell(cell, "-n 1"), "s3cret", "ünï ✓", "", "line", "\x04")
    assert prompts == [
        "*[rank 0] Password: ",
        *[f"[rank 0] {p}" for p in ("b? ", "", "", "more? ")],
    ]
    assert result.lines == [
        "[rank 0] a",
        "[rank 0] ['s3cret', 'ünï ✓', '', 'line\\n']",
        "[rank 0] ended",
    ]


def test_the_text_of_all_ranks_is_shown_while_one_asks(kernel: Kernel) -> None:
    """A flood, too; and what the rank itself had written."""
    cell = """
        if rank == 1:
            print("before")
            print(input("? "))
        else:
            for i in range(100_000):
                print(i)
            print("flood over")
    """
    message_id = _asked(kernel, _cell(cell))
    seen = kernel.finish(message_id, until="flood over")
    assert "[rank 1] before" in seen.lines
    kernel.answer("after")
    result = kernel.finish(message_id)
    assert (result.status, result.lines[-1]) == ("ok", "[rank 1] after")


def test_the_debugger_shows_the_notebooks_own_lines(kernel: Kernel) -> None:
    cell = """
        def f(a):
            if rank == 1:
                breakpoint()
            return a + 1
        x = f(1)
        y = x
    """
    prompts, result = kernel.talk(_cell(cell), "p a", "w", "n", "n", "l", "c")
    assert set(prompts) == {"[rank 1] (Pdb) "}
    assert result.status == "ok", result.traceback
    assert "[rank 1] 1" in result.lines
    places = [line.split()[-1] for line in result.lines if "Cell In[" in line]
    number = places[0].partition("(")[0]
    assert places == [f"{number}({end}" for end in PLACES]
    assert "[rank 1]   7  ->\ty = x" in result.lines
    assert not frames_of_ours(result.text)


# Stopped, twice by `w`, at the return, and in the next statement.
PLACES = ["5)f()", "6)<module>()", "5)f()", "5)f()->2", "7)<module>()"]


def test_quitting_the_debugger_ends_all_ranks(kernel: Kernel) -> None:
    """The others wait in a collective."""
    cell = """
        if rank == 1:
            breakpoint()
        dist.barrier()
    """
    prompts, result = kernel.talk(_cell(cell), "q")
    assert len(prompts) == 1
    assert result.error["ename"] == "RunInterrupted"
    # gloo lets rank 0 go when its peer has ended; on a slow machine it is killed before that.
    assert result.traceback.startswith("KeyboardInterrupt: rank 0 ")
    assert result.traceback.endswith("; rank 1 quit the debugger at line 4")
    assert " · stopped" in result.summary


def test_stop_while_a_rank_asks(kernel: Kernel) -> None:
    """The cell ends as always, and the next one is asked anew."""
    for ask in ("input('? ')", "breakpoint(); x = 1"):
        cell = f"import time\nif rank == 1:\n    {ask}\nelse:\n    time.sleep(100)"
        message_id = _asked(kernel, _cell(cell))
        began = time.monotonic()
        kernel.interrupt()
        result = kernel.finish(message_id)
        assert within(time.monotonic() - began, 3)
        assert result.traceback.startswith("KeyboardInterrupt: rank 0 stopped at line 6"), result
    prompts, result = kernel.talk(_cell("print(input('again? '))", "-n 1"), "yes")
    assert (prompts, result.lines) == (["[rank 0] again? "], ["[rank 0] yes"])


def test_timeouts_stand_still_while_a_person_thinks(kernel: Kernel) -> None:
    """Those of collectives; the table says who is waited for."""
    cell = """
        if rank == 1:
            input("? ")
        dist.barrier()
        print("joined")
    """
    kernel.run("%config DDPMagics.hang_s = 1.0")
    message_id = _asked(kernel, _cell(cell, "-n 2 --timeout 5"))
    time.sleep(8)
    kernel.answer("")
    result = kernel.finish(message_id)
    kernel.run("%config DDPMagics.hang_s = 5.0")
    assert result.status == "ok", result.traceback
    tables = [
        c["data"]["text/plain"] for kind, c in result.outputs if kind == "update_display_data"
    ]
    words = "rank 1 has not joined: it waits for an answer in the cell at line 3"
    assert any(words in table for table in tables), tables
    assert any(" asks " in line for table in tables for line in table.splitlines())


def test_a_session_goes_on_after_a_question(kernel: Kernel) -> None:
    """Answered, or quit in the debugger; with its timeouts as before."""
    kernel.talk(_cell("name = input('name? ')", "-n 2 -s lab"), "Ann", "Bob")
    _, result = kernel.talk(_cell("breakpoint()\nx = 1\ny = 2", "-s lab"), "q")
    assert "quit the debugger" in result.traceback
    result = kernel.run(_cell("dist.barrier(); print(name)", "-s lab"))
    assert sorted(line.split()[-1] for line in result.lines) == ["Ann", "Bob"]
    kernel.run("%ddp_stop --all")


def test_a_rank_that_raises_is_held_in_the_debugger(kernel: Kernel) -> None:
    """At the notebook's line; then the run fails with its error."""
    cell = """
        import json
        def load(text):
            return json.loads(text)
        if rank == 1:
            load("{")
        dist.barrier()
    """
    prompts, result = kernel.talk(_cell(cell, "-n 2 --debug"), "p text", "q")
    assert prompts == 2 * ["[rank 1] (Pdb) "]
    assert any(line.endswith("(4)load()") and "> Cell In[" in line for line in result.lines)
    assert "[rank 1] '{'" in result.lines
    assert result.error["ename"] == "WorkerError"
    assert "rank 1 raised JSONDecodeError at line 4: Expecting property name" in result.traceback


def test_pdb_on_is_the_debugger_of_the_rank(kernel: Kernel) -> None:
    """`%pdb on` opens IPython's debugger where a cell fails: in the rank, not in the notebook."""
    kernel.run("%pdb on")
    try:
        prompts, result = kernel.talk(_cell("x = 5\nraise ValueError(rank)"), "p x", "q")
        assert len(set(prompts)) == 1
        assert prompts[0] in ("[rank 0] (Pdb) ", "[rank 1] (Pdb) ")
        assert any(line.endswith("] 5") for line in result.lines)
        assert result.error["ename"] == "WorkerError"
        assert not frames_of_ours(result.text)
        # A refusal, and a background run's error, have no place in a rank.
        for text in (_cell("x ="), _cell("1 / 0", "-n 1 --bg")):
            message_id = kernel.start(text, can_ask=True)
            assert "ipdb" not in kernel.finish(message_id).text
        result = kernel.finish(kernel.start("%ddp_wait", can_ask=True))
        assert "ZeroDivisionError" in result.traceback
        # Nor do those that Python code has asked for.
        launch = "import ddp_magic\ndef fail(): raise KeyError\n"
        prompts, result = kernel.talk(launch + "ddp_magic.launch(fail, nproc_per_node=1)", "q")
        assert prompts == ["[rank 0] (Pdb) "]
        assert "raised KeyError at Cell In[" in result.traceback
        # Twice in a cell; then an error of the notebook's own is debugged as before.
        twice = (
            "for _ in range(2):\n"
            "    try: get_ipython().run_cell_magic('ddp', '-n 1', 'raise OSError')\n"
            "    except OSError: pass\n"
            "1 / 0"
        )
        prompts, result = kernel.talk(twice, "q", "q", "q")
        assert prompts == ["[rank 0] (Pdb) ", "[rank 0] (Pdb) ", "ipdb> "]
    finally:
        kernel.run("%pdb off")
    assert "ipdb" not in kernel.run("1 / 0").text


def test_the_first_of_many_that_raise_is_held(kernel: Kernel) -> None:
    prompts, result = kernel.talk(_cell("raise ValueError(1)", "-n 3 --debug"), "c")
    assert len(prompts) == 1
    assert "ValueError: 1" in result.traceback
    assert "raised the same at line 2" in result.traceback
    assert result.text.count("is held in the debugger") == 1


@pytest.mark.parametrize("code", ["sys.exit(3)", "raise KeyboardInterrupt", "os._exit(3)"])
def test_an_end_that_is_no_error_is_not_debugged(kernel: Kernel, code: str) -> None:
    message_id = kernel.start(_cell(f"import os, sys\n{code}", "-n 1 --debug"), can_ask=True)
    result = kernel.finish(message_id)
    assert result.status == "error"
    assert "debugger" not in result.text


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("input('? ')", "input('? ') needs an answer, but nothing here can answer"),
        ("breakpoint()", "breakpoint() needs an answer, but nothing here can answer"),
    ],
)
def test_where_nobody_can_answer(kernel: Kernel, code: str, words: str) -> None:
    """`allow_stdin=False`, as nbclient has it: one clear error, at the cell's line."""
    result = kernel.run(_cell(f"{code}\nprint('went on')", "-n 1"))
    assert words in result.traceback
    assert "StdinNotImplementedError" in result.traceback
    assert "pdb.py" not in result.traceback
    assert result.text == ""


def test_debug_where_nobody_can_answer(kernel: Kernel) -> None:
    """The run fails as without it, and a line says that there was no debugger."""
    result = kernel.run(_cell("1 / 0", "-n 1 --debug"))
    assert "ZeroDivisionError" in result.traceback
    assert result.lines == [
        "--debug: no debugger: this front end cannot ask (nbclient, papermill, a script without a "
        "terminal)"
    ]


def test_a_question_is_shown_again_with_its_answer(kernel: Kernel) -> None:
    kernel.talk(_cell("print(input('name? '))", "-n 1"), "Bob")
    assert kernel.run("%ddp_show").lines[1:3] == ["[rank 0] name? Bob", "[rank 0] Bob"]


# --- a script in a terminal ---------------------------------------------------------------------

SCRIPT = """
import ddp_magic

def ask():
    name = input("name? ")
    breakpoint()
    return name

if __name__ == "__main__":
    print("results", ddp_magic.launch(ask, nproc_per_node=1).results)
    print("own", input("own? "))
"""


class Terminal:
    """A process in a terminal, and what it has written."""

    def __init__(self, argv: list[str], cwd: Path) -> None:
        self._fd, theirs = pty.openpty()
        self.process = subprocess.Popen(
            argv, stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, start_new_session=True
        )
        os.close(theirs)
        self.text = ""

    def wait(self, words: str) -> None:
        """Read until there is this at the end of what has not been waited for.

        Raises:
            TimeoutError: It does not come.
        """
        deadline = time.monotonic() + HANG_S
        while words not in self.text:
            if not select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"no {words!r} in {self.text!r}")
            self.text = plain(self.text + os.read(self._fd, 4096).decode(errors="replace"))
        self.text = self.text.partition(words)[2]

    def type(self, line: str) -> None:
        os.write(self._fd, f"{line}\n".encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait(HANG_S)
        os.close(self._fd)


def test_a_script_in_a_terminal(tmp_path: Path) -> None:
    """Questions are asked there, and the script's own afterwards."""
    (tmp_path / "ask.py").write_text(SCRIPT)
    terminal = Terminal([sys.executable, "ask.py"], tmp_path)
    try:
        terminal.wait("[rank 0] name? ")
        terminal.type("Bob")
        terminal.wait("-> return name")
        terminal.wait("(Pdb) ")
        terminal.type("p name * 2")
        terminal.wait("'BobBob'")
        terminal.wait("(Pdb) ")
        terminal.type("c")
        terminal.wait("results ['Bob']")
        terminal.wait("own? ")
        terminal.type("me")
        terminal.wait("own me")
        assert terminal.process.wait(HANG_S) == 0
    finally:
        terminal.close()
