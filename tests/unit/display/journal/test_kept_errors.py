"""Errors of background runs, from the host to the notebook that waits."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ddp_magic import errors
from ddp_magic.display.journal.kept_errors import as_json, from_json, from_lines
from ddp_magic.errors import DDPMagicError, RunInterrupted, WorkerError, WorkerLostError


def _again(error: DDPMagicError | RunInterrupted, names: Any = None) -> DDPMagicError | Any:
    return from_json(json.loads(json.dumps(as_json(error))), names or {})


@pytest.mark.parametrize(
    "error",
    [
        WorkerLostError("rank 1 died", rank=1, code=-9, details=["rank 0: waits"]),
        errors.LaunchError("no agent", details=["log", "lines"]),
        errors.TimeLimitError("too long"),
        errors.MismatchError("collective #1 differs", details=["line 3"]),
        errors.PullError("`x` did not arrive"),
        RunInterrupted("rank 0 stopped", details=["it waited"]),
        errors.one_line(ValueError("of another kind")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_shown_as_before(error: DDPMagicError) -> None:
    again = _again(error)
    assert str(again) == str(error)
    assert again.details == error.details
    if type(error).__module__ == "ddp_magic.errors":
        assert type(again) is type(error) or isinstance(error, ValueError)
    shown = [line.partition(": ")[2] for line in again._render_traceback_()]
    assert shown == [line.partition(": ")[2] for line in error._render_traceback_()]


def test_a_lost_rank_keeps_its_code() -> None:
    again = _again(WorkerLostError("rank 1 died", rank=1, code=-9))
    assert (again.rank, again.code) == (1, -9)


def _raised(classes: list[str]) -> WorkerError:
    return WorkerError(
        "rank 1 raised Mine: no",
        rank=1,
        ename="Mine",
        evalue="no",
        traceback=["Traceback", "Mine: no"],
        details=["rank 1 of 2 raised:", "Traceback", "Mine: no"],
        shown="short",
        classes=classes,
    )


def test_the_ranks_exception_is_of_the_notebooks_class() -> None:
    """Which the host does not have."""

    class Mine(Exception): ...  # noqa: N818 -- a user's

    error = _raised(["__main__:Mine", "builtins:Exception"])
    again = _again(error, {"Mine": Mine})
    assert isinstance(again, Mine)
    assert isinstance(again, WorkerError)
    assert again._render_traceback_() == error._render_traceback_()
    assert (again.rank, again.ename, again.traceback) == (1, "Mine", ("Traceback", "Mine: no"))


def test_a_class_that_is_unknown_here_does_no_harm() -> None:
    assert type(_again(_raised(["elsewhere:Mine"]))) is WorkerError


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (errors.PullError("no x", details=["a"]), errors.PullError, "no x"),
        (RunInterrupted("stopped", details=["a"]), RunInterrupted, "stopped"),
        (_raised([]), DDPMagicError, "WorkerError: short"),
    ],
)
def test_of_some_errors_only_the_lines_are_left(error: Any, kind: type, message: str) -> None:
    """As on a full disk."""
    again = from_lines(error._render_traceback_())
    assert type(again) is kind
    assert str(again) == message
    assert list(again.details) == error._render_traceback_()[:-1]
