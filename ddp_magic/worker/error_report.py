"""How a rank reports that its cell raised: as `Error` events.

`shell.CellShell.format_error` formats the traceback, and the kernel's `display.diagnosis.verdict`
attaches it to the exception that the notebook shows.

An error is reported twice. The first report is sent at once, and made without a call of the user's
code. The second one has what only that code can tell: the result of a `__str__`, source lines with
IPython's colors, the members of an exception group. That may take for ever, and the rank may be
ended meanwhile; then the kernel has the first.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import os
import signal
import sys
import traceback
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from time import time as now  # bound here: a cell may replace the module's
from types import TracebackType
from typing import TypeAlias

from ddp_magic.system.tracebacks import cell_label, is_ours, shortened, without_ours
from ddp_magic.wire.commands import RunCell
from ddp_magic.wire.worker_events import Error, Finished
from ddp_magic.worker.interrupts import user_code

MAX_FRAMES = 100  # of an error's traceback
MAX_CHARS = 100_000  # of one piece of an error's text
UNREADABLE = "<its text cannot be shown>"

# Formats an exception, with the traceback to show, as the notebook does.
Formatter: TypeAlias = Callable[[BaseException, TracebackType | None], list[str]]


@dataclass(frozen=True)
class CellPlace:
    """The cell whose errors are reported.

    Attributes:
        file: File name of its code.
        label: What a person calls it, such as "Cell In[5]".
        is_call: Whether its first frame is a line of ours, which calls the user's function.
        functions: What a person calls the notebook's cells with such functions, by file.
    """

    file: str = ""
    label: str = "Cell"
    is_call: bool = False
    functions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, command: RunCell) -> CellPlace:
        """Return the place of the cell that a command runs."""
        return cls(command.name, cell_label(command.execution_count), is_call=command.call)


def send_error(
    error: BaseException,
    rank: int,
    cell: CellPlace,
    send: Callable[[Error], object],
    format_error: Formatter | None = None,
    raised: float | None = None,
) -> None:
    """Report an error at once, and again when it is formatted.

    Args:
        error: What the cell raised.
        rank: This rank.
        cell: Where it ran.
        send: Sends an event to the kernel.
        format_error: IPython's formatter; None for Python's own.
        raised: When it was raised, in seconds since the epoch; None for now.
    """
    first = describe(error, rank, cell, raised)
    send(first)
    # A peer that has failed too may end first: the agent leaves us a moment after SIGTERM.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    send(describe_in_full(first, error, cell, format_error))
    signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def describe(
    error: BaseException, rank: int, cell: CellPlace, raised: float | None = None
) -> Error:
    """Describe an error without a call of the user's code."""
    kind = type(error)
    text = _shorten(_safe_text(error))
    line, of_cell = _line(error, cell)
    return Error(
        rank=rank,
        time=now() if raised is None else raised,
        ename=kind.__name__,
        evalue=text,
        traceback=(*_plain_frames(_shown(error, cell), cell), f"{kind.__name__}: {text}"),
        line=line,
        cell=of_cell,
        classes=tuple(
            f"{c.__module__}:{c.__qualname__}"
            for c in kind.__mro__
            if c not in (object, BaseException, Exception)
        ),
    )


def describe_in_full(
    first: Error, error: BaseException, cell: CellPlace, format_error: Formatter | None
) -> Error:
    """Return the first report with the text and the traceback that the user's code gives.

    The main thread runs this: an interrupt ends it, and what is not known by then stays as it was.
    """
    shown = _shown(error, cell)
    evalue, problem = user_code(lambda: str(error))
    if isinstance(evalue, str):
        first = dataclasses.replace(first, evalue=_shorten(evalue))
    if isinstance(problem, KeyboardInterrupt):
        return first  # the formatter would call the same `__str__`
    lines, _ = user_code(lambda: _format(error, shown, format_error))
    return dataclasses.replace(first, traceback=tuple(map(_shorten, lines or first.traceback)))


def describe_exit(error: SystemExit, rank: int) -> Finished:
    """Describe `sys.exit(...)` by the interpreter's rules: a string is exit code 1."""
    is_number = error.code is None or isinstance(error.code, int)
    message = "" if is_number else user_code(lambda: str(error.code))[0] or UNREADABLE
    code = error.code if isinstance(error.code, int) else int(bool(message))
    code &= 0xFF  # the operating system keeps 8 bits
    return Finished(rank=rank, time=now(), code=code, message=_shorten(message))


def print_error(
    error: BaseException | None, rank: int, cell: CellPlace, format_error: Formatter
) -> int:
    """Write what ended a process that a rank has forked to stderr, as an interpreter does.

    Args:
        error: What ended it; None for the end of the cell.
        rank: The rank that has forked it.
        cell: The cell that it has left.
        format_error: IPython's formatter.

    Returns:
        The process's exit code.
    """
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        finished = describe_exit(error, rank)
        text, code = finished.message, finished.code
    else:
        full = describe_in_full(describe(error, rank, cell), error, cell, format_error)
        head = f"process {os.getpid()}, forked by rank {rank}, raised:"
        text, code = "\n".join([head, *full.traceback]), 1
    if text:
        # The cell may have closed or replaced stderr.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            print(text, file=sys.stderr, flush=True)  # noqa: T201 -- as Python does
    return code


def last_line(error: BaseException) -> str:
    """Return an error's class and text in one line."""
    return traceback.format_exception_only(type(error), error)[-1].strip()


def _line(error: BaseException, cell: CellPlace) -> tuple[int | None, str]:
    """Return the innermost line of the cell, and the cell's name unless it is the one that ran."""
    labels = cell.functions if cell.is_call else {cell.file: ""}
    frames = _frames_in(error, labels)
    while not frames and isinstance(error, KeyboardInterrupt) and error.__context__ is not None:
        error = error.__context__  # an error had left the cell when the interrupt was taken
        frames = _frames_in(error, labels)
    if not frames:
        return None, ""
    return frames[-1].tb_lineno, labels[frames[-1].tb_frame.f_code.co_filename]


def _frames_in(error: BaseException, files: Collection[str]) -> list[TracebackType]:
    frames = []
    tb = error.__traceback__
    while tb is not None:
        if tb.tb_frame.f_code.co_filename in files:
            frames.append(tb)
        tb = tb.tb_next
    return frames


def _shown(error: BaseException, cell: CellPlace) -> TracebackType | None:
    """Return the traceback from the cell's own first frame on."""
    frames = _frames_in(error, [cell.file])
    if not frames:
        return error.__traceback__
    return frames[0].tb_next if cell.is_call else frames[0]


def _plain_frames(tb: TracebackType | None, cell: CellPlace) -> list[str]:
    lines = []
    labels = {**cell.functions, cell.file: cell.label}
    tb, left_out = shortened(tb, MAX_FRAMES)
    for frame in traceback.extract_tb(tb):
        if not is_ours(frame.filename):
            file = labels.get(frame.filename, f'File "{frame.filename}"')
            lines.append(f"{file}, line {frame.lineno}, in {frame.name}")
            lines.append(f"    {frame.line}")
    return [*lines, *_left_out(left_out)]


def _left_out(frames: int) -> list[str]:
    return [f"({frames:,} frames in the middle are not shown)"] if frames else []


def _format(
    error: BaseException, shown: TracebackType | None, format_error: Formatter | None
) -> list[str]:
    error.__traceback__ = shown
    without_ours(error)
    error.__traceback__, left_out = shortened(error.__traceback__, MAX_FRAMES)
    notes = _left_out(left_out)
    if format_error is not None:
        with contextlib.suppress(Exception):  # a repr that raises must not hide its error
            return [*format_error(error, error.__traceback__), *notes]
    return [*traceback.format_exception(type(error), error, error.__traceback__), *notes]


def _safe_text(error: BaseException) -> str:
    """Return an exception's text, if that takes no code of the user's."""
    args = error.args[:1] if _is_group(error) else error.args  # a group counts its errors only
    plain = all(type(arg) in (str, int, float, type(None)) for arg in args)
    # Written in C, as those of Python's and torch's own exceptions.
    builtin = isinstance(type(error).__str__, types.WrapperDescriptorType)
    return str(error) if plain and builtin else UNREADABLE


def _is_group(error: BaseException) -> bool:
    return isinstance(error, getattr(builtins, "BaseExceptionGroup", ()))  # Python 3.11


def _shorten(text: str) -> str:
    """Cut what no one would read, and no frame could carry."""
    if len(text) <= MAX_CHARS:
        return text
    return f"{text[:MAX_CHARS]} ... ({len(text):,} characters)"
