"""What `%ddp_status` and `%ddp_stop` answer, with runs, sessions and hosts that are records."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from ddp_magic.kernel.control.answers import Answers
from ddp_magic.kernel.control.asked import Asked
from ddp_magic.kernel.past_runs import PastRuns
from ddp_magic.wire.forkserver_status import ForkserverStatus
from tests.unit.kernel.control.test_answers import FakeRun, FakeRuns, FakeSessions, _run


class FakeHosted(SimpleNamespace):
    """A background run."""

    def status(self) -> str:
        return f"run {self.id} · running"

    def stacks(self) -> str:
        return f"stacks of {self.id}"

    def stop(self) -> str:
        return f"run {self.id} ended"


class FakeBackground(list[FakeHosted]):
    """The background runs of all notebooks."""

    def going_on(self) -> list[FakeHosted]:
        return [run for run in self if run.is_ours]

    def going_on_anywhere(self) -> list[FakeHosted]:
        return list(self)

    def find_any(self, run_id: str) -> FakeHosted | None:
        return next((run for run in self if run.id.endswith(run_id)), None)


def _hosted(run_id: str, *, ours: bool = True, detached: bool = False) -> FakeHosted:
    return FakeHosted(id=run_id, is_ours=ours, background=SimpleNamespace(detached=detached))


def _asked(*runs: FakeRun, hosted: tuple[FakeHosted, ...] = (), sessions: str = "") -> Asked:
    kept = FakeSessions(SimpleNamespace(name=name) for name in sessions.split())
    own, past = FakeRuns(runs), PastRuns(lambda: (), [])
    answers = Answers(
        cast("Any", own), cast("Any", kept), lambda: ForkserverStatus(state="off"), past
    )
    return Asked(
        answers, cast("Any", own), cast("Any", kept), cast("Any", FakeBackground(hosted)), past
    )


def test_stacks_of_everything_that_goes_on() -> None:
    """Of this process's runs, and of the background runs that the status shows."""
    hosts = (
        _hosted("2-1"),
        _hosted("3-1", ours=False, detached=True),
        _hosted("4-1", ours=False),
    )
    answer = _asked(_run("1-1"), hosted=hosts).stacks()
    assert "in f" in answer
    assert answer.endswith("stacks of 2-1\n\nstacks of 3-1")
    assert _asked(hosted=hosts[:1]).stacks() == "stacks of 2-1"
    with pytest.raises(ValueError, match="no run is going on"):
        _asked(_run("1-1", ended=True)).stacks()


def test_stacks_of_one_run() -> None:
    """Of this process, of a host; one of another notebook's can be named too."""
    asked = _asked(_run("1-1"), hosted=(_hosted("4-1", ours=False),))
    assert "run 1-1" in asked.stacks("1-1")
    assert asked.stacks("4-1") == "stacks of 4-1"
    with pytest.raises(ValueError, match="unknown run '9'"):
        asked.stacks("9")


def test_the_status_of_one_run() -> None:
    asked = _asked(_run("1-1"), hosted=(_hosted("4-1", ours=False),))
    assert "run 4-1 · running" in repr(asked.status("4-1"))
    assert "run 1-1" in repr(asked.status("1-1"))
    with pytest.raises(ValueError, match="%ddp_status without it lists the runs"):
        asked.status("9")


def test_what_can_be_stopped_is_named() -> None:
    asked = _asked(hosted=(_hosted("2-1"), _hosted("4-1", ours=False)), sessions="lab")
    assert asked.stoppable() == ["lab", "2-1", "4-1"]
    there = r"\(running: lab, 2-1; of other notebooks: 4-1\)"
    with pytest.raises(ValueError, match=f"give its name or id, or --all {there}"):
        asked.stop(None)
    with pytest.raises(ValueError, match=f"unknown session or run 'x' {there}"):
        asked.stop("x")
    with pytest.raises(ValueError, match="there is no session and no background run"):
        _asked().stop(None)


def test_all_are_those_of_this_notebook() -> None:
    """Others are named, and go on."""
    other = _hosted("4-1", ours=False)
    assert _asked(hosted=(_hosted("2-1"), other)).stop_all() == ["run 2-1 ended"]
    none = "this notebook has no session and no background run"
    assert _asked().stop_all() == [none]
    assert _asked(hosted=(other,)).stop_all() == [f"{none} (of other notebooks: 4-1)"]


def test_one_is_stopped() -> None:
    """Without a name, the only background run of this notebook."""
    hosts = (_hosted("2-1"), _hosted("4-1", ours=False))
    assert _asked(hosted=hosts).stop(None) == "run 2-1 ended"
    assert _asked(hosted=hosts).stop("4-1") == "run 4-1 ended"
    assert _asked(hosted=hosts, sessions="lab").stop("lab") == "session lab ended"
    run = _run("1-1")
    assert "was asked to stop" in _asked(run).stop("1-1")
    assert run.stopped == 1
