"""The shell of a rank, in a process of its own: IPython has one a process, and keeps it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from ddp_magic.kernel.notebook.line_magics import LineMagics
from ddp_magic.wire.commands import RunCell
from ddp_magic.worker.cell_compiler import CellCompiler
from ddp_magic.worker.shell import LINE_MAGICS


def _in_a_rank(code: str) -> str:
    """Return what a script prints in which the shell is made as in the forkserver."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys\nfrom ddp_magic.worker import shell\nshell.preload()\n{code}",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_shell_has_no_prompts() -> None:
    """A library that looks when it is imported, and remembers, finds a script."""
    assert _in_a_rank("print([hasattr(sys, f'ps{n}') for n in (1, 2, 3)])") == (
        "[False, False, False]\n"
    )


def test_a_warning_of_the_compiler_is_shown_once() -> None:
    """Not also as of a file "<>", which IPython compiles to see whether the cell awaits."""
    cell = "'1 is 1\\nawait x'"
    asked = f"shell.CellShell.instance().should_run_async({cell}, transformed_cell={cell})"
    code = f"import warnings; warnings.simplefilter('error'); print({asked})"
    assert _in_a_rank(code) == "True\n"


def test_the_notebooks_magics_are_refused() -> None:
    """With what to do instead; other magics that do not exist are IPython's to refuse."""
    cells = ["%%ddp -n 2\nx", "x = 1\n%%ddp\nx", "%ddp_status", "%ddpx"]
    text = _in_a_rank(
        "sh = shell.CellShell.instance()\n"
        f"for cell in {cells}: print(sh.run_cell(cell).error_in_exec)"
    )
    nested = "%%ddp within %%ddp: remove this line, the ranks run the cell already"
    assert text.splitlines() == [
        nested,
        nested,
        "%ddp_status works in the notebook, not in a rank: use it in another cell",
        "Line magic function `%ddpx` not found.",
    ]


def test_the_notebooks_line_magics_are_known() -> None:
    names = {name for name in LineMagics.magics["line"] if name.startswith("ddp_")}
    assert set(LINE_MAGICS) == names


def test_cells_go_by_their_numbers_in_tracebacks() -> None:
    """One without a number by its file, which is not taken for In[1]; other files by themselves."""
    compiler = CellCompiler()
    compiler.start_cell(RunCell(path="/run/a.py", execution_count=5), "a = 1")
    compiler.add_cell("/tmp/ipykernel_1/2.py", 3)
    assert compiler.get_code_name("a = 1", "a = 1", 5) == "/run/a.py"
    within = compiler.get_code_name("c = 1", "c = 1", 5)
    assert within != "/run/a.py"
    assert compiler.format_code_name(within) is None
    assert compiler.format_code_name("/run/a.py") == ("Cell", "In[5]")
    assert compiler.format_code_name("/tmp/ipykernel_1/2.py") == ("Cell", "In[3]")
    compiler.start_cell(RunCell(path="/run/b.py"), "b = 1")
    assert compiler.get_code_name("b = 1", "b = 1", 6) == "/run/b.py"
    assert compiler.format_code_name("/run/b.py") == ("Cell", '"b.py"')
    assert compiler.format_code_name("/lib/torch/x.py") is None
    labels = {"/run/a.py": "Cell In[5]", "/tmp/ipykernel_1/2.py": "Cell In[3]"}
    assert compiler.numbered_labels() == labels


def test_an_error_is_formatted_as_the_notebook_does() -> None:
    """With the cell's number; a group with its members, which IPython leaves out."""
    text = _in_a_rank(r"""
cell = shell.start_shell(None, {})
cell.know_sources({"/run/a.py": ("x = 1\n1 / 0\n", 5)})
def show(error):
    print("\n".join(cell.format_error(error, error.__traceback__.tb_next)))
try:
    exec(compile("x = 1\n1 / 0\n", "/run/a.py", "exec"))
except ZeroDivisionError as error:
    show(error)
    if sys.version_info >= (3, 11):
        try:
            exec(compile("raise ExceptionGroup('g', [error])", "/run/a.py", "exec"))
        except Exception as group:
            show(group)
""")
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)  # older IPython has no switch for colors here
    assert "In[5]" in text
    assert "1 / 0" in text
    if sys.version_info >= (3, 11):
        assert "  | ExceptionGroup: g (1 sub-exception)" in text
        assert "Cell In[5], line 2" in text


def test_widgets_are_named_once_in_a_cell() -> None:
    """With what to use instead; what else a display has is shown."""
    shown = _in_a_rank(r"""
publisher = shell.CellShell.instance().display_pub
view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}
for name in ("IntSlider(value=3)", "Button()"):
    publisher.publish({**view, "text/plain": name})
""")
    assert shown.startswith("IntSlider is a widget, and ranks cannot show widgets: ")
    assert shown.count("\n") == 1


def test_an_error_that_does_not_end_the_cell_is_shown(tmp_path: Path) -> None:
    """Of a value's own display, of a script, of a cell within it; the last error is reported."""
    cell, script = tmp_path / "cell.py", tmp_path / "script.py"
    script.write_text("x ==\n")
    cell.write_text(f"""
class Broken:
    def __repr__(self):
        raise ValueError("in a repr")
display(Broken())
get_ipython().run_line_magic("run", {str(script)!r})
get_ipython().run_cell("raise KeyError('in a cell within')")
print("goes on")
raise OSError("at the end")
""")
    text = _in_a_rank(f"""
from ddp_magic.kernel.notebook.line_magics import LineMagics
from ddp_magic.wire.commands import RunCell
error = shell.start_shell(None, {{}}).run_file(RunCell(path={str(cell)!r}, execution_count=5))
print("reported:", repr(error))
""")
    order = [
        text.index(words)
        for words in ("in a repr", "invalid syntax", "in a cell within", "goes on", "reported: OSE")
    ]
    assert order == sorted(order)
    assert text.count("at the end") == 1


def test_an_update_of_an_earlier_cells_display_is_shown_again() -> None:
    """In a session: once, and then updated; what no cell has displayed stays an update."""
    shown = _in_a_rank(r"""
class Outlet:
    connected = True
    def display(self, data, metadata, display_id, *, update):
        print(data["text/html"], display_id, update)
publisher = shell.CellShell.instance().display_pub
publisher.outlet = Outlet()
def show(name, words, update):
    publisher.publish({"text/html": words}, transient={"display_id": name}, update=update)
publisher.begin_cell()
show("a", "one", False)
show("a", "two", True)
publisher.begin_cell()
show("a", "three", True)
show("a", "four", True)
show("b", "five", True)
""")
    assert shown.split("\n")[:-1] == [
        "one a False", "two a True", "three a False", "four a True", "five b True"
    ]  # fmt: skip


def test_a_cell_within_a_cell_has_a_text_of_its_own(tmp_path: Path) -> None:
    """Also that of a script of `%run`: tracebacks show the lines of the cell that is run."""
    cell = tmp_path / "cell.py"
    cell.write_text("""
get_ipython().run_cell("def within(): return 1")
def outer():
    raise OSError
import inspect
print(inspect.getsource(within), inspect.getsource(outer))
outer()
""")
    text = _in_a_rank(f"""
from ddp_magic.kernel.notebook.line_magics import LineMagics
from ddp_magic.wire.commands import RunCell
run = shell.start_shell(None, {{}})
error = run.run_file(RunCell(path={str(cell)!r}, execution_count=5))
print("\\n".join(run.format_error(error, error.__traceback__)))
""")
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert text.startswith("def within(): return 1\n def outer():\n    raise OSError\n")
    assert "----> 7 outer()" in text
    assert "----> 4     raise OSError" in text


def test_what_is_shown_is_not_kept(tmp_path: Path) -> None:
    """IPython 9 keeps each text and value of a cell: those of a long training fill the memory."""
    file = tmp_path / "cell.py"
    file.write_text("for n in range(1000): print('step', n)\nlist(range(100))")
    text = _in_a_rank(f"""
from ddp_magic.kernel.notebook.line_magics import LineMagics
from ddp_magic.wire.commands import RunCell
cell = shell.start_shell(None, {{}})
assert cell.run_file(RunCell(path={str(file)!r}, execution_count=5)) is None
kept = getattr(cell.history_manager, "outputs", {{}})
print("kept", sum(map(len, kept.values())), len(cell.history_manager.output_hist_reprs))
""")
    assert "step 999" in text
    assert text.endswith("kept 0 0\n")
