"""The words for restarts: which rank, why, which attempt."""

from __future__ import annotations

from ddp_magic.display.diagnosis.restarts import (
    MAX_ATTEMPTS,
    Restart,
    closing_words,
    earlier_attempts,
    restart_after,
    restart_line,
)
from ddp_magic.errors import LaunchError, WorkerError, WorkerLostError


def _restart(number: int, reason: str = "rank 1 raised ValueError at line 3: boom") -> Restart:
    return Restart(
        number=number, rank=1, reason=reason, error=LaunchError(reason), elapsed_s=float(number)
    )


def _error(evalue: str = "boom") -> WorkerError:
    message = f"rank 1 raised ValueError at line 3: {evalue}"
    return WorkerError(message, rank=1, ename="ValueError", evalue=evalue, traceback=[])


def test_a_restart_has_the_rank_and_the_reason() -> None:
    """And the error with its traceback, for a Python user."""
    why = _error()
    restart = restart_after(why, number=1, elapsed_s=2.0)
    assert restart == Restart(
        number=1,
        rank=1,
        reason="rank 1 raised ValueError at line 3: boom",
        error=why,
        elapsed_s=2.0,
    )
    assert str(restart) == "restart 1 after 2.0 s: rank 1 raised ValueError at line 3: boom"


def test_a_long_reason_is_one_line() -> None:
    restart = restart_after(_error("boom\nsecond"), number=1, elapsed_s=2.0)
    assert restart.reason == "rank 1 raised ValueError at line 3: boom ..."


def test_an_end_without_a_culprit() -> None:
    """A keeper of torchrun's was killed: no rank is named."""
    restart = restart_after(LaunchError("the agent died"), number=2, elapsed_s=1.0)
    assert (restart.rank, restart.reason) == (None, "the agent died")


def test_a_dead_rank_keeps_its_own_reason() -> None:
    why = WorkerLostError("rank 1 was killed by SIGKILL (exit -9)", rank=1, code=-9)
    assert restart_after(why, number=1, elapsed_s=1.0).reason == why.message


def test_the_line_that_is_shown() -> None:
    assert restart_line(_restart(2), 3) == (
        "rank 1 raised ValueError at line 3: boom · restart 2 of 3"
    )


def test_the_closing_line() -> None:
    """Each reason once; the most of many are counted. Below an error, the number is enough."""
    assert closing_words([], with_reasons=True) == ""
    assert closing_words([_restart(1)], with_reasons=False) == "1 restart"
    assert closing_words([_restart(1, "a")], with_reasons=True) == "1 restart: a"
    same = [_restart(1, "a"), _restart(2, "a"), _restart(3, "b")]
    assert closing_words(same, with_reasons=True) == "3 restarts: a (2 times); b"
    many = [_restart(n, str(n)) for n in range(5)]
    assert closing_words(many, with_reasons=True) == "5 restarts: 0; 1; 3 more reasons"


def test_earlier_attempts_have_a_line_each() -> None:
    """Up to a limit: `Run.restarts` has them all."""
    assert earlier_attempts([_restart(1, "a"), _restart(2, "b")], 2) == [
        "attempt 1 of 3: a",
        "attempt 2 of 3: b",
    ]
    many = [_restart(n) for n in range(1, MAX_ATTEMPTS + 4)]
    lines = earlier_attempts(many, 100)
    assert len(lines) == MAX_ATTEMPTS + 1
    assert lines[-1] == "and 3 more: see the Run's restarts"
