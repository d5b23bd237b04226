"""A run and its ranks in a few words."""

from __future__ import annotations

import time

import pytest

from ddp_magic.display.diagnosis.restarts import Restart
from ddp_magic.display.run_words import SILENT_S, rank_state, summary
from ddp_magic.display.table import LiveTable
from ddp_magic.errors import LaunchError, RunInterrupted
from ddp_magic.wire.kernel_events import Rejoined, RunEvent
from ddp_magic.wire.states import Phase, State
from ddp_magic.wire.worker_events import LOST_CONNECTION, CellNames
from tests.unit.display.records import NOW, make_record
from tests.unit.fakes import error, exited, finished, heartbeat, hello, idle, question, ready

NOON = 1_800_000_000.0  # s since the epoch
AT_NOON = time.strftime("%H:%M:%S", time.localtime(NOON))
RESTART = Restart(
    number=1,
    rank=1,
    reason="rank 1 raised ValueError at line 3: boom",
    error=LaunchError("boom"),
    elapsed_s=2.0,
)


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([], "waiting"),
        ([hello(0)], "starting"),
        ([hello(0), ready(0)], "running"),
        ([Rejoined(rank=0, pid=5, device="cpu", log_bytes=0)], "running"),
        ([ready(0), heartbeat(0, 3, time=NOW)], "running"),
        ([ready(0), heartbeat(0, phase=Phase.EXITING, time=NOW)], "exiting"),
        ([ready(0), heartbeat(0, 3, time=NOW - SILENT_S - 3)], "silent for 8 s"),
        ([ready(0), finished(0), idle(0)], "finished"),
        ([ready(0), finished(0), exited(0, 0)], "finished"),
        ([ready(0), exited(0, 0)], "finished"),
        ([ready(0), error(0, ename="KeyError")], "raised KeyError"),
        ([ready(0), error(0, ename="KeyError"), exited(0, 1)], "raised KeyError"),
        ([ready(0), question(0), heartbeat(0, 3, time=NOW)], "asks"),
        ([ready(0), error(0, ename="KeyError", held=True)], "raised KeyError"),
        ([ready(0), error(0, ename="KeyError", held=True), question(0)], "raised KeyError, asks"),
        ([ready(0), exited(0, -9)], "killed by SIGKILL"),
        ([ready(0), finished(0, 3), exited(0, 3)], "exit code 3"),
        ([ready(0), exited(0, 3)], "exited with code 3"),
        (
            [ready(0), exited(0, LOST_CONNECTION)],
            "lost its connection to the notebook: its code closed a file descriptor that it had "
            "not opened",
        ),
    ],
)
def test_every_state_of_a_rank(events: list[RunEvent], words: str) -> None:
    assert rank_state(make_record(1, *events).ranks[0], NOW) == words


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (State.PENDING, "starting"),
        (State.RUNNING, "running"),
        (State.SUCCEEDED, "ok"),
        (State.FAILED, "failed"),
        (State.CANCELLED, "stopped"),
    ],
)
def test_every_state_of_a_run(state: State, words: str) -> None:
    """In the closing line and in the table's headline, with the time of day."""
    record = make_record(state=state, started=NOON - 5.5, ended=NOON)
    assert summary(record) == f"2 ranks · 5.5 s · {words}"
    assert summary(record, with_clock=True) == f"2 ranks · 5.5 s · {AT_NOON} · {words}"
    headline = LiveTable().render(record)[0].splitlines()[0]
    assert headline.startswith(f"2 ranks on the CPU · {words} · 6 s · since ")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (60, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (7260, "2 h 1 min"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    record = make_record(started=0.0, ended=seconds)
    assert summary(record).split(" · ")[1] == words


def test_the_closing_line_says_why_it_failed() -> None:
    """In a line, which a long error does not fill; not what Stop or nobody has ended."""
    line = summary(make_record(state=State.FAILED, error=LaunchError("no room\nnowhere")))
    assert line == "2 ranks · 5.5 s · failed · no room ..."
    line = summary(make_record(state=State.FAILED, error=LaunchError("x" * 10_000)))
    assert len(line) < 300
    assert summary(make_record(state=State.CANCELLED, error=RunInterrupted("stopped"))) == (
        "2 ranks · 5.5 s · stopped"
    )


def test_one_rank_is_one() -> None:
    assert summary(make_record(1)).startswith("1 rank · ")


def test_how_many_collectives_were_checked() -> None:
    """Nothing without `--check`."""
    for count, words in ((0, "0 collectives"), (1, "1 collective"), (12, "12 collectives")):
        line = summary(make_record(state=State.SUCCEEDED, checked=count))
        assert line.endswith(f"ok · checked {words}")
    assert "checked" not in summary(make_record(state=State.SUCCEEDED))


def test_what_stays_in_the_ranks_is_said_once() -> None:
    """Up to eight names; a session's are still there."""
    names = CellNames(rank=0, names=(), values=("model", "loss"))
    line = summary(make_record(2, names, state=State.SUCCEEDED))
    assert line.endswith("ok · stayed in the ranks: model, loss (--pull NAME, or --session)")
    many = CellNames(rank=0, names=(), values=tuple("abcdefghij"))
    ok = State.SUCCEEDED
    assert "a, b, c, d, e, f, g, h and 2 more (" in summary(make_record(2, many, state=ok))
    assert "stayed" not in summary(make_record(2, names, state=ok, session="lab"))
    assert "stayed" not in summary(make_record(2, names, state=State.FAILED))


def test_the_closing_line_says_why_ranks_were_restarted() -> None:
    """Unless the run failed: then the error says it."""
    record = make_record(2, state=State.SUCCEEDED, restarts=(RESTART,), max_restarts=3)
    assert summary(record) == f"2 ranks · 5.5 s · ok · 1 restart: {RESTART.reason}"
    record.state = State.FAILED
    assert summary(record) == "2 ranks · 5.5 s · failed · 1 restart"
