"""Closing lines and `%ddp_status`: every state of a rank and of a run has its words."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest

from ddp_magic.display import status
from ddp_magic.display.diagnosis.restarts import Restart
from ddp_magic.display.status import SILENT_S, SessionStatus, Status
from ddp_magic.display.table import LiveTable
from ddp_magic.errors import LaunchError, RunInterrupted
from ddp_magic.wire.forkserver_status import ForkserverStatus
from ddp_magic.wire.kernel_events import Rejoined, Restarted, RunEvent, StackDumped
from ddp_magic.wire.messages import LOST_CONNECTION, CellNames, WorkerReady
from ddp_magic.wire.states import Phase, State
from tests.unit.display.records import NOW, make_record
from tests.unit.fakes import error, exited, finished, heartbeat, hello, idle, question, ready

NOON = 1_800_000_000.0  # s since the epoch
AT_NOON = time.strftime("%H:%M:%S", time.localtime(NOON))


def test_a_rank_that_awaits_something_has_no_stack_but_a_place() -> None:
    """The coroutine's frames are not on it."""
    record = make_record(2)
    record.ranks[0].line, record.ranks[0].call = 4, "asyncio.sleep"
    stacks = [StackDumped(rank=rank, frames=(), line=None) for rank in (0, 1)]
    lines = status.stack_lines(record, stacks)
    assert "    it awaits something at line 4, in asyncio.sleep" in lines
    assert "    not in the cell" in lines


# --- states -----------------------------------------------------------------------------------


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
    assert status.rank_state(make_record(1, *events).ranks[0], NOW) == words


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
    assert status.summary(record) == f"2 ranks · 5.5 s · {words}"
    assert status.summary(record, with_clock=True) == f"2 ranks · 5.5 s · {AT_NOON} · {words}"
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
    assert status.summary(record).split(" · ")[1] == words


def test_the_closing_line_says_why_it_failed() -> None:
    """In a line, which a long error does not fill; not what Stop or nobody has ended."""
    line = status.summary(make_record(state=State.FAILED, error=LaunchError("no room\nnowhere")))
    assert line == "2 ranks · 5.5 s · failed · no room ..."
    line = status.summary(make_record(state=State.FAILED, error=LaunchError("x" * 10_000)))
    assert len(line) < 300
    assert status.summary(make_record(state=State.CANCELLED, error=RunInterrupted("stopped"))) == (
        "2 ranks · 5.5 s · stopped"
    )


def test_one_rank_is_one() -> None:
    assert status.summary(make_record(1)).startswith("1 rank · ")
    assert " · 1 rank · " in repr(Status([make_record(1)]))


def test_how_many_collectives_were_checked() -> None:
    """Nothing without `--check`."""
    for count, words in ((0, "0 collectives"), (1, "1 collective"), (12, "12 collectives")):
        line = status.summary(make_record(state=State.SUCCEEDED, checked=count))
        assert line.endswith(f"ok · checked {words}")
    assert "checked" not in status.summary(make_record(state=State.SUCCEEDED))


def test_what_stays_in_the_ranks_is_said_once() -> None:
    """Up to eight names; a session's are still there."""
    names = CellNames(rank=0, names=(), values=("model", "loss"))
    line = status.summary(make_record(2, names, state=State.SUCCEEDED))
    assert line.endswith("ok · stayed in the ranks: model, loss (--pull NAME, or --session)")
    many = CellNames(rank=0, names=(), values=tuple("abcdefghij"))
    ok = State.SUCCEEDED
    assert "a, b, c, d, e, f, g, h and 2 more (" in status.summary(make_record(2, many, state=ok))
    assert "stayed" not in status.summary(make_record(2, names, state=ok, session="lab"))
    assert "stayed" not in status.summary(make_record(2, names, state=State.FAILED))


# --- %ddp_status ------------------------------------------------------------------------------


def test_nothing_has_run() -> None:
    assert repr(Status([])).startswith("Nothing has run yet. Start a cell with %%ddp")
    assert "Nothing has run yet" in Status([])._repr_html_()


def test_the_status_of_runs() -> None:
    """Each with a title and all its ranks, the time of each."""
    events = [hello(0), ready(0), finished(0), exited(0, 0, NOW - 1), hello(1), ready(1)]
    first = make_record(2, *events, state=State.SUCCEEDED)
    second = make_record(12)
    title, head, *rows, empty, other = repr(Status([first, second])).splitlines()[:6]
    started = time.strftime("%H:%M:%S", time.localtime(NOW - 5.5))
    assert title == (
        f"run 1127-1 · Cell In[3] · SUCCEEDED · 2 ranks · started {started} · 5.5 s · logs in /logs"
    )
    assert head.split() == ["rank", "pid", "device", "state", "time"]
    assert [row.split()[3:] for row in rows] == [["finished", "4.5", "s"], ["running", "5.5", "s"]]
    assert empty == ""
    assert other.startswith("run 1127-1")
    assert len(repr(Status([second])).splitlines()) == 14


def test_a_notebook_shows_the_status_as_html() -> None:
    markup = Status([make_record(2, ready(0, "cuda:<0>"))])._repr_html_()
    assert "<b>run 1127-1" in markup
    assert "cuda:&lt;0&gt;" in markup


def test_a_terminal_shows_the_status_as_text() -> None:
    shown: list[str] = []
    found = Status([make_record()])
    found._repr_pretty_(SimpleNamespace(text=shown.append), False)
    assert shown == [repr(found)]


def test_a_run_goes_on_in_the_status() -> None:
    """Its time is that of now."""
    record = make_record(1, WorkerReady(rank=0, time=NOW, device="cpu"), ended=None)
    record.started = time.time() - 120
    assert "2 min" in repr(Status([record])).splitlines()[2]


def test_sessions_stand_above_the_runs() -> None:
    """Their ranks that still live, and how each is ended."""
    session = SessionStatus("lab", "2 ranks on the CPU", {1: os.getpid(), 0: 2**22 + 1})
    head, rank, empty, *_ = repr(Status([make_record()], sessions=[session])).splitlines()
    assert head == "session lab · 2 ranks on the CPU · %ddp_stop lab"
    assert rank.startswith(f"  rank 1 · pid {os.getpid()} · ")
    assert rank.endswith(" MiB")
    assert empty == ""


def test_the_forkserver_stands_first() -> None:
    """What it holds, and what it leaves to the ranks, with the reason."""
    preloading = ForkserverStatus(
        state="ready",
        pid=77,
        pss_mib=1234.5,
        libraries=("torch", "numpy"),
        left_out={"jax": "it starts threads"},
    )
    assert repr(Status([make_record()], preloading)).splitlines()[:3] == [
        "forkserver · ready · pid 77 · 1,234 MiB",
        "  preloaded: torch, numpy",
        "  left to the ranks: jax (it starts threads)",
    ]


def test_a_forkserver_that_does_not_run() -> None:
    assert status.forkserver_lines(ForkserverStatus(state="off: macOS")) == [
        "forkserver · off: macOS"
    ]


# --- restarts ---------------------------------------------------------------------------------

RESTART = Restart(
    number=1,
    rank=1,
    reason="rank 1 raised ValueError at line 3: boom",
    error=LaunchError("boom"),
    elapsed_s=2.0,
)


def test_the_closing_line_says_why_ranks_were_restarted() -> None:
    """Unless the run failed: then the error says it."""
    record = make_record(2, state=State.SUCCEEDED, restarts=(RESTART,), max_restarts=3)
    assert status.summary(record) == f"2 ranks · 5.5 s · ok · 1 restart: {RESTART.reason}"
    record.state = State.FAILED
    assert status.summary(record) == "2 ranks · 5.5 s · failed · 1 restart"


def test_the_table_says_which_restart_it_is() -> None:
    fields = {"ended": None, "restarts": (RESTART,), "max_restarts": 3}
    record = make_record(2, Restarted(number=1), state=State.RUNNING, **fields)
    head, *_ = LiveTable().render(record)[0].splitlines()
    assert head.startswith("2 ranks on the CPU · starting · restart 1 of 3 · ")
    assert "restart 1 of 3" in Status.title(record)
    record.ended = NOW
    assert "1 restart ·" in Status.title(record)


def test_the_time_of_a_rank_is_that_of_its_attempt() -> None:
    fields = {"ended": None, "restarts": (RESTART,), "max_restarts": 3}
    record = make_record(1, Restarted(number=1), hello(0), state=State.RUNNING, **fields)
    assert "0.0 s" in repr(Status([record])).splitlines()[-1]
