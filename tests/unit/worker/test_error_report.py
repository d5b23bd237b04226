"""How a rank describes what its cell raised."""

from __future__ import annotations

import builtins
import re
import signal
import sys
import traceback
from types import TracebackType
from typing import Any

import pytest

from ddp_magic.system.tracebacks import is_ours
from ddp_magic.wire.commands import RunCell
from ddp_magic.wire.worker_events import Error
from ddp_magic.worker.error_report import (
    MAX_CHARS,
    MAX_FRAMES,
    UNREADABLE,
    CellPlace,
    describe,
    describe_exit,
    describe_in_full,
    last_line,
    print_error,
    send_error,
)

pytestmark = pytest.mark.usefixtures("signal_handlers")

FILE = "/run/cell_5.py"
CELL = CellPlace(FILE, "Cell In[5]")


def _raised_in(source: str, file: str = FILE, **names: object) -> BaseException:
    """Run a cell's text; return what it raised."""
    try:
        exec(compile(source, file, "exec"), dict(names))
    except BaseException as error:  # noqa: BLE001 -- whatever the cell raises
        return error
    raise AssertionError


def _full(error: BaseException, formatter: Any = None, cell: CellPlace = CELL) -> Error:
    return describe_in_full(describe(error, 1, cell), error, cell, formatter)


class UnprintableError(Exception):
    """Its text cannot be made."""

    def __str__(self) -> str:
        raise ZeroDivisionError


class PoliteError(Exception):
    """Its text takes code of the user's."""

    calls = 0

    def __str__(self) -> str:
        PoliteError.calls += 1
        return "please"


def test_the_first_report_has_class_text_and_place() -> None:
    error = _raised_in("def f(x):\n    return 1 / x\n\nf(0)")
    report = describe(error, 3, CELL)
    assert (report.rank, report.ename, report.evalue) == (3, "ZeroDivisionError", str(error))
    assert report.line == 2  # the innermost line of the cell
    assert report.classes == (
        "builtins:ZeroDivisionError",
        "builtins:ArithmeticError",
    )
    places = [line for line in report.traceback if not line.startswith(" ")]
    assert places[-3:] == [
        "Cell In[5], line 4, in <module>",
        "Cell In[5], line 2, in f",
        "ZeroDivisionError: division by zero",
    ]


def test_the_traceback_begins_at_the_cell() -> None:
    """Without what has called it."""
    report = describe(_raised_in("1 / 0"), 0, CELL)
    assert report.traceback[0] == "Cell In[5], line 1, in <module>"


def test_a_called_functions_traceback_begins_at_the_function() -> None:
    """The cell is a line of ours then."""
    function: dict[str, Any] = {}
    exec(compile("def train():\n    1 / 0", "/home/user/train.py", "exec"), function)
    cell = CellPlace(FILE, "Cell", is_call=True)
    report = describe(_raised_in("train()", train=function["train"]), 0, cell)
    assert report.traceback[0] == 'File "/home/user/train.py", line 2, in train'


def test_an_error_outside_of_the_cell_has_no_line() -> None:
    """As one while the process group is created."""
    report = describe(_raised_in("1 / 0", "/lib/torch/x.py"), 0, CELL)
    assert report.line is None
    assert 'File "/lib/torch/x.py", line 1, in <module>' in report.traceback


def test_an_interrupt_that_is_taken_after_the_cell_has_the_line_of_its_error() -> None:
    """Stop cuts gloo's connections: the error of a wait may leave the cell before the interrupt."""
    interrupt = KeyboardInterrupt()
    interrupt.__context__ = _raised_in("\n1 / 0")
    assert describe(interrupt, 0, CELL).line == 2
    other = ValueError()
    other.__context__ = interrupt.__context__
    assert describe(other, 0, CELL).line is None


def test_no_frame_of_ours_is_reported() -> None:
    """Neither at once nor when it is formatted."""
    code = compile("def call(f): f()", is_ours.__code__.co_filename, "exec")
    names: dict[str, Any] = {}
    exec(code, names)
    error = _raised_in("call(lambda: 1 / 0)", call=names["call"])
    assert "frames.py" not in "".join(describe(error, 0, CELL).traceback)
    assert "frames.py" not in "".join(_full(error).traceback)


@pytest.mark.parametrize("error", [PoliteError(), ValueError(PoliteError())])
def test_the_first_report_takes_no_code_of_the_users(error: Exception) -> None:
    """Neither the exception's `__str__` nor an argument's."""
    PoliteError.calls = 0
    assert describe(error, 0, CELL).evalue == UNREADABLE
    assert PoliteError.calls == 0


@pytest.mark.parametrize(
    "error", [ValueError("no", 3, None), KeyError("k"), RuntimeError(), OSError(2, "gone")]
)
def test_the_text_of_builtin_exceptions_is_in_the_first_report(error: Exception) -> None:
    assert describe(error, 0, CELL).evalue == str(error)


def test_the_full_report_has_the_users_text() -> None:
    assert _full(PoliteError()).evalue == "please"


def test_a_text_that_cannot_be_made() -> None:
    """The class, the line and the frames are still reported."""
    report = _full(_raised_in("raise E", E=UnprintableError))
    assert (report.ename, report.evalue, report.line) == ("UnprintableError", UNREADABLE, 1)
    assert "UnprintableError" in report.traceback[-1]


def test_long_texts_are_cut() -> None:
    """No frame could carry them."""
    report = _full(ValueError("x" * 3 * MAX_CHARS))
    assert report.evalue.endswith("x ... (300,000 characters)")
    assert max(map(len, [report.evalue, *report.traceback])) < MAX_CHARS + 50


def test_the_shell_formats_from_the_cells_first_frame() -> None:
    """Its lines are what the notebook shows."""
    given: list[TracebackType | None] = []

    def formatter(_error: BaseException, tb: TracebackType | None) -> list[str]:
        given.append(tb)
        return ["formatted"]

    assert _full(_raised_in("1 / 0"), formatter).traceback == ("formatted",)
    (tb,) = given
    assert tb is not None
    assert tb.tb_frame.f_code.co_filename == FILE


def test_an_endless_recursion_is_shown_in_part() -> None:
    """Its first and last frames; IPython would take half a minute for all."""
    error = _raised_in("def f(n): return f(n + 1)\nf(0)")
    frames = []

    def formatter(_error: BaseException, tb: TracebackType | None) -> list[str]:
        frames.extend(traceback.extract_tb(tb))
        return ["formatted"]

    found = _full(error, formatter)
    assert len(frames) == MAX_FRAMES
    assert found.traceback[0] == "formatted"
    assert re.fullmatch(r"\(\d+ frames in the middle are not shown\)", found.traceback[-1])
    at_once = describe(_raised_in("def f(n): return f(n + 1)\nf(0)"), 1, CELL).traceback
    assert len(at_once) < 3 * MAX_FRAMES
    assert at_once[-2] == found.traceback[-1]


def test_a_formatter_that_raises_does_not_hide_the_error() -> None:
    """As the `__repr__` of a local variable, which IPython's verbose mode shows."""

    def formatter(_error: BaseException, _tb: TracebackType | None) -> list[str]:
        raise RuntimeError("repr")

    report = _full(_raised_in("1 / 0"), formatter)
    assert report.traceback[-1].strip() == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("where", ["text", "traceback"])
def test_an_interrupt_of_the_formatting_keeps_what_is_known(where: str) -> None:
    """Stop was pressed while it took for ever."""

    class SlowError(Exception):
        def __str__(self) -> str:
            if where == "text":
                raise KeyboardInterrupt
            return "known by now"

    def formatter(_error: BaseException, _tb: TracebackType | None) -> list[str]:
        raise KeyboardInterrupt

    error = _raised_in("raise E", E=SlowError)
    first = describe(error, 0, CELL)
    report = describe_in_full(first, error, CELL, formatter)
    assert report.evalue == (UNREADABLE if where == "text" else "known by now")
    assert report.traceback == first.traceback


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no exception groups, no notes")
def test_groups_and_notes_are_in_the_full_report() -> None:
    """Python's own formatting has them."""
    error = _raised_in(
        "inner = KeyError('k')\ninner.add_note('a note')\n"
        "raise BaseExceptionGroup('outer', [KeyboardInterrupt(), ExceptionGroup('in', [inner])])"
    )
    text = "".join(_full(error).traceback)
    for words in ("outer (2 sub-exceptions)", "KeyboardInterrupt", "KeyError: 'k'", "a note"):
        assert words in text


def test_causes_are_in_the_full_report() -> None:
    error = _raised_in("try:\n    1 / 0\nexcept Exception as e:\n    raise ValueError from e")
    text = "".join(_full(error).traceback)
    assert "direct cause" in text
    assert "ZeroDivisionError" in text


def test_two_reports_are_sent_and_sigterm_waits_between_them() -> None:
    """A peer that ends first must not take this rank's error with it."""
    sent: list[tuple[Error, object]] = []

    def send(event: Error) -> None:
        sent.append((event, signal.getsignal(signal.SIGTERM)))

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    send_error(PoliteError(), 2, CELL, send)
    (first, before), (second, meanwhile) = sent
    assert (first.evalue, second.evalue) == (UNREADABLE, "please")
    assert (before, meanwhile) == (signal.SIG_DFL, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_users_handler_of_sigterm_is_kept() -> None:
    def handler(*_: object) -> None: ...

    signal.signal(signal.SIGTERM, handler)
    send_error(ValueError(), 0, CELL, lambda _event: None)
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize(
    ("exit_code", "code", "message"),
    [
        (None, 0, ""),
        (0, 0, ""),
        (3, 3, ""),
        (256, 0, ""),
        (-1, 255, ""),
        (True, 1, ""),
        ("no data", 1, "no data"),
        (["a"], 1, "['a']"),
        (UnprintableError(), 1, UNREADABLE),
    ],
)
def test_sys_exit_by_the_interpreters_rules(exit_code: Any, code: int, message: str) -> None:
    finished = describe_exit(SystemExit(exit_code), 1)
    assert (finished.code, finished.message) == (code, message)


def test_a_cell_is_named_by_its_number() -> None:
    """Or not at all."""
    numbered = CellPlace.of(RunCell(path="/run/c.py", file="/nb/c.py", execution_count=5))
    assert (numbered.file, numbered.label) == ("/nb/c.py", "Cell In[5]")
    assert CellPlace.of(RunCell(path="/run/c.py")) == CellPlace("/run/c.py", "Cell")
    assert CellPlace.of(RunCell(path="/run/c.py", call=True)).is_call


def test_the_last_line() -> None:
    """One line for the agent's log."""
    assert last_line(OSError("no\nway")).startswith("OSError: no")
    assert re.fullmatch(r"ZeroDivisionError: .*", last_line(_raised_in("1 / 0")))


@pytest.mark.parametrize(
    ("source", "code", "text"),
    [
        (
            "1 / 0",
            1,
            r"process \d+, forked by rank 1, raised:\n.*line 1.*: division by zero\n+",
        ),
        ("raise SystemExit('bye')", 1, "bye\n"),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit", 0, ""),
    ],
)
def test_a_forked_process_that_leaves_the_cell_ends_as_an_interpreter(
    source: str, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def format_error(error: BaseException, tb: TracebackType | None) -> list[str]:
        return traceback.format_exception(type(error), error, tb)

    assert print_error(_raised_in(source), 1, CELL, format_error) == code
    shown = capsys.readouterr().err
    assert re.fullmatch(text, shown, re.DOTALL), shown
    assert not is_ours(shown)


def test_a_forked_process_at_the_end_of_the_cell_says_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert print_error(None, 1, CELL, lambda _error, _tb: []) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="has no groups of exceptions")
def test_a_group_of_errors_has_a_text() -> None:
    """It is Python's own, and asks none of the errors for theirs."""
    group = builtins.__dict__["ExceptionGroup"]("two", [UnprintableError(), ValueError(1)])
    assert describe(group, 0, CELL).evalue == "two (2 sub-exceptions)"
