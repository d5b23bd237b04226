"""A run from its start to its end, on a fake group that plays its ranks."""

from __future__ import annotations

import dataclasses
import errno
import pickle
import time
from pathlib import Path
from typing import Any

import pytest

from ddp_magic.display.question_box import Reply
from ddp_magic.display.record import Background
from ddp_magic.errors import (
    LaunchError,
    MismatchError,
    PullError,
    RunInterrupted,
    TimeLimitError,
    WorkerError,
    WorkerLostError,
)
from ddp_magic.kernel.cell import Cell
from ddp_magic.kernel.execution.run import Run
from ddp_magic.kernel.execution.run_code import CodeFiles
from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.interrupts import interrupted_words
from ddp_magic.kernel.values.capture import Capture
from ddp_magic.kernel.values.names import Names
from ddp_magic.kernel.values.pull import Pull
from ddp_magic.kernel.watch.call_check import LOOK_S
from ddp_magic.wire.calls import CollectiveCall, first_line
from ddp_magic.wire.commands import Answer
from ddp_magic.wire.kernel_events import (
    Doing,
    GroupEnded,
    Note,
    PulledValues,
    QuestionClosed,
    QuestionOpened,
    RunEvent,
    StackDumped,
)
from ddp_magic.wire.memory import Segment
from ddp_magic.wire.states import State
from ddp_magic.wire.worker_events import CellNames, DebuggerQuit, Imported, Interrupted, Results
from tests.unit.fakes import (
    EARLY,
    LATE,
    Batch,
    FakeBox,
    FakeGroup,
    FakeScreen,
    done,
    error,
    exited,
    finished,
    hello,
    idle,
    interrupted,
    press_stop,
    question,
    ready,
    text,
    up,
)

NOTHING_WAS = GroupEnded()


def _cell(source: str = "pass\n", **more: Any) -> Cell:
    return Cell(source, Names(frozenset(), frozenset()), number=1, **more)


def _run(group: FakeGroup, source: str = "pass\n", **options: Any) -> Run:
    how: dict[str, Any] = {"group": group}
    how |= {
        name: options.pop(name)
        for name in ("capture", "around", "background", "code_files")
        if name in options
    }
    if group.kept:
        options["session"] = "lab"
    return Run(_cell(source), Options(nproc=group.nproc, **options), **how)


def _execute(run: Run) -> FakeScreen:
    screen = FakeScreen()
    run.execute(screen, engine=None, sys_path=["/lib"])  # type: ignore[arg-type]
    assert run.ended is not None
    assert screen.ended == run.state.value
    return screen


def _group(directory: Path, *after: Batch, **more: Any) -> FakeGroup:
    """Two ranks that come up; `after` follows once they have the cell."""
    return FakeGroup(directory, up(), on={"RunCell": after, **more.pop("on", {})}, **more)


# --- success ----------------------------------------------------------------------------------


def test_success(tmp_path: Path) -> None:
    """Every rank has run its cell to the end, and the group has ended."""
    group = _group(tmp_path, [*done(0), *done(1)], [NOTHING_WAS])
    run = _run(group)
    screen = _execute(run)
    assert (run.state, run.error) == (State.SUCCEEDED, None)
    assert group.names == ["start", "RunCell", "Exit", "close"]
    assert not [event for event in screen.events if isinstance(event, Note)]


def test_the_cell_is_sent_when_all_ranks_are_ready(tmp_path: Path) -> None:
    """One that is still connecting would take its peer's end for a death."""
    group = FakeGroup(tmp_path)
    seen: list[list[str]] = []

    def look() -> None:
        seen.append(list(group.names))

    batches: list[Batch] = [
        [hello(0), hello(1)], [look, ready(0)], [], [look, ready(1)], [look], done(0), done(1),
        [NOTHING_WAS],
    ]  # fmt: skip
    group = FakeGroup(tmp_path, *batches)
    _execute(_run(group))
    assert seen == [["start"], ["start"], ["start", "RunCell", "Exit"]]


def test_silence_is_no_success(tmp_path: Path) -> None:
    """A rank whose end nobody reported has not succeeded."""
    group = _group(tmp_path, done(0), [GroupEnded(agent_died=True)])
    run = _run(group)
    _execute(run)
    assert run.state is State.FAILED
    assert isinstance(run.error, LaunchError)


def test_a_rank_that_leaves_with_code_0(tmp_path: Path) -> None:
    """`os._exit(0)` ends that rank well."""
    group = _group(tmp_path, [*done(0), exited(1, 0)], [NOTHING_WAS])
    run = _run(group)
    _execute(run)
    assert run.state is State.SUCCEEDED
    assert run.ranks[1].left_early


def test_what_a_cell_leaves_is_known(tmp_path: Path) -> None:
    """The libraries it imported, the names it bound, the text of each rank."""
    names = CellNames(rank=0, names=("a", "f"), values=("a",))
    group = _group(
        tmp_path,
        [Imported(rank=0, modules=("numpy",)), names, *done(0), *done(1)],
        [GroupEnded(swept=2)],
    )
    run = _run(group)
    _execute(run)
    assert (run.imported, run.bound, run.stayed, run.swept) == (("numpy",), ("a", "f"), ("a",), 2)


def test_the_last_text_is_shown(tmp_path: Path) -> None:
    """It arrived with the news of the end."""
    group = _group(tmp_path, [*done(0), *done(1), NOTHING_WAS], late=[text(0, "last\n")])
    assert text(0, "last\n") in _execute(_run(group)).events


def test_the_cell_file_is_written_again(tmp_path: Path) -> None:
    """A cleaner of temporary files removed it while the ranks started."""

    def clean() -> None:
        run.directory.cell.unlink()
        run.directory.path.rmdir()

    ends: Batch = [*done(0), *done(1), NOTHING_WAS]
    run = _run(FakeGroup(tmp_path, [clean, *up()], on={"RunCell": [ends]}), "x = 1\n")
    _execute(run)
    assert run.directory.cell.read_text() == "x = 1\n"


def test_what_the_cell_sets_for_its_imports_is_there_at_the_start(tmp_path: Path) -> None:
    """`os.environ["HF_HOME"] = ...` on its top level."""
    group = _group(tmp_path, [*done(0), *done(1)], [NOTHING_WAS])
    cell = _cell(environment={"HF_HOME": "/data"})
    run = Run(cell, Options(nproc=2), group=group)  # type: ignore[arg-type]
    _execute(run)
    _, env, sys_path, _ = group.commands[0]
    assert env["HF_HOME"] == "/data"
    assert sys_path == ["/lib"]


# --- failures ---------------------------------------------------------------------------------


def test_one_rank_raises(tmp_path: Path) -> None:
    """Its peers, ended by the agent, are victims."""
    group = _group(
        tmp_path, [error(1)], [exited(1, 1), exited(0, -15, by_agent=True)], [NOTHING_WAS]
    )
    run = _run(group)
    _execute(run)
    assert run.state is State.FAILED
    assert isinstance(run.error, WorkerError)
    assert str(run.error) == "rank 1 raised ValueError at line 3: boom"
    assert "rank 0: was stopped" in run.error.details
    assert group.names[-1] == "close"


def test_one_rank_dies_and_shows_its_stack(tmp_path: Path) -> None:
    """What faulthandler left in its file."""
    group = _group(tmp_path, [exited(1, -11), exited(0, -15, by_agent=True)], [NOTHING_WAS])
    run = _run(group)
    file = Path.cwd() / "cell_1.py"
    group.directory.stacks(1).write_text(f'Thread 0x01 (most):\n  File "{file}", line 7 in f\n')
    screen = _execute(run)
    assert isinstance(run.error, WorkerLostError)
    assert str(run.error).startswith("rank 1 was killed by SIGSEGV (exit -11)")
    assert run.error.details[:2] == (
        "rank 1 was in, innermost first:",
        "    Cell In[1], line 7, in f",
    )
    assert [event.line for event in screen.events if isinstance(event, StackDumped)] == [7]


def test_a_stack_names_what_earlier_cells_of_the_session_left(tmp_path: Path) -> None:
    """Their functions, and those of the notebook that they have sent."""
    group = _group(tmp_path, [exited(1, -11), exited(0, -15, by_agent=True)], [NOTHING_WAS])
    files = CodeFiles()
    files.add_functions({"/tmp/ipykernel_1/2.py": ["def sent(): ...", 6]})
    own = dataclasses.replace(_cell("def own(): ..."), number=7)
    earlier = files.add_cell(own, tmp_path / "cell.py")
    run = _run(group, code_files=files)
    frames = [
        '  File "/tmp/ipykernel_1/2.py", line 3 in sent',
        f'  File "{earlier}", line 2 in own',
        f'  File "{Path.cwd() / "cell_1.py"}", line 1 in <module>',
    ]
    group.directory.stacks(1).write_text("\n".join(["Thread 0x01 (most):", *frames]) + "\n")
    _execute(run)
    assert isinstance(run.error, WorkerLostError)
    assert run.error.details[1:4] == (
        "    Cell In[6], line 3, in sent",
        "    Cell In[7], line 2, in own",
        "    Cell In[1], line 1, in <module>",
    )


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (finished(1, 1, "no data"), "rank 1 ended by sys.exit with code 1: no data"),
        (exited(1, 3), "rank 1 exited with code 3"),
        (exited(1, -9), "rank 1 was killed by SIGKILL (exit -9)"),
    ],
)
def test_ends_without_a_traceback(tmp_path: Path, end: RunEvent, words: str) -> None:
    """Each names the rank, and its code or signal."""
    group = _group(tmp_path, [end, exited(0, -15, by_agent=True)], [NOTHING_WAS])
    run = _run(group)
    _execute(run)
    assert isinstance(run.error, WorkerLostError)
    assert str(run.error).startswith(words)


def test_the_agent_dies(tmp_path: Path) -> None:
    """The ranks died with it, and cannot say how."""
    group = _group(tmp_path, [GroupEnded(agent_died=True)])
    run = _run(group)
    _execute(run)
    assert isinstance(run.error, LaunchError)
    assert "the agent died while the ranks were running" in str(run.error)


def test_ranks_that_cannot_start(tmp_path: Path) -> None:
    """The agent's words say why; its log is named."""
    words = "could not start rank 1: OSError: no room"
    group = FakeGroup(tmp_path, [GroupEnded(agent_words=words)])
    run = _run(group)
    _execute(run)
    assert isinstance(run.error, LaunchError)
    assert str(run.error) == f"{words}; the agent's log is {tmp_path}/agent.log"
    assert "RunCell" not in group.names


def test_a_run_whose_end_fails_has_failed(tmp_path: Path) -> None:
    """It is not RUNNING for ever in the status; the error is raised."""

    class Group(FakeGroup):
        def close(self) -> None:
            raise StopIteration

    run = _run(Group(tmp_path, up(), [*done(0), *done(1)], [NOTHING_WAS]))
    with pytest.raises(StopIteration):
        _execute(run)
    assert run.state is State.FAILED
    assert run.ended is not None


def test_an_error_of_the_kernels_own_ends_the_ranks(tmp_path: Path) -> None:
    """It is raised, and the run has failed."""
    group = FakeGroup(tmp_path, up(), [lambda: 1 / 0])
    run = _run(group)
    with pytest.raises(ZeroDivisionError):
        _execute(run)
    assert group.names[-1] == "close"
    assert run.state is State.FAILED


def test_a_failed_system_call_of_the_kernels_own_is_the_runs_error(tmp_path: Path) -> None:
    """One line, without our frames; the ranks are ended, a session's too."""

    def fails() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    for kept in (False, True):
        group = FakeGroup(tmp_path, up(), [fails], kept=kept)
        run = _run(group)
        _execute(run)
        assert isinstance(run.error, LaunchError)
        assert "Too many open files" in str(run.error)
        assert group.names[-1] == "close"
        assert run.state is State.FAILED


# --- Stop, and the time limit -----------------------------------------------------------------


def test_stop_before_the_ranks_are_there(tmp_path: Path) -> None:
    """Nobody could answer: the start itself is ended, and the cell is never sent."""
    group = FakeGroup(tmp_path, [press_stop], on={"kill": [[NOTHING_WAS]]})
    run = _run(group)
    _execute(run)
    assert run.state is State.CANCELLED
    assert str(run.error) == "ranks 0-1 had not started their cell"
    assert group.names == ["start", "kill", "close"]


def test_stop_while_the_ranks_start(tmp_path: Path) -> None:
    """One is connected: it is asked; the cell is not sent to those that come up afterwards."""
    after = [ready(0), ready(1), *interrupted(0), *interrupted(1), exited(0, 1), exited(1, 1)]
    group = FakeGroup(
        tmp_path, [hello(0), hello(1), press_stop], on={"interrupt": [after, [NOTHING_WAS]]}
    )
    run = _run(group)
    _execute(run)
    assert run.state is State.CANCELLED
    assert "RunCell" not in group.names


def test_stop_while_a_session_starts(tmp_path: Path) -> None:
    """There is no cell to finish and no session to keep: the ranks are not waited for."""
    end = [exited(0, 1), exited(1, 1), NOTHING_WAS]
    group = FakeGroup(
        tmp_path, [hello(0), hello(1), press_stop], kept=True, on={"interrupt": [end]}
    )
    run = _run(group)
    _execute(run)
    assert run.state is State.CANCELLED
    assert ("interrupt", (0, 1), False) in group.commands


def test_stop_while_the_cell_runs(tmp_path: Path) -> None:
    """The ranks are asked, answer, and say where they were."""
    answers = [*interrupted(0, 3), *interrupted(1, 4), exited(0, 1), exited(1, 1)]
    group = _group(tmp_path, [press_stop], on={"interrupt": [answers, [NOTHING_WAS]]})
    run = _run(group)
    screen = _execute(run)
    assert run.state is State.CANCELLED
    assert isinstance(run.error, RunInterrupted)
    assert str(run.error) == "rank 0 stopped at line 3; rank 1 stopped at line 4"
    assert group.commands[-2:] == [("interrupt", (0, 1), False), ("close",)]
    assert Doing(text="stopping") in screen.events


def test_news_of_the_start_do_not_hide_that_it_stops(tmp_path: Path) -> None:
    """An empty headline would put `starting` in its place."""
    answers: list[Batch] = [[Doing(text=""), exited(0, 1), exited(1, 1)], [NOTHING_WAS]]
    group = FakeGroup(tmp_path, [hello(0), press_stop], on={"interrupt": answers})
    screen = _execute(_run(group))
    assert Doing(text="") not in screen.events


def test_stop_after_the_ranks_ended(tmp_path: Path) -> None:
    """The run is what it was; the cells after this one do not run."""
    group = _group(tmp_path, [*done(0), *done(1), press_stop, NOTHING_WAS])
    run = _run(group)
    _execute(run)
    assert isinstance(run.error, RunInterrupted)


def test_stop_after_the_verdict(tmp_path: Path) -> None:
    """While the group is closed: the run succeeded, and the interrupt is raised all the same."""

    class Group(FakeGroup):
        def close(self) -> None:
            super().close()
            press_stop()

    run = _run(Group(tmp_path, up(), [*done(0), *done(1)], [NOTHING_WAS]))
    _execute(run)
    assert run.state is State.SUCCEEDED
    assert isinstance(run.error, RunInterrupted)
    assert str(run.error) == "Stop was pressed after the run ended"


def test_stop_after_a_failure_keeps_its_traceback(tmp_path: Path) -> None:
    """The rank's error is shown above the interrupt."""

    class Group(FakeGroup):
        def close(self) -> None:
            super().close()
            press_stop()

    run = _run(Group(tmp_path, up(), [error(0), exited(0, 1), exited(1, 1)], [NOTHING_WAS]))
    _execute(run)
    assert run.state is State.FAILED
    assert isinstance(run.error, RunInterrupted)
    assert "Stop was pressed after the run failed: rank 0 raised" in str(run.error)
    assert "Cell In[1], line 3" in run.error.details


def test_a_second_press_is_passed_on(tmp_path: Path) -> None:
    """Ranks that answered and are still cleaning up are not waited for: their stacks are asked."""
    answers: list[Batch] = [[Interrupted(rank=0, time=LATE), press_stop]]
    ends: list[Batch] = [[exited(0, -9), exited(1, -9)], [NOTHING_WAS]]
    group = _group(tmp_path, [press_stop], on={"interrupt": answers, "dump_stack": ends})
    _execute(_run(group))
    assert group.commands[-3:] == [("dump_stack", 0), ("dump_stack", 1), ("close",)]


def test_a_background_run_is_killed_at_once_when_its_kernel_ends(tmp_path: Path) -> None:
    """A rank may be deaf; nothing may be left some seconds later."""
    run: Run
    ends: list[Batch] = [[exited(0, -9), exited(1, -9), NOTHING_WAS]]
    kernel_ends = lambda: run.end_with_kernel()  # noqa: E731, PLW0108 -- there is no run yet
    group = _group(tmp_path, [kernel_ends], on={"dump_stack": ends})
    run = _run(group, background=Background())
    _execute(run)
    assert isinstance(run.error, RunInterrupted)
    assert str(run.error).startswith("the notebook's kernel ended")
    assert run.state is State.CANCELLED


def test_a_host_keeps_values_and_reads_none(tmp_path: Path) -> None:
    """They may be of libraries that it must not import."""
    stream = pickle.dumps({"x": 1})
    segment = Segment.of([memoryview(stream)])
    results = Results(rank=0, names=("x",), sizes=segment.sizes)
    sent = PulledValues(results=results, fd=segment.fd)
    group = _group(tmp_path, [sent, *done(0), *done(1), NOTHING_WAS])
    run = _run(group, pull=(Pull("x"),), background=Background())
    _execute(run)
    assert run.state is State.SUCCEEDED
    assert run.directory.kept_values(0).read_bytes()[: len(stream)] == stream


def test_the_time_limit(tmp_path: Path) -> None:
    """As Stop, but it is a failure."""
    answers = [*interrupted(0), *interrupted(1), exited(0, 1), exited(1, 1)]
    group = _group(tmp_path, on={"interrupt": [answers, [NOTHING_WAS]]})
    run = _run(group, time_limit_s=0.0)
    _execute(run)
    assert run.state is State.FAILED
    assert isinstance(run.error, TimeLimitError)
    assert str(run.error).startswith("the run exceeded its time limit of 0 s; ranks 0-1 stopped")


def test_stop_after_the_time_limit_does_not_change_it(tmp_path: Path) -> None:
    """The reason is the first one; the interrupt is raised all the same."""
    answers = [press_stop, *interrupted(0), *interrupted(1), exited(0, 1), exited(1, 1)]
    group = _group(tmp_path, on={"interrupt": [answers, [NOTHING_WAS]]})
    run = _run(group, time_limit_s=0.0)
    _execute(run)
    assert isinstance(run.error, RunInterrupted)
    assert "the run exceeded its time limit" in str(run.error)


@pytest.mark.parametrize(
    ("state", "failure", "words"),
    [
        (State.PENDING, None, "before the ranks were started"),
        (State.SUCCEEDED, None, "after the run ended"),
        (State.FAILED, PullError("no loss"), "after the run failed: no loss"),
        (State.CANCELLED, RunInterrupted("rank 0 stopped"), "rank 0 stopped"),
    ],
)
def test_what_stop_interrupted(
    tmp_path: Path, state: State, failure: PullError | RunInterrupted | None, words: str
) -> None:
    """Where no rank was running."""
    run = _run(FakeGroup(tmp_path))
    run.state, run.error = state, failure
    assert words in interrupted_words(run)
    assert "before the ranks were started" in interrupted_words(None)


# --- sessions ---------------------------------------------------------------------------------


def _session(directory: Path, *after: Batch, **more: Any) -> FakeGroup:
    """Two kept ranks that are there already; `after` follows once they have the cell."""
    on = {"RunCell": after, **more.pop("on", {})}
    return FakeGroup(directory, kept=True, started=True, on=on, **more)


def test_a_sessions_cell(tmp_path: Path) -> None:
    """The ranks are kept: nobody tells them to exit."""
    group = _session(tmp_path, [finished(0), idle(0)], [finished(1), idle(1)])
    run = _run(group)
    _execute(run)
    assert run.state is State.SUCCEEDED
    assert group.names == ["RunCell"]
    assert not group.ended


def test_what_ranks_wrote_between_cells_comes_first(tmp_path: Path) -> None:
    """A thread of a rank went on writing."""
    after: Batch = [text(0, "now\n"), finished(0), idle(0), finished(1), idle(1)]
    group = _session(tmp_path, after, between=[text(0, "late\n")])
    shown = [e for e in _execute(_run(group)).events if e in (text(0, "late\n"), text(0, "now\n"))]
    assert shown == [text(0, "late\n"), text(0, "now\n")]


def test_a_failed_rank_of_a_session_frees_its_peers(tmp_path: Path) -> None:
    """They are interrupted; the session goes on with a new process group."""
    raised: Batch = [error(0), idle(0)]
    freed: Batch = [*interrupted(1), idle(1)]
    on = {"interrupt": [freed], "renew_process_group": [[ready(0), ready(1)]]}
    group = _session(tmp_path, raised, on=on)
    run = _run(group)
    screen = _execute(run)
    assert run.state is State.FAILED
    assert isinstance(run.error, WorkerError)
    assert run.error.rank == 0
    assert "rank 1: was interrupted at line 3" in run.error.details
    assert group.commands[1:] == [("interrupt", (1,), True), ("renew_process_group",)]
    assert "the process group was re-created" in screen.notes[-1]
    assert not group.ended


def test_a_rank_of_a_session_dies(tmp_path: Path) -> None:
    """The session ends with it."""
    group = _session(tmp_path, [exited(1, -9), exited(0, -15, by_agent=True)], [NOTHING_WAS])
    run = _run(group)
    screen = _execute(run)
    assert isinstance(run.error, WorkerLostError)
    assert screen.notes == ["session lab ended because its ranks ended"]
    assert group.ended


def test_stop_keeps_the_session(tmp_path: Path) -> None:
    """Ranks that answered are idle again."""
    answers = [*interrupted(0), idle(0), *interrupted(1), idle(1)]
    on = {"interrupt": [answers], "renew_process_group": [[ready(0), ready(1)]]}
    group = _session(tmp_path, [press_stop], on=on)
    run = _run(group)
    _execute(run)
    assert run.state is State.CANCELLED
    assert group.commands[1] == ("interrupt", (0, 1), True)
    assert not group.ended


def test_stop_while_a_failed_ranks_peer_is_waited_for(tmp_path: Path) -> None:
    """The peer does not answer: the press raises KeyboardInterrupt, below the rank's error."""
    raised: Batch = [error(1), idle(1)]
    ends: Batch = [press_stop, idle(0)]
    on = {"interrupt": [ends], "renew_process_group": [[ready(0), ready(1)]]}
    group = _session(tmp_path, raised, on=on)
    run = _run(group)
    _execute(run)
    assert run.state is State.FAILED
    assert isinstance(run.error, RunInterrupted)
    assert "after the run failed: rank 1 raised ValueError at line 3: boom" in str(run.error)
    assert "Cell In[1], line 3" in run.error.details


def test_a_rank_that_leaves_a_session(tmp_path: Path) -> None:
    """`os._exit(0)` is no failure; the session ends when the others have finished the cell."""
    group = _session(tmp_path, [exited(1, 0)], [], [finished(0), idle(0)])
    run = _run(group)
    screen = _execute(run)
    assert run.state is State.SUCCEEDED
    assert screen.notes == ["session lab ended because its ranks ended"]
    assert group.ended


def test_a_press_during_the_renewal_ends_the_session(tmp_path: Path) -> None:
    """And the run keeps its own error above the interrupt."""
    raised: Batch = [error(0), idle(0), error(1), idle(1)]
    group = _session(tmp_path, raised, on={"renew_process_group": [[press_stop]]})
    run = _run(group)
    screen = _execute(run)
    assert "could not be re-created (Stop was pressed)" in screen.notes[-1]
    assert group.ended
    assert isinstance(run.error, RunInterrupted)


# --- notes and values -------------------------------------------------------------------------


def test_notes_come_first(tmp_path: Path) -> None:
    """What is said of the capture stands above what the ranks write."""
    group = FakeGroup(
        tmp_path,
        [Note(text="of the start"), *up()],
        on={"RunCell": [[text(0, "x\n"), *done(0), *done(1)], [NOTHING_WAS]]},
    )
    screen = _execute(_run(group, capture=Capture(notes=["of the capture"])))
    shown = [event for event in screen.events if isinstance(event, Note) or event == text(0, "x\n")]
    assert shown == [Note(text="of the capture"), Note(text="of the start"), text(0, "x\n")]


def _pulled(rank: int, values: dict[str, object]) -> PulledValues:
    stream = b"".join(pickle.dumps(item) for item in values.items())
    segment = Segment.of([memoryview(stream)])
    results = Results(rank=rank, names=tuple(values), sizes=segment.sizes)
    return PulledValues(results=results, fd=segment.fd)


def test_values_come_back(tmp_path: Path) -> None:
    group = _group(tmp_path, [_pulled(0, {"loss": 0.5}), *done(0), *done(1)], [NOTHING_WAS])
    run = _run(group, pull=(Pull("loss"),))
    _execute(run)
    assert run.results == {"loss": 0.5}
    assert run.state is State.SUCCEEDED


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pull": (Pull("loss"),)}, "--pull: `loss` of rank 0 is a generator"),
        ({"pull": (Pull("loss"),), "from_python": True}, "pull: `loss` of rank 0 is a generator"),
        (
            {"pull": (Pull("loss", label="the return value"),), "call": True},
            "the return value of rank 0 is a generator",
        ),
    ],
)
def test_a_value_that_does_not_come_back_is_a_failure(
    tmp_path: Path, options: dict[str, Any], text: str
) -> None:
    """The cell succeeded; the run says what is missing, and why, in words of whoever asked."""
    refused = Results(rank=0, failed={"loss": "is a generator"})
    group = _group(
        tmp_path, [PulledValues(results=refused, fd=None), *done(0), *done(1)], [NOTHING_WAS]
    )
    run = _run(group, **options)
    _execute(run)
    assert run.state is State.FAILED
    assert isinstance(run.error, PullError)
    assert str(run.error) == text


def test_values_of_a_failed_run_are_kept_if_all_are_there(tmp_path: Path) -> None:
    """A line says so; the run has failed."""
    group = _group(
        tmp_path,
        [_pulled(0, {"loss": 0.5}), *done(0), error(1), exited(1, 1)],
        [NOTHING_WAS],
    )
    run = _run(group, pull=(Pull("loss"),))
    screen = _execute(run)
    assert run.results == {"loss": 0.5}
    assert isinstance(run.error, WorkerError)
    assert screen.notes == ["pulled, although the run did not succeed: loss"]


def test_a_pulled_name_does_not_stay_in_the_ranks(tmp_path: Path) -> None:
    """It is not listed as left behind."""
    names = CellNames(rank=0, names=("loss", "model"), values=("loss", "model"))
    group = _group(tmp_path, [_pulled(0, {"loss": 0.5}), names, *done(0), *done(1)], [NOTHING_WAS])
    run = _run(group, pull=(Pull("loss"),))
    _execute(run)
    assert run.stayed == ("model",)


def test_a_line_of_another_cell_is_named_with_it(tmp_path: Path) -> None:
    """`launch`: the cell that runs is ours, and calls the user's function."""
    group = _group(tmp_path, [error(1, cell="Cell In[2]"), exited(1, 1)], [NOTHING_WAS])
    run = _run(group, call=True)
    _execute(run)
    assert str(run.error) == "rank 1 raised ValueError at Cell In[2], line 3: boom"
    assert run.ranks[1].where == " at Cell In[2], line 3"


# --- the rest ---------------------------------------------------------------------------------


def test_a_run_describes_itself(tmp_path: Path) -> None:
    """State, ranks, error, results, logs."""
    group = _group(tmp_path, [error(1), exited(1, 1), *done(0)], [NOTHING_WAS])
    run = _run(group)
    assert "PENDING · 2 ranks" in repr(run)
    _execute(run)
    run.results = {"loss": 1}
    lines = repr(run).splitlines()
    assert lines[0].startswith(f"Run {run.id}: FAILED · 2 ranks · ")
    assert lines[1:] == [
        "  error: WorkerError: rank 1 raised ValueError at line 3: boom",
        "  results: loss",
        f"  logs: {tmp_path}",
    ]


# --- --check ----------------------------------------------------------------------------------


def _calls(run: Run, *names: str) -> None:
    """Write down what each rank calls."""
    for rank, name in enumerate(names):
        call = CollectiveCall(name=name, group="0", ranks=tuple(range(len(names))), line=1)
        run.directory.calls(rank).write_bytes(first_line(0, call))


def test_ranks_that_differ_are_stopped(tmp_path: Path) -> None:
    """Also those that wait in a collective for ever: it is aborted."""
    runs: list[Run] = []
    differ: Batch = [
        lambda: _calls(runs[0], "all_reduce", "barrier"),
        lambda: time.sleep(LOOK_S),
    ]
    stopped: list[Batch] = [[*interrupted(0), *interrupted(1), exited(0, 1), exited(1, 1)]]
    group = _group(tmp_path, differ, on={"interrupt": [*stopped, [NOTHING_WAS]]})
    runs.append(_run(group, "dist.barrier()\n", check=True))
    _execute(runs[0])
    assert ("interrupt", (0, 1), True) in group.commands
    assert isinstance(runs[0].error, MismatchError)
    assert "rank 1 called barrier (line 1)" in runs[0].error.message
    assert runs[0].error.details == ("ranks 0, 1, line 1:  dist.barrier()",)
    assert runs[0].checked == 0


def test_what_all_ranks_call_alike_is_counted(tmp_path: Path) -> None:
    runs: list[Run] = []
    same: Batch = [lambda: _calls(runs[0], "barrier", "barrier"), *done(0), *done(1)]
    runs.append(_run(_group(tmp_path, same, [NOTHING_WAS]), check=True))
    _execute(runs[0])
    assert (runs[0].state, runs[0].checked) == (State.SUCCEEDED, 1)
    assert not list(runs[0].directory.path.glob("*.calls"))


def test_a_call_that_only_one_rank_has_made_fails_the_run(tmp_path: Path) -> None:
    """A rank of gloo need not wait for others: a broadcast only sends."""
    runs: list[Run] = []

    def one_rank() -> None:
        _calls(runs[0], "broadcast", "broadcast")
        runs[0].directory.calls(1).unlink()

    runs.append(_run(_group(tmp_path, [one_rank, *done(0), *done(1)], [NOTHING_WAS]), check=True))
    _execute(runs[0])
    assert isinstance(runs[0].error, MismatchError)
    assert "rank 0 called broadcast #1 (line 1), but rank 1 did not" in runs[0].error.message


def test_what_could_not_be_compared_is_said(tmp_path: Path) -> None:
    runs: list[Run] = []
    unreadable: Batch = [
        lambda: runs[0].directory.calls(1).write_bytes(b"nonsense\n"), *done(0), *done(1),
    ]  # fmt: skip
    runs.append(_run(_group(tmp_path, unreadable, [NOTHING_WAS]), check=True))
    screen = _execute(runs[0])
    assert runs[0].state is State.SUCCEEDED
    assert "warning: --check did not compare all calls of rank 1" in screen.notes[-1]


# --- questions ----------------------------------------------------------------------------------


def _ask(run: Run, box: FakeBox | None) -> FakeScreen:
    screen = FakeScreen()
    run.execute(screen, None, ["/lib"], box)  # type: ignore[arg-type]
    return screen


def test_a_rank_gets_the_answer_to_its_question(tmp_path: Path) -> None:
    ends = [[*done(0), *done(1)], [NOTHING_WAS]]
    group = _group(tmp_path, [question(1, 4)], on={"answer": ends})
    run = _run(group, "input('name? ')\n")
    screen = _ask(run, FakeBox(None, Reply("Bob")))
    assert run.state is State.SUCCEEDED
    assert ("answer", 1, Answer(number=4, text="Bob")) in group.commands
    opened = QuestionOpened(rank=1, prompt="name? ")
    closed = QuestionClosed(rank=1, number=4, line="[rank 1] name? Bob")
    assert [e for e in screen.events if isinstance(e, QuestionOpened | QuestionClosed)] == [
        opened,
        closed,
    ]


@pytest.mark.parametrize(
    ("source", "box", "told"),
    [
        ("input()\n", FakeBox(), (True, True)),
        ("pass\n", FakeBox(), (True, False)),
        ("input()\n", FakeBox(problem="nbclient"), (False, False)),
        ("input()\n", None, (False, False)),
    ],
)
def test_ranks_are_told_whether_they_can_ask(
    tmp_path: Path, source: str, box: FakeBox | None, told: tuple[bool, bool]
) -> None:
    group = _group(tmp_path, [*done(0), *done(1)], [NOTHING_WAS])
    _ask(_run(group, source), box)
    command = next(command[1] for command in group.commands if command[0] == "RunCell")
    assert (command.can_ask, command.may_ask) == told


def test_timeouts_are_held_once_a_rank_asks(tmp_path: Path) -> None:
    """Whatever module of the user's asks, of which the cell's text says nothing."""
    ends = [[*done(0), *done(1)], [NOTHING_WAS]]
    group = _group(tmp_path, [question(0), question(1)], on={"answer": [[], *ends]})
    _ask(_run(group), FakeBox(Reply("a"), Reply("b")))
    assert group.names.count("HoldTimeouts") == 1


def test_stop_closes_the_question(tmp_path: Path) -> None:
    box = FakeBox()
    answers = [[*interrupted(0), *interrupted(1), exited(0, 1), exited(1, 1)], [NOTHING_WAS]]
    group = _group(tmp_path, [question(1)], [press_stop], on={"interrupt": answers})
    run = _run(group)
    _ask(run, box)
    assert run.state is State.CANCELLED
    assert box.log == ["[rank 1] name? ", "closed"]
    assert "answer" not in group.names


def test_a_person_may_think_longer_than_the_time_limit(tmp_path: Path) -> None:
    ends = [[*done(0), *done(1)], [NOTHING_WAS]]
    group = _group(tmp_path, [question(1)], [], [lambda: time.sleep(0.3)], [], on={"answer": ends})
    run = _run(group, time_limit_s=0.25)
    _ask(run, FakeBox(None, None, None, Reply("x")))
    assert run.state is State.SUCCEEDED, run.error


def test_the_time_limit_is_that_of_the_ranks(tmp_path: Path) -> None:
    """The forkserver of a background run imports torch first, which takes seconds."""
    imports: list[Batch] = [[lambda: time.sleep(0.15)], [lambda: time.sleep(0.15)]]
    ends = [[*done(0), *done(1)], [NOTHING_WAS]]
    group = FakeGroup(tmp_path, *imports, up(), on={"RunCell": ends}, placed_after=2)
    run = _run(group, time_limit_s=0.25)
    _execute(run)
    assert run.state is State.SUCCEEDED, run.error


def test_quitting_the_debugger_ends_all_ranks(tmp_path: Path) -> None:
    answers = [[*interrupted(0), *interrupted(1), exited(0, 1), exited(1, 1)], [NOTHING_WAS]]
    quit_ = DebuggerQuit(rank=1, time=EARLY)
    group = _group(tmp_path, [quit_], on={"interrupt": answers})
    run = _run(group)
    _ask(run, FakeBox())
    assert run.state is State.CANCELLED
    assert isinstance(run.error, RunInterrupted)
    assert str(run.error) == "rank 0 stopped at line 3; rank 1 quit the debugger at line 3"
    assert ("interrupt", (0, 1), False) in group.commands


@pytest.mark.parametrize("problem", ["", "nbclient"])
def test_debug_without_anybody_to_answer_is_said_once(tmp_path: Path, problem: str) -> None:
    """The run fails as without it."""
    group = _group(tmp_path, [error(1), exited(1, 1), exited(0, -15, by_agent=True)], [NOTHING_WAS])
    run = _run(group, debug=True)
    screen = _ask(run, FakeBox(problem=problem))
    command = next(command[1] for command in group.commands if command[0] == "RunCell")
    assert command.debug is not bool(problem)
    assert isinstance(run.error, WorkerError)
    assert screen.notes == ([f"--debug: no debugger: {problem}"] if problem else [])


def test_a_rank_that_raised_is_let_into_the_debugger(tmp_path: Path) -> None:
    """And the run fails with its error afterwards."""
    ends = [[error(1), exited(1, 1), exited(0, -15, by_agent=True)], [NOTHING_WAS]]
    group = _group(tmp_path, [error(1, held=True)], on={"answer": ends})
    run = _run(group, debug=True)
    _ask(run, FakeBox())
    assert ("answer", 1, Answer(number=0)) in group.commands
    assert isinstance(run.error, WorkerError)
    assert run.error.rank == 1
