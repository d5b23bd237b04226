"""`breakpoint()`, `pdb` and `--debug` in a rank: Python's debugger, as a cell needs it.

It shows the notebook's own places (`Cell In[3](5)`) and no frames below the cell; `q` ends the run
on all ranks. It reads by `input`, which asks in the notebook (`keyboard`).
"""

from __future__ import annotations

import ast
import bdb
import contextlib
import linecache
import os
import pdb
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from IPython.core import debugger as ipython_debugger

from ddp_magic.system.tracebacks import is_ours
from ddp_magic.worker.console import keyboard

_INSTEAD = (
    "run the cell in Jupyter or in a terminal to debug it; PYTHONBREAKPOINT=0 skips breakpoint()"
)


@dataclass
class Place:
    """Which code is the notebook's.

    Attributes:
        cell: File name of the running cell's code.
        is_call: Whether the cell's own frame is a line of ours, which calls the user's function.
        labels: Returns what a person calls the files of cells: `Cell In[3]`.
        used: Whether a debugger was used in the cell.
    """

    cell: str = ""
    is_call: bool = False
    labels: Callable[[], Mapping[str, str]] = dict
    used: bool = False


_place = Place()  # of this process


class Debugger(pdb.Pdb):
    """Python's debugger in a rank; see the module."""

    at_cell = False  # whether it begins at the innermost frame of the notebook's code

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 -- pdb's own
        super().__init__(*args, **kwargs)
        self.nosigint = True  # its handler would take Stop for itself
        self.completekey = None  # type: ignore[assignment]  # TAB does not reach a rank
        self._examines = False  # an exception; otherwise it steps through a program that runs
        self._in_cell = False
        self._is_new = False  # it has not stopped yet

    # --- where it stops -----------------------------------------------------------------------

    def set_trace(self, frame: FrameType | None = None, **more: Any) -> None:  # noqa: ANN401 -- pdb's
        """Stop in a frame.

        Raises:
            StdinNotImplementedError: Nobody can answer.
        """
        found = keyboard.current()
        if found is not None and self.use_rawinput:
            found.check("breakpoint()", _INSTEAD)
        _place.used = True
        frame = frame or sys._getframe().f_back
        while frame is not None and is_ours(frame.f_code.co_filename):
            frame = frame.f_back
        self._in_cell, self._is_new = _is_in_cell(frame), True
        super().set_trace(frame, **more)

    def stop_here(self, frame: FrameType) -> bool:
        """Return whether to stop: not below the cell, and not in our code."""
        return bool(super().stop_here(frame)) and self._is_shown(frame)

    def _is_shown(self, frame: FrameType) -> bool:
        if not self._in_cell:  # a thread
            return not _is_hidden(frame)
        below: FrameType | None = frame
        while below is not None and not _is_cell(below):
            if _is_hidden(below):  # what it calls is its own affair
                return False
            below = below.f_back
        return below is not None and not (below is frame and _place.is_call)

    def user_call(self, frame: FrameType, argument_list: None) -> None:
        """Stop at the call of a function; IPython runs each statement of a cell as one."""
        if not _is_statement(frame):
            super().user_call(frame, argument_list)

    def user_return(self, frame: FrameType, return_value: Any) -> None:  # noqa: ANN401 -- pdb's
        """Stop at the end of a function, and of a cell that ends with `breakpoint()`."""
        if not _is_statement(frame) or (self._is_new and _is_last(frame)):
            super().user_return(frame, return_value)

    # --- what it shows ------------------------------------------------------------------------

    def get_stack(
        self, f: FrameType | None, t: TracebackType | None
    ) -> tuple[list[tuple[FrameType, int]], int]:
        """Return the frames to show, from the cell's first on, and which one to begin at."""
        stack, index = super().get_stack(f, t)
        first = next((i for i, (frame, _) in enumerate(stack) if _is_cell(frame)), 0)
        shown = [i for i in range(first, len(stack)) if not _is_hidden(stack[i][0])]
        if not shown:
            return stack, index
        begin = [i for i in shown if i <= index][-1:] or shown[:1]
        if self.at_cell:
            begin = [i for i in shown if _is_notebooks(stack[i][0])][-1:] or begin
        return [stack[i] for i in shown], shown.index(begin[0])

    def message(self, msg: str) -> None:
        """Print with the notebook's own places."""
        super().message(_with_labels(str(msg)))

    def error(self, msg: str) -> None:
        """Print an error of the debugger's, with the notebook's own places."""
        super().error(_with_labels(str(msg)))

    # --- its commands -------------------------------------------------------------------------

    def interaction(self, frame: FrameType | None, traceback: Any) -> None:  # noqa: ANN401 -- pdb's
        """Read and carry out commands."""
        self._examines, self._is_new = frame is None, False
        _place.used = True
        super().interaction(frame, traceback)

    def _cmdloop(self) -> None:
        """Read commands; Stop ends it, which Python's own takes for the end of a command."""
        self.cmdloop()

    def do_quit(self, arg: str) -> bool | None:
        """q(uit)
        End the run, on all ranks. After an error: leave the debugger.
        """  # noqa: D205 -- what `help` prints, in pdb's form
        found = keyboard.current()
        if self._examines or found is None:
            return super().do_quit(arg)
        return found.quit_run()

    do_q = do_exit = do_quit

    def do_EOF(self, arg: str) -> bool | None:  # noqa: N802 -- pdb's own
        """EOF
        Does what q does.
        """  # noqa: D205
        self.message("")
        return self.do_quit(arg)

    def do_interact(self, arg: str) -> None:
        """Interact
        Start an interpreter on the names of this frame; Ctrl-D or `raise SystemExit` leaves it.
        """  # noqa: D205
        hook, sys.excepthook = sys.excepthook, sys.__excepthook__  # the rank's shows nothing
        try:
            super().do_interact(arg)
        except SystemExit:
            pass
        finally:
            sys.excepthook = hook

    def do_run(self, arg: str) -> None:
        """Run
        Cannot restart a rank.
        """  # noqa: D205
        del arg
        self.error("a rank cannot be restarted: q ends the run")

    do_restart = do_run


def install() -> None:
    """Let every way to start a debugger start this one."""
    pdb.Pdb = Debugger  # type: ignore[misc]
    ipython_debugger.Pdb = Debugger
    sys.breakpointhook = _breakpoint
    distributed: Any = sys.modules.get("torch.distributed")
    if hasattr(distributed, "_DistributedPdb"):  # torch 2.6; later ones derive it when it is used
        distributed._DistributedPdb = Debugger


def _breakpoint(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- as Python's own
    """Check, without a frame of Python's below the cell's, that somebody can answer."""
    found = keyboard.current()
    if found is not None and os.environ.get("PYTHONBREAKPOINT", "") in ("", "pdb.set_trace"):
        found.check("breakpoint()", _INSTEAD)
    return sys.__breakpointhook__(*args, **kwargs)


def begin_cell(cell: str, labels: Callable[[], Mapping[str, str]], *, is_call: bool) -> None:
    """Note which code is the notebook's; see `Place`."""
    _place.cell, _place.labels, _place.is_call, _place.used = cell, labels, is_call, False


def end_cell() -> None:
    """Stop nowhere after the cell."""
    if _place.used:
        sys.settrace(None)
        bdb.Breakpoint.clearBreakpoints()


def examine(error: BaseException, rank: int, text: str) -> None:
    """Stop where the cell raised (`--debug`), until a person has seen enough.

    Args:
        error: The error.
        rank: Number of the rank.
        text: The error's text; to ask for it may raise another.
    """
    print(f"{type(error).__name__}: {text}")  # noqa: T201 -- the rank's text
    print(  # noqa: T201
        f"rank {rank} is held in the debugger: p NAME, l, w, u and d look around; q ends the run "
        "with this error"
    )
    found = Debugger()
    found.at_cell = True
    found.reset()
    found.interaction(None, error.__traceback__)


def is_in_notebook(error: BaseException) -> bool:
    """Return whether a frame of the notebook's is in the traceback of an error."""
    tb = error.__traceback__
    while tb is not None:
        if _is_notebooks(tb.tb_frame):
            return True
        tb = tb.tb_next
    return False


def _is_cell(frame: FrameType) -> bool:
    return frame.f_code.co_filename == _place.cell


def _is_our_call(frame: FrameType) -> bool:
    return _place.is_call and _is_cell(frame)


def _is_statement(frame: FrameType) -> bool:
    return frame.f_code.co_name == "<module>" and _is_cell(frame)


def _is_last(statement: FrameType) -> bool:
    """Return whether no other statement of the cell follows."""
    source = "".join(linecache.getlines(statement.f_code.co_filename))
    with contextlib.suppress(SyntaxError):  # not Python as it stands: `!ls`
        return statement.f_lineno >= ast.parse(source).body[-1].lineno
    return True


def _is_hidden(frame: FrameType) -> bool:
    """Whether a frame is of what runs and prints the cell: IPython has put a `write` of its own."""
    file = frame.f_code.co_filename
    return is_ours(file) or "/IPython/core/" in file or _is_our_call(frame)


def _is_in_cell(frame: FrameType | None) -> bool:
    while frame is not None:
        if _is_cell(frame):
            return True
        frame = frame.f_back
    return False


def _is_notebooks(frame: FrameType) -> bool:
    return frame.f_code.co_filename in _place.labels() and not _is_our_call(frame)


def _with_labels(text: str) -> str:
    for file, label in _place.labels().items():
        text = text.replace(file, label)
    return text
