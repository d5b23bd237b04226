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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from traitlets import Type
from traitlets.config import Config

from ddp_magic.wire.commands import RunCell
from ddp_magic.worker.cell_compiler import CellCompiler
from ddp_magic.worker.console import bars, debugger, keyboard, log_records
from ddp_magic.worker.console.ipython_displays import Outlet, RankDisplayHook, RankDisplayPublisher
from ddp_magic.worker.inheritance import MainSpec

# Of the notebook; a rank has none of them.
LINE_MAGICS = ("ddp_attach", "ddp_logs", "ddp_show", "ddp_status", "ddp_stop", "ddp_wait")


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

    @contextmanager
    def _tee(self, channel: str) -> Iterator[None]:  # noqa: ARG002 -- IPython's
        """Keep no text: IPython 9 keeps all output for its history, which a rank does not have."""
        yield

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
    _refuse_notebooks_magics(shell)
    log_records.name_cells(shell.compile.numbered_labels())
    # It would delete the cell's names one by one while objects of the cell still use them, such as
    # those of torch.compile; see `end_names`.
    atexit.unregister(shell.atexit_operations)
    return shell


def _refuse_notebooks_magics(shell: CellShell) -> None:
    """Let the magics of ddp_magic say that they are the notebook's."""

    def nested(*_: object) -> None:
        raise UsageError("%%ddp within %%ddp: remove this line, the ranks run the cell already")

    def refuse(name: str) -> Callable[..., None]:
        def elsewhere(*_: object) -> None:
            raise UsageError(
                f"%{name} works in the notebook, not in a rank: use it in another cell"
            )

        return elsewhere

    shell.register_magic_function(nested, "line_cell", "ddp")
    shell.register_magic_function(nested, "line", "%ddp")  # below the first line
    for name in LINE_MAGICS:
        shell.register_magic_function(refuse(name), "line", name)


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
