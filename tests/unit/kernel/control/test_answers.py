"""What a kernel answers to a terminal, with runs and sessions that are records."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ddp_magic.display.rank import Rank
from ddp_magic.kernel.control.answers import Answers
from ddp_magic.kernel.past_runs import PastRuns
from ddp_magic.wire.forkserver_status import ForkserverStatus
from ddp_magic.wire.kernel_events import StackDumped
from ddp_magic.wire.states import State
from tests.unit.kernel.test_past_runs import run as leave_run


class FakeRun(SimpleNamespace):
    """A run that counts how often it was stopped."""

    def stop(self) -> None:
        self.stopped += 1

    def stacks(self) -> list[StackDumped]:
        return [StackDumped(rank=0, frames=("Cell In[1], line 3, in f",), line=3)]


def _run(run_id: str, *, ended: bool = False, session: str = "") -> FakeRun:
    return FakeRun(
        id=run_id, label="Cell In[1]", state=State.RUNNING, session=session, stopped=0,
        started=time.time(), ended=time.time() if ended else None, elapsed_s=1.0, logs="/logs",
        ranks=[Rank(rank=0, pid=7), Rank(rank=1, pid=8)], waits=("rank 0 waits",), background=None,
        restarts=(), max_restarts=0, where="", fewest=0,
    )  # fmt: skip


class FakeRuns(list[FakeRun]):
    def find(self, run_id: str) -> FakeRun | None:
        return next((run for run in self if run.id.endswith(run_id)), None)


class FakeSessions(list[Any]):
    def end(self, name: str) -> str:
        return f"session {name} ended"

    def end_all(self) -> list[str]:
        ended = [self.end(session.name) for session in self]
        self.clear()
        return ended


def _answers(*runs: FakeRun, sessions: tuple[str, ...] = ()) -> Answers:
    kept = FakeSessions(SimpleNamespace(name=name) for name in sessions)
    return Answers(
        cast("Any", FakeRuns(runs)),
        cast("Any", kept),
        lambda: cast("ForkserverStatus", None),
        PastRuns(lambda: (), []),
    )


def test_the_background_runs_of_a_notebook_are_its_own(tmp_path: Path) -> None:
    """Those that have ended stand apart from those of notebooks that have ended."""
    leave_run(tmp_path, "0101-000000-6-1")
    answers = Answers(
        cast("Any", FakeRuns()),
        cast("Any", FakeSessions()),
        lambda: ForkserverStatus(state="off"),
        PastRuns(lambda: (), [tmp_path]),
        lambda: ["run 1-10 · running"],
        lambda: ["run 1-9 · ok"],
    )
    busy = "background runs of this notebook:\n  run 1-10 · running"
    own = "background runs of this notebook that have ended:\n  run 1-9 · ok"
    # A terminal lists the others itself.
    assert answers.answer(["status"]).endswith(f"{busy}\n\n{own}")
    shown = repr(answers.status(["run 1-10 · running"])).split("\n\n")
    assert shown[1:3] == ["run 1-10 · running", own]
    assert shown[3].startswith("of notebooks that have ended")
    assert "run 0101-000000-6-1" in shown[3]


def test_what_goes_on_in_the_background_has_run() -> None:
    """Its host tells the terminal the rest; this process must not say that nothing has run."""
    answers = Answers(
        cast("Any", FakeRuns()),
        cast("Any", FakeSessions()),
        lambda: ForkserverStatus(state="off"),
        PastRuns(lambda: (), []),
        lambda: ["run 1-10 · running"],
    )
    assert "Nothing has run" not in answers.answer(["status"])


def test_the_stacks_of_what_goes_on() -> None:
    """With who waits for whom, and a word on a rank that wrote nothing."""
    answer = _answers(_run("1-2"), _run("1-1", ended=True)).answer(["stacks"])
    assert "1-1" not in answer
    assert answer.splitlines()[1:] == [
        "rank 0 waits",
        "rank 0 · pid 7 · waiting",
        "    Cell In[1], line 3, in f",
        "rank 1 · pid 8 · waiting",
        "    it wrote no stack: its process may be stopped",
    ]


def test_the_only_run_is_stopped() -> None:
    run = _run("1-2")
    assert "run 1-2 was asked to stop" in _answers(run, _run("1-1", ended=True)).answer(["stop"])
    assert run.stopped == 1


def test_a_session_is_ended_and_its_cell_stopped() -> None:
    """A session that is in use cannot be ended: what uses it is stopped."""
    run = _run("1-2", session="lab")
    answers = _answers(run, sessions=("lab", "idle"))
    assert answers.answer(["stop", "idle"]) == "session idle ended"
    assert "run 1-2 was asked to stop" in answers.answer(["stop", "lab"])
    assert run.stopped == 1


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["stop", "9"], "unknown session or run '9'"),
        (["stop", "1-1"], "run 1-1 has ended"),
        (["stop"], r"several runs are going on: give the id of one \(1-3, 1-2\)"),
        (["stacks", "9"], "unknown run '9'"),
        (["status", "9"], "unknown run '9'"),
        (["dance"], "unknown question"),
    ],
)
def test_what_cannot_be_answered(words: list[str], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        _answers(_run("1-3"), _run("1-2"), _run("1-1", ended=True)).answer(words)


def test_nothing_goes_on() -> None:
    for verb in ("stop", "stacks"):
        with pytest.raises(ValueError, match="no run is going on"):
            _answers(_run("1-1", ended=True)).answer([verb])
