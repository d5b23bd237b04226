"""Python's debugger in a rank: where it stops, what it shows, and how it ends."""

from __future__ import annotations

import builtins
import linecache
import pdb
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from _pytest.debugging import pytestPDB
from IPython.core import debugger as ipython_debugger
from IPython.core.error import StdinNotImplementedError
from torch import distributed

from ddp_magic.worker.console import debugger, keyboard
from tests.unit.worker.fakes import FakeChannel

CELL = "/tmp/ipykernel_1/cell.py"


class Quit(BaseException):
    """The debugger was quit, in place of the kernel's interrupt."""


class Typist(keyboard.Keyboard):
    """Types commands, and remembers the prompts."""

    def __init__(self, *commands: str) -> None:
        super().__init__(1, cast("Any", FakeChannel()), lambda _event: True)
        self.commands = list(commands)
        self.prompts: list[str] = []

    def ask(self, prompt: str = "", *, password: bool = False, call: str = "") -> str:
        del password, call
        self.prompts.append(prompt)
        return self.commands.pop(0)

    def quit_run(self) -> Any:
        raise Quit


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # no .pdbrc
    monkeypatch.delenv("PYTHONBREAKPOINT", raising=False)
    for module, name in [(builtins, "input"), (pdb, "Pdb"), (ipython_debugger, "Pdb")]:
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(sys, "breakpointhook", sys.breakpointhook)
    monkeypatch.setattr(pdb, "set_trace", pytestPDB._saved[0][0])  # pytest replaces it
    trace = sys.gettrace()
    debugger.install()
    yield
    debugger.end_cell()
    debugger.begin_cell("", dict, is_call=False)
    keyboard._keyboard = None
    sys.settrace(trace)


@pytest.fixture
def play(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Run a cell as IPython does, statement by statement; what was printed, line by line."""

    def run(
        cell: str,
        *commands: str,
        can_ask: bool = True,
        is_call: bool = False,
        prompts: str = "(Pdb) ",
    ) -> list[str]:
        typist = Typist(*commands)
        typist.can_ask = can_ask
        keyboard.connect(typist)
        labels: Mapping[str, str] = {CELL: "Cell In[3]"}
        debugger.begin_cell(CELL, lambda: labels, is_call=is_call)
        try:
            _run_statements(textwrap.dedent(cell))
        finally:
            debugger.end_cell()
        assert not typist.commands, "commands were left"
        assert set(typist.prompts) <= {"(Pdb) ", prompts}
        return capsys.readouterr().out.splitlines()

    return run


def _run_statements(source: str) -> None:
    import ast

    linecache.cache[CELL] = (len(source), None, source.splitlines(keepends=True), CELL)
    names: dict[str, Any] = {"__name__": "__main__"}
    for statement in ast.parse(source).body:
        exec(compile(ast.Module([statement], []), CELL, "exec"), names)
    _after()


def _after() -> None:
    """What runs after the cell, in which the debugger must not stop."""
    str(Path.cwd())


def places(lines: list[str]) -> list[str]:
    return [line[2:] for line in lines if line.startswith("> ")]


BOTH = """\
breakpoint()
x = 1
y = 2
"""


def test_it_goes_from_statement_to_statement_and_ends_with_the_cell(play: Any) -> None:
    lines = play(BOTH, "n", "n")
    assert places(lines) == ["Cell In[3](2)<module>()", "Cell In[3](3)<module>()"]
    assert lines[1] == "-> x = 1"


@pytest.mark.parametrize(
    "cell",
    ["x = 1\nbreakpoint()\n", "x = 1\nif x:\n    breakpoint(); y = 2\nelse:\n    y = 3\n"],
)
def test_it_stops_at_the_end_of_a_cell_that_ends_with_it(play: Any, cell: str) -> None:
    """There is no other statement to stop at."""
    lines = play(cell, "p x", "n")
    assert "1" in lines
    assert [place.partition("(")[0] for place in places(lines)] == ["Cell In[3]"]


@pytest.mark.parametrize("command", ["c", "continue"])
def test_it_lets_the_cell_go_on(play: Any, command: str) -> None:
    assert places(play(BOTH, command)) == ["Cell In[3](2)<module>()"]
    assert sys.gettrace() is None


@pytest.mark.parametrize(
    "call",
    [
        "breakpoint()",
        "import pdb; pdb.set_trace()",
        "from pdb import set_trace; set_trace()",
        "import pdb; pdb.Pdb().set_trace()",
        "from IPython.core.debugger import set_trace; set_trace()",
        "from IPython.core.debugger import Pdb; Pdb().set_trace()",
    ],
)
def test_every_way_to_start_it_starts_this_one(play: Any, call: str) -> None:
    lines = play(f"if True:\n    {call}\n    x = 1\n", "w", "c")
    assert [line.lstrip("> ") for line in lines if "(3)" in line] == 2 * ["Cell In[3](3)<module>()"]
    assert not [line for line in lines if "test_debugger" in line]


def test_a_set_trace_that_was_imported_before(play: Any) -> None:
    """A library may keep `pdb.set_trace` under a name of its own: it looks up the class."""
    kept = pdb.set_trace
    builtins.kept_set_trace = kept  # type: ignore[attr-defined]
    try:
        assert places(play("if True:\n    kept_set_trace()\n    x = 1\n", "c"))
    finally:
        del builtins.kept_set_trace  # type: ignore[attr-defined]


def test_torchs_own_breakpoint_makes_this_one() -> None:
    """`dist.breakpoint(rank=1)`."""
    made = (
        distributed._make_distributed_pdb()
        if hasattr(distributed, "_make_distributed_pdb")
        else distributed._DistributedPdb()
    )
    assert isinstance(made, debugger.Debugger)


def test_the_cells_lines_and_values(play: Any) -> None:
    lines = play("if True:\n    x = [1]\n    breakpoint()\n    y = 2\n", "p x", "l", "u", "c")
    assert "[1]" in lines
    assert "  4  ->\t    y = 2" in lines
    assert lines[-1] == "*** Oldest frame"


def test_functions_have_their_calls_and_returns(play: Any) -> None:
    cell = """
        def f(a):
            breakpoint()
            return a + 1
        x = f(1)
        y = 2
    """
    lines = play(cell, "a", "n", "u", "d", "n", "c")
    assert places(lines) == [
        "Cell In[3](4)f()",
        "Cell In[3](4)f()->2",
        "Cell In[3](5)<module>()",
        "Cell In[3](4)f()->2",
        "Cell In[3](6)<module>()",
    ]
    assert "--Return--" in lines


def test_it_does_not_stop_in_what_prints_for_the_cell(play: Any) -> None:
    """IPython replaces `sys.stdout.write`, and Python code of ours is below it, or a library's."""
    name = "/site-packages/IPython/core/interactiveshell.py"
    names: dict[str, Any] = {"sleep": lambda: None}
    exec(compile("def write():\n    sleep()\n", name, "exec"), names)
    builtins.write_of_test = names["write"]  # type: ignore[attr-defined]
    try:
        lines = play("if True:\n    breakpoint(); write_of_test()\n    x = 1\n", "c")
    finally:
        del builtins.write_of_test  # type: ignore[attr-defined]
    assert places(lines) == ["Cell In[3](3)<module>()"]


def test_an_interpreter_on_the_names_of_a_frame(play: Any) -> None:
    lines = play(BOTH, "interact", "print(6 * 7)", "raise SystemExit", "c", prompts=">>> ")
    assert "42" in lines


def test_a_breakpoint_by_its_line(play: Any) -> None:
    cell = "breakpoint()\nx = 1\nfor i in range(3):\n    x += i\n"
    lines = play(cell, "b 4", "c", "p i", "cl 1", "c")
    assert places(lines)[-1] == "Cell In[3](4)<module>()"
    assert "Breakpoint 1 at Cell In[3]:4" in lines


def test_breakpoints_do_not_outlive_the_cell(play: Any) -> None:
    play("breakpoint()\nx = 1\ny = 2\n", "b 3", "c", "c")
    assert play("x = 1\ny = 2\nz = 3\n") == []


def test_q_ends_the_run(play: Any) -> None:
    for command in ("q", "quit", "exit", "EOF"):
        with pytest.raises(Quit):
            play(BOTH, command)


def test_stop_ends_it() -> None:
    """Python's own takes KeyboardInterrupt for the end of a command, and asks again."""

    class Stopped(Typist):
        def ask(self, *_args: object, **_kwargs: object) -> str:
            raise KeyboardInterrupt

    keyboard.connect(Stopped())
    debugger.begin_cell(CELL, lambda: {CELL: "Cell In[3]"}, is_call=False)
    keyboard.current().can_ask = True  # type: ignore[union-attr]
    with pytest.raises(KeyboardInterrupt):
        _run_statements(BOTH)


def test_it_leaves_sigint_alone(play: Any) -> None:
    """After `c`, Stop would start the debugger instead of ending the cell."""
    import signal

    before = signal.getsignal(signal.SIGINT)
    play(BOTH, "c")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_rank_cannot_be_restarted(play: Any) -> None:
    assert "*** a rank cannot be restarted: q ends the run" in play(BOTH, "run", "restart", "c")


def test_an_exception_on_the_way_is_shown(play: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        play("breakpoint()\n1 / 0\n", "n", "n")


def test_pythonbreakpoint_0_skips_it(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONBREAKPOINT", "0")
    assert play(BOTH) == []
    assert play(BOTH, can_ask=False) == []


@pytest.mark.parametrize("call", ["breakpoint()", "import pdb; pdb.set_trace()"])
def test_nobody_can_answer(play: Any, call: str) -> None:
    words = r"^breakpoint\(\) needs an answer, but nothing here can answer .*PYTHONBREAKPOINT=0"
    with pytest.raises(StdinNotImplementedError, match=words):
        play(call + "\nx = 1", can_ask=False)
    assert sys.gettrace() is None


def test_a_debugger_with_streams_of_its_own_needs_nobody(play: Any) -> None:
    """Such as one that listens on a socket."""
    cell = """
        import io, pdb
        if True:
            pdb.Pdb(stdin=io.StringIO("p 6 * 7\\nc\\n"), stdout=io.StringIO()).set_trace()
            x = 1
    """
    assert play(cell, can_ask=False) == []


def test_the_call_of_launch_is_not_shown(play: Any) -> None:
    """Its only line is ours; the function is in another cell."""
    other = "/tmp/ipykernel_1/other.py"
    source = "def f():\n    breakpoint()\n    return 1\n"
    linecache.cache[other] = (len(source), None, source.splitlines(keepends=True), other)
    names: dict[str, Any] = {}
    exec(compile(source, other, "exec"), names)
    builtins.function_of_test = names["f"]  # type: ignore[attr-defined]
    try:
        lines = play("x = function_of_test()\n", "w", "n", "n", is_call=True)
    finally:
        del builtins.function_of_test  # type: ignore[attr-defined]
    assert not [line for line in lines if "cell.py" in line or "Cell In[3]" in line]
    assert places(lines)[0] == f"{other}(3)f()"


# --- --debug ------------------------------------------------------------------------------------


def _raised(play: Any, cell: str) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011 -- whatever the cell raises
        play(cell)
    return caught.value


def _examine(error: BaseException, *commands: str) -> None:
    typist = Typist(*commands)
    typist.can_ask = True
    keyboard.connect(typist)
    debugger.examine(error, 1, str(error))
    assert not typist.commands


@pytest.mark.parametrize("end", ["q", "c", "EOF"])
def test_it_begins_where_the_notebooks_code_failed(
    play: Any, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    """Not in the library that it called; `d` goes there."""
    error = _raised(play, "import json\ndef f(text):\n    json.loads(text)\nf('{')\n")
    _examine(error, "p text", "u", "d", "d", end)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("JSONDecodeError: Expecting property name")
    assert lines[1].startswith("rank 1 is held in the debugger: ")
    assert "'{'" in lines
    assert places(lines)[:3] == [
        "Cell In[3](3)f()",
        "Cell In[3](4)<module>()",
        "Cell In[3](3)f()",
    ]
    assert "json/__init__.py" in places(lines)[3]


def test_an_error_without_the_notebooks_code_is_not_examined(play: Any) -> None:
    debugger.begin_cell(CELL, lambda: {CELL: "Cell In[3]"}, is_call=False)
    with pytest.raises(ValueError, match="no number") as caught:
        int("no number")
    assert not debugger.is_in_notebook(caught.value)
    assert debugger.is_in_notebook(_raised(play, "1 / 0\n"))
