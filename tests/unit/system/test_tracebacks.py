"""Tracebacks without the frames of ddp_magic."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import CodeType

import pytest

import ddp_magic
from ddp_magic.system.tracebacks import (
    end_stacks_at_ours,
    is_ours,
    text_without_ours,
    warnings_without_ours,
    without_ours,
    write_tracebacks_without_ours,
)
from tests.limits import HANG_S

PACKAGE = Path(ddp_magic.__file__).parent


def _function(file: str, source: str) -> dict[str, object]:
    """Define `f` as if it stood in a file."""
    code: CodeType = compile(source, file, "exec")
    names: dict[str, object] = {}
    exec(code, names)
    return names


OURS = _function(str(PACKAGE / "worker.py"), "def f(g):\n    g()\n")["f"]
LIBRARY = _function(str(PACKAGE / "sam/training/loop.py"), "def f(g):\n    g()\n")["f"]


def _raise() -> None:
    raise ValueError("boom")


def _caught(call: object) -> BaseException:
    try:
        OURS(call)  # type: ignore[operator]
    except Exception as error:  # noqa: BLE001 -- whatever was raised
        return error
    raise AssertionError


def _files(error: BaseException) -> list[str]:
    files, step = [], error.__traceback__
    while step is not None:
        files.append(step.tb_frame.f_code.co_filename)
        step = step.tb_next
    return files


def test_our_frames_go_and_the_preludes_stay() -> None:
    """In the middle of a traceback too."""
    error = _caught(lambda: LIBRARY(lambda: OURS(_raise)))  # type: ignore[operator]
    assert sum(map(is_ours, _files(error))) == 2
    assert without_ours(error) is error
    files = _files(error)
    assert not any(map(is_ours, files))
    assert str(PACKAGE / "sam/training/loop.py") in files
    assert files[-1] == __file__


def test_causes_and_groups_too() -> None:
    """Whatever is shown with an exception; a circle of causes does no harm."""
    inner, cause = _caught(_raise), _caught(_raise)
    inner.__cause__, cause.__context__ = cause, inner
    outer = _caught(_raise)
    outer.exceptions = [inner]  # type: ignore[attr-defined]  # as an ExceptionGroup's
    without_ours(outer)
    assert not any(is_ours(file) for e in (outer, inner, cause) for file in _files(e))


def test_an_error_that_is_all_ours_has_no_frames() -> None:
    """As one that is raised before the cell."""
    error = _caught(1)  # it cannot be called
    error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
    assert without_ours(error).__traceback__ is None


@pytest.mark.parametrize("indent", ["", "  "])
def test_text(indent: str) -> None:
    """What another process has written: our lines go, with their source."""
    lines = [
        "Traceback (most recent call last):",
        f'  File "{PACKAGE}/agent.py", line 3, in serve',
        "    launch(spec, ranks)",
        "    ^^^^^^^^^^^^^^^^^^^",
        '  File "/lib/torch/agent.py", line 9, in run',
        "    self.start()",
        "OSError: no",
    ]
    kept = text_without_ours(indent + line for line in lines)
    assert kept == [indent + lines[i] for i in (0, 4, 5, 6)]


@pytest.mark.parametrize(
    ("file", "place"),
    [
        (f"{PACKAGE}/worker/shell.py", "sys:1: UserWarning: hm\n"),
        (f"{PACKAGE}/sam/models/model.py", f"{PACKAGE}/sam/models/model.py:5: UserWarning: hm\n"),
        ("/nb/cell.py", "/nb/cell.py:5: UserWarning: hm\n"),
    ],
)
def test_a_warning_has_no_place_of_ours(file: str, place: str) -> None:
    """`warnings._formatwarnmsg_impl` is what every way to show a warning calls in the end."""
    with warnings_without_ours():
        assert warnings.formatwarning("hm", UserWarning, file, 5).startswith(place)
    assert warnings.formatwarning("hm", UserWarning, file, 5).startswith(f"{file}:5: ")


@pytest.fixture
def _ended_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traceback, "walk_stack", traceback.walk_stack)  # put back afterwards
    end_stacks_at_ours()


IPYTHON = _function("/site-packages/IPython/core/interactiveshell.py", "def f(g):\n    g()\n")["f"]


@pytest.mark.usefixtures("_ended_stacks")
def test_a_stack_begins_at_the_users_code(capsys: pytest.CaptureFixture[str]) -> None:
    """As it is printed, extracted, or walked from here; IPython's frames above ours go too."""
    seen: list[list[str]] = []

    def inner() -> None:
        traceback.print_stack()
        seen.append([frame.name for frame in traceback.extract_stack()])
        seen.append([frame.f_code.co_name for frame, _ in traceback.walk_stack(None)])

    def outer() -> None:
        inner()

    OURS(lambda: IPYTHON(outer))  # type: ignore[operator]
    names = [["<lambda>", "f", "outer", "inner"], ["inner", "outer", "f", "<lambda>"]]
    assert seen == names  # the lambda stands between ours and IPython: it is the user's
    seen.clear()
    capsys.readouterr()
    _function(str(PACKAGE / "worker.py"), "def f(g, h):\n    g(h)\n")["f"](IPYTHON, outer)  # type: ignore[operator]
    assert seen == [["outer", "inner"], ["inner", "outer"]]
    assert "ddp_magic/" not in capsys.readouterr().err


@pytest.mark.usefixtures("_ended_stacks")
def test_a_stack_without_us_is_whole() -> None:
    """In a thread of the user's."""
    assert [frame.name for frame in traceback.extract_stack()][-1] == (
        "test_a_stack_without_us_is_whole"
    )
    assert len(traceback.extract_stack()) > 5


@pytest.fixture
def write_tracebacks(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """For the test to call: pytest, up to 8.3, catches threads' exceptions once it has begun."""

    def begin() -> None:
        kept = traceback.TracebackException.__init__
        monkeypatch.setattr(traceback.TracebackException, "__init__", kept)  # put back afterwards
        monkeypatch.setattr(traceback, "walk_tb", traceback.walk_tb)
        monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
        write_tracebacks_without_ours()

    return begin


def _chained() -> None:
    try:
        OURS(_raise)  # type: ignore[operator]
    except ValueError as error:
        raise RuntimeError("and then") from error


@pytest.mark.parametrize("raise_", [_raise, _chained])
@pytest.mark.parametrize(
    "write",
    [
        traceback.print_exc,
        lambda: sys.stderr.write(logging.Formatter().formatException(sys.exc_info())),  # type: ignore[arg-type]
        lambda: sys.stderr.write(traceback.format_exc()),  # as `multiprocessing` sends it home
    ],
)
def test_what_python_writes_has_no_frame_of_ours(
    raise_: Callable[[], None],
    write: Callable[[], object],
    write_tracebacks: Callable[[], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also of its causes; the exception itself keeps its traceback."""
    write_tracebacks()
    error = None
    try:
        OURS(raise_)  # type: ignore[operator]
    except Exception as caught:  # noqa: BLE001 -- whatever was raised
        write()
        error = caught
    text = capsys.readouterr().err
    assert "boom" in text
    assert "in _raise" in text
    assert "ddp_magic/worker.py" not in text
    assert error is not None
    assert any(map(is_ours, _files(error)))


def test_a_thread_ends_without_a_frame_of_ours(
    write_tracebacks: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    write_tracebacks()
    thread = threading.Thread(target=lambda: OURS(_raise), name="T")  # type: ignore[operator]
    thread.start()
    thread.join(HANG_S)
    text = capsys.readouterr().err
    assert "Exception in thread T" in text
    assert "in _raise" in text
    assert "ddp_magic/worker.py" not in text


def test_a_traceback_of_ours_alone_is_written(
    write_tracebacks: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is a bug of ours."""
    write_tracebacks()
    thread = threading.Thread(target=OURS, args=(1,))  # type: ignore[arg-type]
    thread.start()
    thread.join(HANG_S)
    assert "ddp_magic/worker.py" in capsys.readouterr().err
