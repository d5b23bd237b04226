"""Closing lines and `%ddp_status`: every state of a rank and of a run has its words."""

from __future__ import annotations

import os
import re
import time
from types import SimpleNamespace

from ddp_magic.display import status
from ddp_magic.display.diagnosis.restarts import Restart
from ddp_magic.display.labels import FONT
from ddp_magic.display.status import MAX_EARLIER, SessionStatus, Status
from ddp_magic.display.table import LiveTable
from ddp_magic.errors import LaunchError
from ddp_magic.wire.forkserver_status import ForkserverStatus
from ddp_magic.wire.kernel_events import Restarted, StackDumped
from ddp_magic.wire.states import State
from ddp_magic.wire.worker_events import WorkerReady
from tests.unit.display.records import NOW, make_record
from tests.unit.fakes import exited, finished, hello, ready

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


def test_stacks_name_the_nodes() -> None:
    record = make_record(2)
    record.ranks[1].node = "n2"
    lines = status.stack_lines(record, [])
    assert any(line.startswith("rank 0 · ") for line in lines)
    assert any(line.startswith("rank 1 on n2 · ") for line in lines)


# --- %ddp_status ------------------------------------------------------------------------------


def test_one_rank_is_one() -> None:
    assert " · 1 rank · " in repr(Status([make_record(1)]))


def test_nothing_has_run() -> None:
    assert repr(Status([])).startswith("Nothing has run yet. Start a cell with %%ddp")
    assert "Nothing has run yet" in Status([])._repr_html_()


def test_the_status_of_runs() -> None:
    """Each with a title and all its ranks, the time of each."""
    events = [hello(0), ready(0), finished(0), exited(0, 0, NOW - 1), hello(1), ready(1)]
    first = make_record(2, *events, state=State.SUCCEEDED)
    second = make_record(12)
    title, head, *rows, empty, earlier, other = repr(Status([first, second])).splitlines()
    started = time.strftime("%H:%M:%S", time.localtime(NOW - 5.5))
    assert title == (
        f"run 1127-1 · Cell In[3] · SUCCEEDED · 2 ranks · started {started} · 5.5 s · logs in /logs"
    )
    assert head.split() == ["rank", "pid", "device", "state", "time"]
    assert [row.split()[3:] for row in rows] == [["finished", "4.5", "s"], ["running", "5.5", "s"]]
    assert empty == ""
    assert earlier.startswith("earlier runs of this notebook")
    assert other.split(" · ")[:3] == ["  run 1127-1", "Cell In[3]", "12 ranks"]
    assert len(repr(Status([second])).splitlines()) == 14


def test_earlier_runs_have_a_line_and_those_that_go_on_a_table() -> None:
    """A notebook has had hundreds; which are listed is said by how they ended."""
    failed = make_record(state=State.FAILED, error=LaunchError("no GPU"))
    running = make_record(1, ended=None)
    ended = [make_record(state=State.SUCCEEDED) for _ in range(2 * MAX_EARLIER)]
    status = Status([make_record(), failed, running, *ended])
    text = repr(status)
    assert len(re.findall("^rank ", text, re.MULTILINE)) == 2
    assert " · 2 ranks · 5.5 s · failed · no GPU · started " in text
    assert text.count("run 1127-1") == 2 + MAX_EARLIER
    assert text.count(" · ok · ") == MAX_EARLIER - 1
    assert status._repr_html_().count("<table>") == 2


def test_a_notebook_shows_the_status_as_html() -> None:
    markup = Status([make_record(2, ready(0, "cuda:<0>"))])._repr_html_()
    assert "<b>run 1127-1" in markup
    assert "cuda:&lt;0&gt;" in markup


def test_the_status_of_a_background_run_looks_like_that_of_others() -> None:
    """Its host sends text: a title, and a table in the font of tables."""
    markup = Status([], background=["run 7 · Cell <1>\nrank  state\n0     waiting"])._repr_html_()
    assert markup.startswith("<div><b>run 7 · Cell &lt;1&gt;</b></div><pre style=")
    assert f'{FONT}">rank  state\n0     waiting</pre>' in markup
    assert "<pre" not in Status([], background=["run 7 · starting"])._repr_html_()


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
