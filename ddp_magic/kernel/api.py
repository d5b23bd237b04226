"""Runs from Python: for loops, functions and `try`, in a notebook or a plain script."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import dataclasses
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.core.inputtransformer2 import TransformerManager

from ddp_magic import errors
from ddp_magic.display.screen import CellScreen
from ddp_magic.kernel import cell, controller, pull
from ddp_magic.kernel.capture import Notebook
from ddp_magic.kernel.interrupts import without_frames
from ddp_magic.kernel.options import DEFAULTS, names_to_take, options_of
from ddp_magic.kernel.run import Run, interrupted_words

_CALL = "_result = _function(*_arguments)"


def launch(function: Callable[..., Any], *args: Any, **options: Any) -> Run:  # noqa: ANN401
    """Call a function on every rank.

    Args:
        function: Any function: the notebook's own, a script's, a module's, a lambda.
        *args: Its arguments; each rank gets its own copy, and arrays share their memory.
        **options: Those of `%%ddp`: `nproc_per_node=4`, `gpus="0,1"`, `time_limit=60`,
            `session="lab"`, `no_raise_error=True`, ...

    Returns:
        The run; its `results` are the function's values, one a rank.

    Raises:
        TypeError: There is no such option.
        ValueError: It cannot be had here.
        CaptureError: The function or an argument cannot travel.
        WorkerError: The function raised; of the exception's own class too.
        DDPMagicError: Whatever else went wrong; see `ddp_magic.errors`.
    """
    if "pull" in options:
        words = "launch has no option 'pull': the run's results are the function's values"
        raise errors.one_line(TypeError(words))
    wanted = _arguments(options)
    wanted.pull = (pull.Pull("_result", None),)
    made = _run(_CALL, wanted, {"_function": function, "_arguments": args})
    made.results = made.results.get("_result", [])
    if (error := _failure(made, wanted)) is not None:
        del made  # the traceback keeps this frame, which must not keep the results
        raise error
    return made


def run(text: str, **options: Any) -> Run:  # noqa: ANN401
    """Run the text of a cell, as `%%ddp` does.

    Args:
        text: The cell.
        **options: Those of `%%ddp`: `nproc_per_node=4`, `pull="loss@all"`, `argv=["--lr", "1"]`.

    Returns:
        The run; its `results` are the pulled values, by name.

    Raises:
        CellSyntaxError: The text is not Python.
        TypeError: There is no such option.
        ValueError: It cannot be had here.
        CaptureError: A name that the cell reads cannot travel.
        WorkerError: The cell raised; of the exception's own class too.
        DDPMagicError: Whatever else went wrong; see `ddp_magic.errors`.
    """
    wanted = _arguments(options)
    with _misuse_in_one_line():
        if not isinstance(text, str):
            raise TypeError(f"run takes the text of a cell, not {type(text).__name__}")
    made = _run(text, wanted, {})
    if (error := _failure(made, wanted)) is not None:
        del made  # as in `launch`
        raise error
    return made


@contextlib.contextmanager
def _misuse_in_one_line() -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise errors.one_line(error) from None


@_misuse_in_one_line()
def _arguments(options: dict[str, Any]) -> argparse.Namespace:
    if unknown := [name for name in options if name not in DEFAULTS]:
        raise TypeError(f"there is no option {unknown[0]!r}; there are {', '.join(DEFAULTS)}")
    wanted = argparse.Namespace(**{**DEFAULTS, **options})
    if isinstance(wanted.pull, str):
        wanted.pull = pull.parse(wanted.pull)
    if isinstance(wanted.capture, str):
        wanted.capture = names_to_take(wanted.capture)
    if wanted.show is not None:
        wanted.show = frozenset(wanted.show)
    if wanted.gpus is not None and not isinstance(wanted.gpus, str):
        wanted.gpus = ",".join(map(str, wanted.gpus))
    return wanted


def _run(text: str, wanted: argparse.Namespace, extra: dict[str, Any]) -> Run:
    made: Run | None = None
    with without_frames(lambda: interrupted_words(made)):
        home = _kernel()
        shell = get_ipython()
        argv = tuple(wanted.argv)
        with _misuse_in_one_line():
            options = home.join(wanted, argv) or options_of(wanted, argv)
        options = dataclasses.replace(options, call=bool(extra))
        manager = shell.input_transformer_manager if shell is not None else TransformerManager()
        try:
            ready = cell.prepare(
                text, above=(), filename="<ddp_magic>", transformer=cell.transformer_like(manager)
            )
        except SyntaxError as error:
            lines = "".join(traceback.format_exception_only(error)).splitlines()
            raise errors.CellSyntaxError(error, lines) from None
        made = home.make(ready, options, wanted.capture, extra=extra)
        home.execute(made, CellScreen(shell), cold=wanted.cold)
    return made


def _failure(
    made: Run, wanted: argparse.Namespace
) -> errors.DDPMagicError | errors.RunInterrupted | None:
    """Return the error that the caller is to get."""
    if wanted.no_raise_error and not isinstance(made.error, KeyboardInterrupt):
        return None
    return made.error


def _kernel() -> controller.Controller:
    """Return the notebook's, or a script's own."""
    if controller.current is None:
        controller.current = controller.Controller(Notebook(vars(sys.modules["__main__"])))
        controller.current.preload(wanted=True)
        atexit.register(controller.current.close)
    return controller.current
