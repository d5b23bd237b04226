"""The IPython shell that runs a rank's cells: the notebook's syntax, displays and tracebacks.

The methods of IPython that are overridden here are the same in IPython 8.18 to 9.18;
tests/unit/worker/test_private_names.py fails where one changes.
"""

from __future__ import annotations

import atexit
import gc
import linecache
import sys
import traceback
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from IPython.core.compilerop import CachingCompiler
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets import Type
from traitlets.config import Config

from ddp_magic.system.frames import cell_label
from ddp_magic.wire.messages import RunCell
from ddp_magic.worker.console import bars, debugger, keyboard, streams
from ddp_magic.worker.inheritance import MainSpec

WIDGET = "application/vnd.jupyter.widget"
WIDGETS = (
    "{name} is a widget, and ranks cannot show widgets: create it in a cell without %%ddp, and use "
    "its value here. In ranks, use print(), display() and tqdm."
)


class Outlet(Protocol):
    """Where rich output goes (`displays.Displays`)."""

    @property
    def connected(self) -> bool:
        """False in a forked child, which shows rich output as text."""

    def display(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None,
        display_id: str | None,
        *,
        update: bool,
    ) -> None:
        """Show one rich output."""

    def clear_output(self, *, wait: bool) -> None:
        """Remove the output; with `wait`, when something follows."""


class RankDisplayPublisher(DisplayPublisher):
    """`display()`: sends rich outputs to the kernel, and prints plain text."""

    outlet: Outlet | None = None
    has_named_widgets = False  # whether the cell has been told of widgets

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 -- IPython's
        super().__init__(*args, **kwargs)
        self._ids: set[str] = set()  # of displays of this cell
        self._earlier_ids: set[str] = set()  # of earlier cells of a session

    def begin_cell(self) -> None:
        """Take what was displayed so far for that of earlier cells."""
        self.has_named_widgets = False
        self._earlier_ids |= self._ids
        self._ids = set()

    def publish(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        source: object = None,  # noqa: ARG002 -- IPython does not use it either
        *,
        transient: dict[str, Any] | None = None,
        update: bool = False,
        **_kwargs: object,
    ) -> None:
        """Send a MIME bundle to the notebook."""
        display_id = (transient or {}).get("display_id")
        display_id = None if display_id is None else str(display_id)
        formats = {k: v for k, v in data.items() if not k.startswith(WIDGET)}
        if len(formats) < len(data) and not set(formats) - {"text/plain"}:
            self._name_widget(str(data.get("text/plain", "")))
            return
        data = formats
        plain = not set(data) - {"text/plain"} and display_id is None
        if plain or self.outlet is None or not self.outlet.connected:
            streams.print_on_new_line(data.get("text/plain", ""))
        else:
            if display_id is not None:
                # The output of an earlier cell is not this one's: the display is shown again.
                update = update and display_id not in self._earlier_ids
                if not update:
                    self._ids.add(display_id)
                    self._earlier_ids.discard(display_id)
            self.outlet.display(data, metadata, display_id, update=update)

    def _name_widget(self, text: str) -> None:
        """Say once in a cell that a widget is not shown: it needs the kernel that created it."""
        if not self.has_named_widgets:
            self.has_named_widgets = True
            streams.print_on_new_line(WIDGETS.format(name=text.partition("(")[0]))

    def clear_output(self, wait: bool = False) -> None:
        """Remove the rank's output, rich output and text; with `wait`, when something follows."""
        if self.outlet is not None and self.outlet.connected:
            self.outlet.clear_output(wait=wait)


class RankDisplayHook(DisplayHook):
    """The value of a cell's last expression, shown as `display` would show it."""

    source = ""

    def quiet(self) -> bool:
        """Return whether the cell ends in a semicolon."""
        return bool(self.semicolon_at_end_of_expression(self.source))

    def write_output_prompt(self) -> None:
        """Write no prompt: the rank's label is there."""

    def write_format_data(self, format_dict: Any, md_dict: Any = None) -> None:  # noqa: ANN401
        """Show the value."""
        self.shell.display_pub.publish(format_dict, md_dict)

    def finish_displayhook(self) -> None:
        """Do not write the blank line that IPython writes in a terminal."""


class CellCompiler(CachingCompiler):
    """Compiles the cell under its own file name, which tracebacks show as `Cell In[5]`.

    The file need not exist: its text is in `linecache`, where tracebacks, debuggers, `inspect` and
    torch look first.
    """

    def __init__(self) -> None:
        super().__init__()
        self._cell_file = self._source = ""
        self._numbers: dict[str, int | None] = {}

    def start_cell(self, command: RunCell, source: str) -> None:
        """Compile this text under this cell's name."""
        self._cell_file, self._source = command.name, source
        self.add_cell(command.name, command.execution_count)

    def add_cell(self, file: str, number: int | None) -> None:
        """Show the code of a file under the number of the notebook's cell; None if it has none."""
        self._numbers[file] = number

    def numbered_cells(self) -> list[tuple[str, int]]:
        """Return files and numbers of the notebook's cells."""
        return [(f, n) for f, n in self._numbers.items() if n is not None]

    def numbered_labels(self) -> dict[str, str]:
        """Return what a person calls the cells that have a number, by file: `Cell In[5]`."""
        return {file: cell_label(number) for file, number in self.numbered_cells()}

    def labels(self) -> dict[str, str]:
        """Return what a person calls the files of cells: `Cell In[5]`."""
        return {file: " ".join(self.format_code_name(file) or ()) for file in self._numbers}

    def get_code_name(self, raw_code: str, transformed_code: str, number: int) -> str:
        """Name the cell's code by its file; that of a cell within it has a name of its own."""
        if raw_code != self._source:
            return str(super().get_code_name(raw_code, transformed_code, number))
        return self._cell_file

    def format_code_name(self, name: str) -> tuple[str, str] | None:
        """Return what tracebacks show for a file: ("Cell", "In[5]"), or None if it is no cell."""
        if name not in self._numbers:
            return None
        number = self._numbers[name]
        return "Cell", f'"{Path(name).name}"' if number is None else f"In[{number}]"


class CellShell(InteractiveShell):
    """An IPython shell without a terminal, a history or a prompt."""

    debugger_cls = debugger.Debugger
    compiler_class = Type(CellCompiler)
    display_pub_class = Type(RankDisplayPublisher)
    displayhook_class = Type(RankDisplayHook)
    _source = ""  # of the file that `run_file` runs
    _depth = 0  # of cells that run each other: the text of `run_file`, `get_ipython().run_cell`

    def init_prompts(self) -> None:
        """Do not set `sys.ps1`, by which Lightning and others recognize an interactive interpreter.

        A rank is a script. This runs in the forkserver, before it imports such libraries.
        """

    def run_file(self, command: RunCell) -> BaseException | None:
        """Run the cell in a file.

        Returns:
            The exception that ended it, SystemExit and KeyboardInterrupt included.
        """
        with open(command.path, encoding="utf-8") as file:  # noqa: PTH123 -- hot path, one line
            source = file.read()
        self._follow_notebook(command.shell)
        self.user_module.__file__ = command.name
        self.compile.start_cell(command, source)
        self.displayhook.source = self._source = source
        self.display_pub.begin_cell()
        self.execution_count = command.execution_count or 1
        result = self.run_cell(source, store_history=False)
        error: BaseException | None = result.error_before_exec or result.error_in_exec
        return error

    def transform_cell(self, raw_cell: str) -> str:
        """Return the cell as Python: the kernel has transformed the one in the file."""
        return raw_cell if raw_cell is self._source else str(super().transform_cell(raw_cell))

    def should_run_async(self, raw_cell: str, **kwargs: Any) -> bool:  # noqa: ANN401 -- IPython's
        """Return whether the cell awaits, without the compiler's warnings.

        IPython compiles the cell for that as the file "<>", and again, with warnings, to run it.
        """
        if "await" not in raw_cell and "async" not in raw_cell:
            return False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bool(super().should_run_async(raw_cell, **kwargs))

    def know_sources(self, sources: dict[str, list[Any]]) -> None:
        """Let tracebacks and `inspect` find the text of the notebook's own cells.

        Args:
            sources: Text and cell number, by the code's file name.
        """
        for file, (text, number) in sources.items():
            linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
            if number is not None:
                self.compile.add_cell(file, number)

    def _follow_notebook(self, settings: dict[str, str]) -> None:
        for name in ("colors", "ast_node_interactivity"):
            if getattr(self, name) != settings.get(name, getattr(self, name)):
                setattr(self, name, settings[name])  # each time, it would make formatters anew
        if self.InteractiveTB.mode != settings.get("xmode", self.InteractiveTB.mode):
            self.InteractiveTB.set_mode(mode=settings["xmode"])

    def format_error(self, error: BaseException, tb: TracebackType | None) -> list[str]:
        """Format an exception as the notebook would.

        Args:
            error: The exception.
            tb: Its traceback, from the first frame to show.
        """
        if _holds_group(error):
            return self._format_groups(error)
        handler = self.SyntaxTB if isinstance(error, SyntaxError) else self.InteractiveTB
        lines: list[str] = handler.structured_traceback(type(error), error, tb, tb_offset=0)
        return lines

    def _format_groups(self, error: BaseException) -> list[str]:
        """Format an exception group as Python does: IPython does not show its members."""
        lines = "".join(traceback.format_exception(error)).splitlines()
        for file, label in self.compile.numbered_labels().items():
            lines = [line.replace(f'File "{file}"', label) for line in lines]
        return lines

    def run_cell(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- IPython's
        """Run a cell, perhaps within another."""
        with self._one_deeper():
            return super().run_cell(*args, **kwargs)

    @contextmanager
    def _one_deeper(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def showtraceback(
        self,
        exc_tuple: Any = None,  # noqa: ANN401 -- IPython's
        filename: str | None = None,
        tb_offset: int | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Show an error after which the cell goes on: of a `__repr__`, a script of `%run`.

        The rank reports the one that ends the cell, and the kernel shows it.
        """
        if self._depth == 1 and exc_tuple is None and tb_offset is None:
            return
        with self._one_deeper():
            super().showtraceback(exc_tuple, filename, tb_offset, **kwargs)

    def showsyntaxerror(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 -- IPython's
        """Show one after which the cell goes on."""
        if self._depth > 1:
            super().showsyntaxerror(*args, **kwargs)

    def enable_gui(self, gui: object = None) -> None:
        """Do nothing: a rank has no event loop (`%matplotlib inline` asks for none)."""


def _holds_group(error: BaseException | None) -> bool:
    """Return whether an exception, or one in its chain, is an exception group."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(getattr(error, "exceptions", None), tuple):
            return True
        error = error.__cause__ or error.__context__
    return False


def preload() -> None:
    """Create the shell before the fork, so that it costs the ranks no time."""
    keyboard.install()
    _make_shell()


def _make_shell() -> CellShell:
    bars.use_text()
    module = types.ModuleType("__main__")
    # `multiprocessing` children of a rank import this module instead of the cell.
    module.__spec__ = MainSpec()
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.autoindent = False
    config.InteractiveShell.banner1 = ""
    # IPython warns at sys.exit(), because it does not end a shell; it does end a rank.
    warnings.filterwarnings("ignore", message="To exit: use")
    shell: CellShell = CellShell.instance(user_module=module, config=config)
    # It would delete the cell's names one by one while objects of the cell still use them, such as
    # those of torch.compile; see `end_names`.
    atexit.unregister(shell.atexit_operations)
    return shell


# Objects whose end a user does not notice, and which destructors use.
_LAST = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type, int, float, str)


def end_names() -> None:
    """Drop the cell's objects as the interpreter does at its end, so that files are flushed."""
    namespace = sys.modules["__main__"].__dict__
    for results in (namespace.get("_oh"), namespace.get("Out")):
        if isinstance(results, dict):
            results.clear()
    # Newest objects first, definitions last: destructors still find what they use.
    # By type(), because `isinstance` of a dead `weakref.proxy` raises.
    objects = [n for n, value in namespace.items() if not issubclass(type(value), _LAST)][::-1]
    for names in (objects, list(namespace)):
        for name in names:
            if name != "__builtins__":
                namespace[name] = None
        gc.collect()


def start_shell(outlet: Outlet, names: dict[str, Any]) -> CellShell:
    """Return this process's IPython shell, whose namespace is the module `__main__`.

    Args:
        outlet: Where rich output goes.
        names: Names to put into the namespace.
    """
    shell: CellShell = CellShell.instance() if CellShell.initialized() else _make_shell()
    sys.modules["__main__"] = shell.user_module
    shell.display_pub.outlet = outlet
    # As in a script, where `exit(3)` works; IPython's own `exit` would ask its shell to end.
    names = {**names, "exit": sys.exit, "quit": sys.exit}
    shell.user_ns.update(names)
    shell.user_ns_hidden.update(names)
    return shell
