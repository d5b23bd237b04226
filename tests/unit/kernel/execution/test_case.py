"""What is put together for a verdict: from the run, its stop, and its ranks' collectives."""

from __future__ import annotations

from pathlib import Path

from ddp_magic.display.diagnosis.name_hints import Surroundings
from ddp_magic.display.diagnosis.verdict import StopReason
from ddp_magic.display.rank import Rank
from ddp_magic.display.record import RunRecord
from ddp_magic.errors import RunInterrupted, WorkerError
from ddp_magic.kernel.execution.case import Case
from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.execution.stop import Stopper
from ddp_magic.kernel.watch.collective_watch import CollectiveWatch
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.kernel_events import GroupEnded, Restarted, RunEvent
from ddp_magic.wire.states import State
from tests.unit.fakes import FakeGroup, done, error, exited, hello, ready


class Scene:
    """A run of two ranks that has ended."""

    def __init__(self, directory: Path, *events: RunEvent, max_restarts: int = 0) -> None:
        logs = RunDirectory(directory)
        ranks = [Rank(rank=0), Rank(rank=1)]
        self.run = RunRecord(
            id="run-1", label="Cell", log_directory=logs, ranks=ranks, max_restarts=max_restarts
        )
        for event in (*map(hello, range(2)), *map(ready, range(2)), *events):
            self.run.take(event)
        self.watch = CollectiveWatch(Options(nproc=2), logs, 5.0)
        self.stopper = Stopper(
            FakeGroup(directory), ranks, stack_of=lambda _: None, time_limit_s=None, kept=False,
            again="press Stop again",
        )  # fmt: skip
        around = Surroundings({}, lambda name: ("Cell In[2]", "lab") if name == "x" else ("", ""))
        self.case = Case("x\n", around, prelude=(), time_limit_s=None)

    def verdict(self) -> tuple[State, BaseException | None]:
        return self.case.verdict(self.run, self.stopper, self.watch)

    def restart(self, number: int = 1, *, agent_died: bool = False) -> list[str]:
        event = Restarted(number=number, agent_died=agent_died)
        restart, lines = self.case.restart(self.run, event, self.stopper, self.watch)
        self.run.restarts += (restart,)
        return lines


def test_success(tmp_path: Path) -> None:
    assert Scene(tmp_path, *done(0), *done(1), GroupEnded()).verdict() == (State.SUCCEEDED, None)


def test_a_stop_is_the_reason(tmp_path: Path) -> None:
    scene = Scene(tmp_path, GroupEnded())
    scene.stopper.press()
    assert scene.stopper.look(elapsed_s=1.0, mismatch=False, starting=False) is StopReason.INTERRUPT
    state, error = scene.verdict()
    assert state is State.CANCELLED
    assert isinstance(error, RunInterrupted)


def test_where_a_missing_name_could_have_come_from(tmp_path: Path) -> None:
    """It is not known any more once the case is closed."""
    missing = error(1, "name 'x' is not defined", ename="NameError", classes=("NameError",))
    scene = Scene(tmp_path, missing, exited(1, 1), GroupEnded())
    for closed in (False, True):
        _, found = scene.verdict()
        assert isinstance(found, WorkerError)
        assert any("Cell In[2]" in line for line in found.details) is not closed
        scene.case.close()


def test_a_restart_has_its_reason(tmp_path: Path) -> None:
    """The error of the last attempt names those before."""
    scene = Scene(tmp_path, error(1), exited(1, 1), max_restarts=1)
    reason = "rank 1 raised ValueError at line 3: boom"
    assert scene.restart() == [f"{reason} · restart 1 of 1"]
    scene.run.take(GroupEnded())
    _, found = scene.verdict()
    assert isinstance(found, WorkerError)
    assert found.details[-1] == f"attempt 1 of 2: {reason}"


def test_an_attempt_whose_agent_died(tmp_path: Path) -> None:
    """That the ranks lost each other explains nothing; the run as a whole goes on."""
    for died in (False, True):
        lost = error(0, "Connection closed by peer")
        scene = Scene(tmp_path, lost, exited(0, 1), max_restarts=1)
        (line,) = scene.restart(agent_died=died)
        assert line.startswith("the agent died") is died
        assert scene.run.group_end is None
