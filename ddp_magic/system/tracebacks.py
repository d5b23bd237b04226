"""Tracebacks and warnings without the frames of ddp_magic: a user sees the user's own code.

The frames of `ddp_magic.sam` stay, as those of any library that the user calls.
"""

from __future__ import annotations

import contextlib
import copy
import linecache
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

_PACKAGE = str(Path(__file__).parents[1]) + "/"
_LIBRARY = _PACKAGE + "sam/"


def is_ours(file: str) -> bool:
    """Return whether a file is ddp_magic's own, `ddp_magic.sam` excepted."""
    return file.startswith(_PACKAGE) and not file.startswith(_LIBRARY)


def without_ours(error: BaseException) -> BaseException:
    """Remove our frames from the tracebacks of an exception, of its chain and of its members.

    Returns:
        The same exception.
    """
    for one in _shown_with(error):
        one.__traceback__ = _joined([tb for tb in _steps(one.__traceback__) if _is_foreign(tb)])
    return error


def shortened(tb: TracebackType | None, most: int) -> tuple[TracebackType | None, int]:
    """Return a traceback with at most `most` frames, the outermost and innermost, and how many not.

    IPython takes 10 ms and more for each frame; an endless recursion has 3,000.
    """
    steps = list(_steps(tb))
    if len(steps) <= most:
        return tb, 0
    return _joined([*steps[: most // 2], *steps[-(most // 2) :]]), len(steps) - most


def _shown_with(error: BaseException) -> Iterator[BaseException]:
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        todo += [one.__cause__, one.__context__]
        inner = getattr(one, "exceptions", ())  # an ExceptionGroup's
        if isinstance(inner, (tuple, list)):
            todo += [sub for sub in inner if isinstance(sub, BaseException)]


def _is_foreign(tb: TracebackType) -> bool:
    return not is_ours(tb.tb_frame.f_code.co_filename)


def _steps(tb: TracebackType | None) -> Iterator[TracebackType]:
    while tb is not None:
        yield tb
        tb = tb.tb_next


def _joined(steps: Iterable[TracebackType]) -> TracebackType | None:
    joined: TracebackType | None = None
    for step in reversed(list(steps)):
        joined = TracebackType(joined, step.tb_frame, step.tb_lasti, step.tb_lineno)
    return joined


def end_stacks_at_ours() -> None:
    """Let the stacks that Python prints in this process begin at the user's code.

    `traceback.print_stack`, `logging` with `stack_info`, and torch's anomaly detection would show
    the frames of the forkserver, the agent and the rank below it, and IPython's.
    """
    walk = traceback.walk_stack

    def walk_stack(frame: FrameType | None) -> Iterator[tuple[FrameType, int]]:
        steps = list(walk(sys._getframe(1) if frame is None else frame))  # Python 3.10 to 3.13
        files = [step.f_code.co_filename for step, _ in steps]
        end = next((i for i, file in enumerate(files) if is_ours(file)), len(files))
        if end < len(files):
            while end and "/IPython/core/" in files[end - 1]:
                end -= 1
        return iter(steps[:end])

    traceback.walk_stack = walk_stack  # type: ignore[assignment]


def write_tracebacks_without_ours() -> None:
    """Leave our frames out of the tracebacks that Python writes in this process.

    Those of `traceback.print_exc`, of `logging`, of threads, and of a `multiprocessing` child that
    a rank has forked: what the user's code calls of ours, such as `input`, may raise there.
    """
    names: Any = traceback
    if sys.version_info >= (3, 11):
        original = names.TracebackException.__init__

        def init(self: object, kind: Any, value: Any, tb: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 -- Python's own
            original(self, kind, value, _shown(tb), *args, **kwargs)

        names.TracebackException.__init__ = init
    else:  # the package exceptiongroup, which IPython needs there, replaces that class
        walk = names.walk_tb
        names.walk_tb = lambda tb: walk(_shown(tb))
    hook = threading.excepthook

    def excepthook(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and _is_of_user(args.exc_traceback):
            without_ours(args.exc_value)  # up to Python 3.12, the hook is written in C
        hook(args)

    threading.excepthook = excepthook


def _shown(tb: TracebackType | None) -> TracebackType | None:
    return _joined(filter(_is_foreign, _steps(tb))) if _is_of_user(tb) else tb


def _is_of_user(tb: TracebackType | None) -> bool:
    """Return whether a traceback has frames of others than us: one of ours alone tells of a bug."""
    files = [step.tb_frame.f_code.co_filename for step in _steps(tb)]
    return any(not is_ours(file) and file != threading.__file__ for file in files)


@contextlib.contextmanager
def warnings_without_ours() -> Iterator[None]:
    """Show a warning that arises in our code without a place, as `sys:1: UserWarning: ...`.

    It arises there if our code runs the user's (`stacklevel=2` in a `__reduce__`) or drops an
    object of the user's (a coroutine that was never awaited). Python writes `sys:1` where no code
    runs, such as at the interpreter's end.
    """
    names: Any = warnings
    # Python 3.10 to 3.13: tests/unit/system/test_tracebacks.py. `formatwarning`, which is public,
    # is not told where the object was allocated.
    original = names._formatwarnmsg_impl

    def formatted(message: warnings.WarningMessage) -> Any:  # noqa: ANN401 -- Python's own text
        if is_ours(message.filename):
            message = copy.copy(message)
            message.filename, message.lineno, message.line = "sys", 1, ""
        return original(message)

    names._formatwarnmsg_impl = formatted
    try:
        yield
    finally:
        names._formatwarnmsg_impl = original


def text_without_ours(lines: Iterable[str]) -> list[str]:
    """Remove our frames from a traceback that another process has written as text.

    Args:
        lines: Its lines. A frame is a line `File "..."` and the deeper indented lines below it.
    """
    kept: list[str] = []
    inside = False
    for line in lines:
        if found := re.match(r'\s*File "([^"]+)", line \d+', line):
            inside = is_ours(found.group(1))
        elif not line.startswith("    "):
            inside = False
        if not inside:
            kept.append(line)
    return kept


def cell_label(number: int | None) -> str:
    """Return what a person calls a cell: `Cell In[5]`, or `Cell` where it has no number."""
    return f"Cell In[{number}]" if number else "Cell"


def know_source(file: str, source: str) -> None:
    """Let tracebacks, `inspect` and debuggers find the source of a file that need not exist."""
    lines = [line + "\n" for line in source.rstrip("\n").split("\n")]
    linecache.cache[file] = (len(source), None, lines, file)
