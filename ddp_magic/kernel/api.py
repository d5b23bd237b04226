"""Runs from Python: for loops, functions and `try`, in a notebook or a plain script."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Iterator
from types import SimpleNamespace
from typing import Any, TypeVar

from IPython.core.getipython import get_ipython
from IPython.core.inputtransformer2 import TransformerManager

from ddp_magic import errors
from ddp_magic.display.labels import without_escapes
from ddp_magic.display.outputs import Outputs
from ddp_magic.display.question_box import box_of
from ddp_magic.display.screen import CellScreen
from ddp_magic.kernel import cell, controller
from ddp_magic.kernel.background.run import BackgroundRun
from ddp_magic.kernel.execution import call
from ddp_magic.kernel.execution.run import Run
from ddp_magic.kernel.interrupts import interrupted_words, without_frames
from ddp_magic.kernel.notebook.post_mortem import wants_debugger
from ddp_magic.kernel.options.arguments import parse_keywords
from ddp_magic.kernel.options.declaration import KEYWORDS
from ddp_magic.kernel.options.help import keyword_lines
from ddp_magic.kernel.options.option import OptionError
from ddp_magic.kernel.resolve import resolve
from ddp_magic.kernel.values.capture import Notebook
from ddp_magic.kernel.values.value_stream import Extra

_creation = threading.Lock()  # the first runs of several threads share one controller


F = TypeVar("F", bound=Callable[..., Any])


def _lists_options(*, without: Collection[str] = ()) -> Callable[[F], F]:
    """Add the options to a function's docstring, which `?` and `help` show."""

    def decorate(function: F) -> F:
        if function.__doc__ is not None:  # python -OO
            function.__doc__ += f"\n    Options:\n{keyword_lines(without)}\n"
        return function

    return decorate


_NOT_OF_LAUNCH = {
    "pull": "the run's results are the function's return values",
    "write": "run writes the text of a cell as a script",
}


@_lists_options(without=_NOT_OF_LAUNCH)
def launch(
    function: Callable[..., Any],
    *args: Any,  # noqa: ANN401
    **options: Any,  # noqa: ANN401
) -> Run | BackgroundRun:
    """Call a function on every rank.

    Args:
        function: Any function: from the notebook, a script or a module, or a lambda. One that is
            `async` is awaited.
        *args: Its arguments, by position; `functools.partial` passes others by keyword. Each rank
            gets its own copy; arrays share their memory.
        **options: Those of `%%ddp`, by their long names: `nproc_per_node=4`, `time_limit=60`;
            see below. What `%config DDPMagics` sets is for `%%ddp` alone.

    Returns:
        The run. Its `results` are the values that the function returned, one for each rank. With
        `bg` or `detach` it still goes on: its `wait()` returns it at its end.

    Raises:
        TypeError: There is no such option.
        ValueError: An option cannot have this value, or not on this machine.
        CaptureError: The function or an argument cannot be sent to the ranks.
        WorkerError: The function raised; the error is of the exception's class too.
        DDPMagicError: Any other failure; see `ddp_magic.errors`.
    """
    for name in _NOT_OF_LAUNCH.keys() & options.keys():
        text = f"launch has no option {name}: {_NOT_OF_LAUNCH[name]}"
        raise errors.one_line(TypeError(text))
    with _misuse_in_one_line():
        if not callable(function):
            raise TypeError(f"launch takes a function, not {type(function).__name__}")
        if name := call.own_keyword(function, options.keys() - KEYWORDS.keys()):
            raise TypeError(
                f"unrecognized option {name}: launch passes arguments by position; to pass this "
                f"one by keyword, launch functools.partial(function, {name}=...)"
            )
        wanted = parse_keywords(options)
    wanted.pull = (call.PULL,)
    made = _run(*call.cell_of_call(function, args), wanted)
    if isinstance(made, BackgroundRun):
        return made
    made.results = call.results(made.results)
    if (error := _failure(made, wanted)) is not None:
        del made  # the traceback keeps this frame, which must not keep the results
        raise error
    return made


@_lists_options()
def run(text: str, **options: Any) -> Run | BackgroundRun | None:  # noqa: ANN401
    """Run the text of a cell, as `%%ddp` does.

    Args:
        text: The cell.
        **options: Those of `%%ddp`, by their long names: `nproc_per_node=4`, `pull="loss@all"`;
            see below. What `%config DDPMagics` sets is for `%%ddp` alone.

    Returns:
        The run. Its `results` are the pulled values, by name. With `bg` or `detach` it still goes
        on: its `wait()` returns it at its end. With `write` there is no run: None.

    Raises:
        CellSyntaxError: The text is not Python.
        TypeError: There is no such option.
        ValueError: An option cannot have this value, or not on this machine.
        CaptureError: A name that the cell reads cannot be sent to the ranks.
        WorkerError: The cell raised; the error is of the exception's class too.
        DDPMagicError: Any other failure; see `ddp_magic.errors`.
    """
    with _misuse_in_one_line():
        wanted = parse_keywords(options)
        if not isinstance(text, str):
            raise TypeError(f"run takes the text of a cell, not {type(text).__name__}")
    if wanted.write is not None:
        _write(text, wanted)
        return None
    made = _run(text, {}, wanted)
    if isinstance(made, BackgroundRun):
        return made
    if (error := _failure(made, wanted)) is not None:
        del made  # as in `launch`
        raise error
    return made


@contextlib.contextmanager
def _misuse_in_one_line() -> Iterator[None]:
    """Show a wrong call as one line, without our frames, and as Python's own class."""
    try:
        yield
    except OptionError as error:
        raise errors.one_line(ValueError(str(error))) from None
    except (TypeError, ValueError) as error:
        raise errors.one_line(error) from None


def _run(text: str, extra: dict[str, Extra], wanted: SimpleNamespace) -> Run | BackgroundRun:
    made: Run | None = None
    with (
        without_frames(lambda: interrupted_words(made)),
        (home := _kernel()).sessions.claim(wanted.session),
    ):
        shell = get_ipython()
        wanted.debug = wants_debugger(wanted, shell)
        with _misuse_in_one_line():
            options = home.join(wanted) or resolve(wanted)
        options = dataclasses.replace(options, call=bool(extra), from_python=True)
        with options.gpu_locks.released_on_error():
            ready = _prepare(text)
            if wanted.bg or wanted.detach:
                return _in_background(home.start_in_background(ready, options, wanted, extra))
            made = home.make(ready, options, wanted.capture, extra)
        # The cell that calls this may have shown something of its own.
        screen = CellScreen(shell, outputs=Outputs(shell, owns_cell=False))
        home.execute(made, screen, cold=wanted.cold, box=box_of(shell))
    return made


def _prepare(text: str) -> cell.Cell:
    shell = get_ipython()
    manager = shell.input_transformer_manager if shell is not None else TransformerManager()
    like = cell.transformer_like(manager)
    try:
        return cell.prepare(text, above=(), filename=lambda: "<ddp_magic>", transformer=like)
    except SyntaxError as error:
        lines = "".join(traceback.format_exception_only(error)).splitlines()
        raise errors.CellSyntaxError(error, lines) from None


def _write(text: str, wanted: SimpleNamespace) -> None:
    from ddp_magic.kernel.script.write import write  # not for a cell that runs

    with _misuse_in_one_line():
        print("\n".join(write(_prepare(text), wanted, _kernel().notebook, "capture")))  # noqa: T201


def _in_background(run: BackgroundRun) -> BackgroundRun:
    says = run.announcement() if run.background.detached else ()
    run.show_from_now_on(Outputs(get_ipython(), stays=True, owns_cell=False), says=says)
    return run


def _failure(
    made: Run, wanted: SimpleNamespace
) -> errors.DDPMagicError | errors.RunInterrupted | None:
    """Return the error to raise."""
    error = made.error
    if wanted.no_raise_error and not isinstance(error, KeyboardInterrupt):
        return None
    if error is not None and get_ipython() is None and hasattr(error, "add_note"):  # Python 3.11
        for line in error.details:  # Python itself shows an error's message and notes alone
            error.add_note(without_escapes(line))
    return error


def _kernel() -> controller.Controller:
    """Return the notebook's controller; in a plain script, make one."""
    with _creation:
        if controller.current is None:
            controller.current = controller.Controller(Notebook(vars(sys.modules["__main__"])))
            controller.current.preload(wanted=True)
            atexit.register(controller.current.close)
        return controller.current
