"""How a run ended, from what its ranks have reported."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ddp_magic.display.diagnosis import first_failure as diagnose
from ddp_magic.display.diagnosis.name_hints import Surroundings
from ddp_magic.display.diagnosis.verdict import Evidence, StopReason, judge
from ddp_magic.display.rank import Rank
from ddp_magic.errors import (
    LaunchError,
    MismatchError,
    RunInterrupted,
    TimeLimitError,
    WorkerError,
    WorkerLostError,
)
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.collectives import Transfer
from ddp_magic.wire.kernel_events import (
    ConnectionLost,
    GroupEnded,
    Killed,
    OutsideEnd,
    RunEvent,
    StackDumped,
)
from ddp_magic.wire.states import State
from ddp_magic.wire.worker_events import (
    LOST_CONNECTION,
    Collectives,
    DebuggerQuit,
    Idle,
    Interrupted,
)
from tests.unit.fakes import (
    EARLY,
    LATE,
    error,
    exited,
    finished,
    heartbeat,
    hello,
    idle,
    interrupted,
    ready,
)

GLOO = "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:8839"


def _rank(number: int, *events: RunEvent, up: bool = True) -> Rank:
    rank = Rank(rank=number)
    if up:
        rank.take(hello(number))
        rank.take(ready(number))
    for event in events:
        rank.take(event)
    return rank


def test_success_is_what_every_rank_has_reported() -> None:
    """To the end of its cell; out of it by sys.exit(0) or os._exit(0); a session's, by Idle."""
    ranks = [
        _rank(0, finished(0), exited(0, 0)),
        _rank(1, exited(1, 0)),
        _rank(2, finished(2), Idle(rank=2, time=6.0)),
        _rank(3, finished(3), exited(3, -15, by_agent=True)),
    ]
    assert judge(Evidence(ranks=ranks)) == (State.SUCCEEDED, None)


@pytest.mark.parametrize("code", [0, 1, -9])
def test_ranks_that_never_ran_are_no_success(code: int) -> None:
    """They ended before they could say anything, or between the hello and the cell."""
    for up in (True, False):
        ranks = [_rank(r, exited(r, code), up=False) for r in range(2)]
        if up:
            ranks = [Rank(rank=0), Rank(rank=1)]
            for rank in ranks:
                rank.take(hello(rank.rank))
                rank.take(exited(rank.rank, code))
        state, found = judge(Evidence(ranks=ranks))
        assert state is State.FAILED
        assert found is not None


def test_why_a_rank_could_not_start_is_in_the_message() -> None:
    """The reason stood only in the agent's log."""
    words = "W1127 torch warns\ncould not start rank 1: OSError: [Errno 28] No space left on device"
    ranks = [_rank(r, exited(r, 1), up=False) for r in range(2)]
    state, found = judge(
        Evidence(
            ranks=ranks,
            group=GroupEnded(agent_words=words),
            logs=RunDirectory(Path("/logs")),
        )
    )
    assert state is State.FAILED
    assert isinstance(found, LaunchError)
    assert str(found) == (
        "could not start rank 1: OSError: [Errno 28] No space left on device; "
        "the agent's log is /logs/agent.log"
    )


def test_a_signal_during_the_start() -> None:
    """Before the ranks could connect: which, and by what."""
    ranks = [
        _rank(0, exited(0, -15, by_agent=True), up=False),
        _rank(1, exited(1, -15), up=False),
    ]
    _, found = judge(Evidence(ranks=ranks))
    assert str(found).startswith("rank 1 was killed by SIGTERM (exit -15), before its cell began")


def test_a_rank_that_we_ended_is_no_culprit() -> None:
    """It was ended while its own complaint was being formatted; its code is SIGTERM's."""
    complained = _rank(0, error(0, GLOO, 5.2), exited(0, 1, 5.4))
    ended = _rank(1, exited(1, -15, 5.1, by_agent=True))
    state, found = judge(Evidence(ranks=[complained, ended, _rank(2, finished(2), exited(2, 0))]))
    assert state is State.FAILED
    assert isinstance(found, WorkerError)
    assert (found.rank, found.ename) == (0, "ValueError")
    assert "rank 1: was stopped" in found.details
    assert "rank 2: finished" in found.details


def test_a_rank_ended_from_outside_is_the_culprit() -> None:
    """Whatever its peers complained of before the news came."""
    ranks = [_rank(0, error(0, GLOO, 5.0), exited(0, 1)), _rank(1, exited(1, -15, 5.1))]
    _, found = judge(Evidence(ranks=ranks))
    assert isinstance(found, WorkerLostError)
    assert str(found).startswith("rank 1 was killed by SIGTERM")
    assert found.details == ("rank 0: lost its connection to rank 1 at line 3 (ValueError)",)


@pytest.mark.parametrize("stop", [None, StopReason.PEER_FAILED])
@pytest.mark.parametrize(
    ("end", "said"),
    [
        ([exited(1, 0)], "rank 1 left early (os._exit(0) in the cell)"),
        ([finished(1), exited(1, 0)], "rank 1 finished"),
        ([finished(1), Idle(rank=1, time=6.0)], "rank 1 finished"),
    ],
)
def test_a_rank_that_left_is_named_rather_than_its_victim(
    end: list[RunEvent], said: str, stop: StopReason | None
) -> None:
    """It is no failure, and its peers lose their connections."""
    victim = _rank(0, error(0, GLOO, 5.0), exited(0, 1))
    _, found = judge(Evidence(ranks=[victim, _rank(1, *end)], stop=stop, stopped=5.5))
    assert isinstance(found, WorkerError)
    assert str(found) == f"{said}, and rank 0 lost its connection at line 3"
    assert found.shown == str(found)
    assert (found.rank, found.evalue) == (0, GLOO)  # whose traceback is shown


@pytest.mark.parametrize(
    ("peer", "end", "said"),
    [
        (
            2,
            [finished(2), exited(2, 0)],
            "rank 0 waited in recv from rank 2 (line 3), which has finished",
        ),
        (
            2,
            [exited(2, 0)],
            "rank 0 waited in recv from rank 2 (line 3), which has left early (os._exit(0) in the "
            "cell)",
        ),
        # From any rank: nobody knows from which.
        (None, [finished(2)], "rank 1 finished, and rank 0 lost its connection at line 3"),
    ],
)
def test_the_partner_of_a_receive_is_named_among_those_that_left(
    peer: int | None, end: list[RunEvent], said: str
) -> None:
    transfers = (Transfer(kind="recv", peer=peer),)
    report = Collectives(rank=0, time=5.0, transfers=transfers)
    ranks = [
        _rank(0, report, error(0, GLOO, 5.0), exited(0, 1)),
        _rank(1, finished(1), exited(1, 0)),
        _rank(2, *end),
    ]
    _, found = judge(Evidence(ranks=ranks))
    assert isinstance(found, WorkerError)
    assert (str(found), found.shown) == (said, said)


def test_a_victim_is_not_blamed_for_the_connection_that_another_lost() -> None:
    """Both lost theirs to the rank that has finished."""
    victims = [_rank(r, error(r, GLOO, 5.0 + r), exited(r, 1)) for r in (0, 2)]
    _, found = judge(Evidence(ranks=[victims[0], _rank(1, finished(1), exited(1, 0)), victims[1]]))
    assert isinstance(found, WorkerError)
    assert str(found) == "rank 1 finished, and rank 0 lost its connection at line 3"
    assert "rank 2: lost its connection at line 3 (ValueError)" in found.details


@pytest.mark.parametrize("stop", [None, StopReason.PEER_FAILED])
def test_an_agent_ended_from_outside_is_named(stop: StopReason | None) -> None:
    """Its ranks are what it ended, not what ended it; in a session, too."""
    ranks = [_rank(r, exited(r, -15, by_agent=True)) for r in range(2)]
    ranks.append(_rank(2, error(2, GLOO), exited(2, 1)))
    text = "Traceback ...\ntorch...SignalException: Process 12 got signal: 15"
    group = GroupEnded(agent_error=text)
    state, found = judge(Evidence(ranks=ranks, group=group, stop=stop, stopped=LATE))
    assert state is State.FAILED
    assert str(found).startswith("the agent was ended by SIGTERM from outside")


@pytest.mark.parametrize("complaint", [(), (error(0, GLOO),)])
def test_an_agent_that_died(complaint: tuple[RunEvent, ...]) -> None:
    """Nobody could say how the ranks ended; one has complained of another's end before its own."""
    ranks = [_rank(0, *complaint), _rank(1, finished(1))]
    state, found = judge(Evidence(ranks=ranks, group=GroupEnded(agent_died=True)))
    assert state is State.FAILED
    assert "the agent died while the ranks were running" in str(found)


def test_stop_keeps_what_was_raised_before() -> None:
    """The message names it, the traceback stands above."""
    ranks = [_rank(0, error(0), exited(0, 1)), _rank(1, exited(1, -9))]
    ranks[1].take(Killed(rank=1))
    state, found = judge(Evidence(ranks=ranks, stop=StopReason.INTERRUPT, stopped=5.5))
    assert state is State.CANCELLED
    assert isinstance(found, RunInterrupted)
    assert str(found) == (
        "rank 0 raised ValueError at line 3: boom; rank 1 did not answer and was killed"
    )
    assert found.details == ("rank 0 of 2 had raised:", "Cell In[1], line 3")


def test_a_background_run_that_ends_with_its_kernel_says_so() -> None:
    ranks = [_rank(0, exited(0, -9)), _rank(1, exited(1, -9))]
    state, found = judge(Evidence(ranks=ranks, stop=StopReason.KERNEL_ENDED, stopped=4.0))
    assert state is State.CANCELLED
    assert isinstance(found, RunInterrupted)
    assert str(found).startswith("the notebook's kernel ended, and this background run with it: ")


def test_a_time_limit_does_not_hide_an_earlier_error() -> None:
    """It was being formatted when the limit came."""
    ranks = [_rank(0, error(0), exited(0, 1)), _rank(1, exited(1, -9, by_agent=True))]
    evidence = Evidence(ranks=ranks, stop=StopReason.TIME_LIMIT, time_limit_s=3.0, stopped=5.5)
    _, found = judge(evidence)
    assert isinstance(found, WorkerError)
    _, found = judge(replace(evidence, stopped=4.5))
    assert isinstance(found, TimeLimitError)
    assert str(found).startswith("the run exceeded its time limit of 3 s; rank 0 raised")


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ((), "had not started its cell"),
        ((finished(0), Interrupted(rank=0, time=5.0)), "finished its cell and was interrupted"),
        ((finished(0), exited(0, 0)), "finished"),
        ((exited(0, 0),), "finished"),
        ((error(0, "", 5.6, ename="KeyboardInterrupt"),), "stopped at line 3"),
        ((Interrupted(rank=0, time=5.6), error(0, GLOO, 5.7)), "stopped at line 3"),
        ((error(0),), "raised ValueError at line 3: boom"),
        ((exited(0, 1),), "ended"),
    ],
)
def test_how_a_rank_stopped(events: tuple[RunEvent, ...], words: str) -> None:
    """Each end has words of its own."""
    ranks = [_rank(0, *events, up=bool(events))]
    _, found = judge(Evidence(ranks=ranks, stop=StopReason.INTERRUPT, stopped=5.5))
    assert f"rank 0 {words}" in str(found)


def test_a_debugger_that_was_quit_cancels_the_run() -> None:
    """The waits of the others for its rank are no news."""
    ranks = [_rank(0, error(0, "", 5.6, ename="KeyboardInterrupt"), exited(0, 1)) for _ in "ab"]
    ranks[1].take(DebuggerQuit(rank=0, time=5.4))
    evidence = Evidence(ranks=ranks, stop=StopReason.DEBUGGER, stopped=5.5, waits=["rank 0 waits"])
    state, found = judge(evidence)
    assert state is State.CANCELLED
    assert isinstance(found, RunInterrupted)
    assert str(found).endswith("stopped at line 3; rank 0 quit the debugger at line 3")
    assert found.details == ()


def test_our_frames_are_left_out_of_a_childs_traceback() -> None:
    """It is part of the text of the rank's error."""
    text = (
        "RuntimeError: Caught RuntimeError in DataLoader worker process 0.\n"
        '  File "/cell.py", line 8, in get\n    input()\n'
        f'  File "{diagnose.__file__}", line 1, in ask\n    raise RuntimeError\n'
        "RuntimeError: a process cannot ask"
    )
    _, found = judge(Evidence(ranks=[_rank(0, error(0, traceback=(text,)), exited(0, 1))]))
    assert found is not None
    shown = "\n".join(found.details)
    assert "diagnose.py" not in shown
    assert "line 8, in get" in shown
    assert "a process cannot ask" in shown


def test_ranks_that_stopped_alike_are_named_together() -> None:
    ranks = [_rank(r, heartbeat(r, 4 + r // 3), Killed(rank=r), exited(r, -9)) for r in range(4)]
    _, why = judge(Evidence(ranks=ranks, stop=StopReason.INTERRUPT, stopped=5.5))
    assert str(why) == (
        "ranks 0-2 did not answer at line 4 and were killed; "
        "rank 3 did not answer at line 5 and was killed"
    )


def test_many_ranks_are_counted() -> None:
    """A list of hundreds would hide what differs."""
    ranks = [_rank(r, exited(r, 0)) for r in range(30)]
    ranks[7] = _rank(7, error(7))
    _, why = judge(Evidence(ranks=ranks, stop=StopReason.INTERRUPT, stopped=5.5))
    assert str(why) == "29 ranks finished; 1 rank raised ValueError at line 3: boom"
    killed = [_rank(r, Killed(rank=r)) for r in range(30)]
    _, why = judge(Evidence(ranks=killed, stop=StopReason.INTERRUPT, stopped=5.5))
    assert str(why) == "30 ranks did not answer and were killed"
    silent = [_rank(r, up=False) for r in range(30)]
    _, why = judge(Evidence(ranks=silent, stop=StopReason.INTERRUPT, stopped=5.5))
    assert str(why) == "30 ranks had not started their cell"


def test_a_rank_that_was_stuck_at_its_end() -> None:
    """Killed in its exit handlers, which do not stand in a line of the cell."""
    rank = _rank(0, finished(0), exited(0, -9))
    rank.take(Killed(rank=0))
    _, found = judge(Evidence(ranks=[rank], stop=StopReason.INTERRUPT, stopped=5.5))
    assert str(found) == "rank 0 did not answer after the end of its cell and was killed"


@pytest.mark.parametrize("how", ["it ended itself", "it was ended"])
def test_a_rank_without_a_connection(how: str) -> None:
    """It had closed descriptors that were not its own."""
    alone = [ConnectionLost(rank=1, time=5.0), exited(1, -9, by_agent=True)]
    events = [exited(1, LOST_CONNECTION)] if how == "it ended itself" else alone
    _, found = judge(Evidence(ranks=[_rank(0, finished(0), exited(0, 0)), _rank(1, *events)]))
    assert isinstance(found, WorkerLostError)
    assert str(found).startswith("rank 1 lost its connection to the notebook: its code closed a")


def test_a_crash_shows_its_stack() -> None:
    """Where faulthandler left it, which C code does not outlive."""
    rank = _rank(0, exited(0, -signal.SIGSEGV))
    rank.take(StackDumped(rank=0, frames=("Cell In[1], line 7, in step",), line=7))
    _, found = judge(Evidence(ranks=[rank]))
    assert isinstance(found, WorkerLostError)
    assert found.details[:2] == (
        "rank 0 was in, innermost first:",
        "    Cell In[1], line 7, in step",
    )


# --- every other end --------------------------------------------------------------------------


def _failed(*ranks: Rank, **evidence: Any) -> WorkerError | WorkerLostError:
    state, found = judge(Evidence(ranks=ranks, **evidence))
    assert state is State.FAILED
    assert isinstance(found, (WorkerError, WorkerLostError))
    return found


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ((exited(0, -15, by_agent=True),), "was stopped"),
        ((heartbeat(0, 9), exited(0, -15, by_agent=True)), "was stopped at line 9"),
        ((exited(0, -9),), "was stopped"),
        ((finished(0), exited(0)), "finished"),
        ((finished(0), idle(0)), "finished"),
        ((error(0), exited(0, 1)), "raised the same at line 3"),
        ((error(0, "other"), exited(0, 1)), "raised ValueError at line 3: other"),
        ((*interrupted(0, 7), idle(0)), "was interrupted at line 7"),
        ((error(0, GLOO, line=2), exited(0, 1)), "lost its connection to rank 1 at line 2 (ValueE"),
        ((finished(0, 2, "why"), exited(0, 2)), "ended by sys.exit with code 2: why"),
        ((finished(0, 1, "a\nb"), exited(0, 1)), "ended by sys.exit with code 1: a ..."),
        ((exited(0, 3),), "exited with code 3, without a traceback"),
    ],
)
def test_what_became_of_the_others(events: tuple[RunEvent, ...], words: str) -> None:
    """One line each, below the culprit's traceback."""
    culprit = _rank(1, error(1, time=EARLY - 1), exited(1, 1))
    found = _failed(_rank(0, *events), culprit)
    assert isinstance(found, WorkerError)
    assert found.rank == 1
    *_, line = found.details
    assert line.startswith(f"rank 0: {words}")


def test_ranks_that_ended_alike_share_a_line() -> None:
    """Only where every word is the same."""
    alike = [_rank(r, error(r, time=LATE), exited(r, 1)) for r in (1, 2, 3, 5)]
    other = _rank(4, error(4, "another", LATE), exited(4, 1))
    ended = [_rank(r, exited(r, -15, by_agent=True)) for r in (6, 7)]
    found = _failed(_rank(0, error(0, time=EARLY), exited(0, 1)), *alike, other, *ended)
    assert found.details[-3:] == (
        "ranks 1-3, 5: raised the same at line 3",
        "rank 4: raised ValueError at line 3: another",
        "ranks 6-7: were stopped",
    )


CUDA = """\
CUDA error: device-side assert triggered
Search for `cudaErrorAssert' in https://docs.nvidia.com/cuda/cuda-runtime-api for more.
CUDA kernel errors might be asynchronously reported at some other API call.
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""
NCCL = """\
NCCL error in: NCCLUtils.cpp:94, invalid usage (run with NCCL_DEBUG=WARN for details)
ncclInvalidUsage: This usually reflects invalid usage of NCCL library.
Last error:
Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 60
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (CUDA, "CUDA error: device-side assert triggered ..."),
        (NCCL, "Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 60"),
        ("\n  Missing key(s)\n", "Missing key(s)"),
    ],
)
def test_an_error_of_many_lines_is_shown_whole_once(text: str, line: str) -> None:
    """In the traceback; other lines name it by one of its own. `str(error)` has all of it."""
    ranks = [
        _rank(0, error(0, text, EARLY, traceback=("Cell In[1], line 3", text)), exited(0, 1)),
        _rank(1, error(1, f"{text} ", LATE), exited(1, 1)),
    ]
    found = _failed(*ranks)
    assert isinstance(found, WorkerError)
    assert found.evalue == text
    assert str(found) == f"rank 0 raised ValueError at line 3: {text}"
    assert found._render_traceback_() == [
        "rank 0 of 2 raised:",
        "Cell In[1], line 3",
        text,
        f"rank 1: raised ValueError at line 3: {line}",
        f"WorkerError: rank 0 raised ValueError at line 3: {line}",
    ]


def test_a_peer_that_had_not_started() -> None:
    """It was still waited for."""
    found = _failed(Rank(rank=0), _rank(1, error(1)))
    assert found.details[-1] == "rank 0: had not started"
    lost = Rank(rank=0)
    lost.line = 6
    assert _failed(lost, _rank(1, error(1))).details[-1] == "rank 0: was lost at line 6"


def test_the_error_has_the_ranks_traceback() -> None:
    """And its class's name, its text, its line."""
    found = _failed(_rank(0, error(0, traceback=("Cell In[1], line 3", "boom"))))
    assert isinstance(found, WorkerError)
    assert (found.rank, found.ename, found.evalue) == (0, "ValueError", "boom")
    assert found.traceback == ("Cell In[1], line 3", "boom")
    assert found.details == ("rank 0 of 1 raised:", "Cell In[1], line 3", "boom")


def test_a_traceback_within_the_error_has_the_cells_names() -> None:
    """That of a process pool's worker, which is one string of many lines."""
    child = 'Traceback:\n  File "/nb/cell_1.py", line 3, in work\nValueError: x'
    found = _failed(
        _rank(0, error(0, traceback=(child, "boom"))), cell_labels={"/nb/cell_1.py": "Cell In[1]"}
    )
    assert found.details[1] == "Traceback:\n  Cell In[1], line 3, in work\nValueError: x"


def test_the_error_is_of_the_ranks_class() -> None:
    """`except KeyError` finds it, and so does one of the notebook's own classes."""
    assert isinstance(_failed(_rank(0, error(0, classes=("builtins:KeyError",)))), KeyError)

    own_class = type("Own", (Exception,), {})
    around = Surroundings({"Own": own_class})
    own = error(0, classes=("__main__:Own", "builtins:Exception"))
    assert isinstance(_failed(_rank(0, own), around=around), own_class)


def test_hints_about_names_come_last() -> None:
    """What the notebook or the prelude has to do with it."""
    lost = error(0, "name 'x' is not defined", ename="NameError", line=1)
    found = _failed(_rank(0, lost), source="x\n", around=Surroundings({"x": 1}))
    assert found.details[-1].startswith("your notebook defines `x`, but it was not sent")
    wrong = error(0, "train() takes 1 argument", ename="TypeError", line=1)
    found = _failed(_rank(0, wrong), source="train()\n", prelude={"train"})
    assert found.details[-1].startswith("`train` is from ddp_magic.prelude")


def test_a_rank_that_was_lost_was_last_seen_somewhere() -> None:
    """By its heartbeat."""
    found = _failed(_rank(0, heartbeat(0, 7), exited(0, -9)))
    assert isinstance(found, WorkerLostError)
    assert found.code == -9
    assert str(found).endswith("; it was last seen at line 7")


def test_a_failed_rank_of_a_session() -> None:
    """Its peers are interrupted, and no culprits, whatever they raise then."""
    culprit = _rank(0, error(0), idle(0))
    peer = _rank(1, Interrupted(rank=1, time=LATE), error(1, "aborted", LATE), idle(1))
    found = _failed(peer, culprit, stop=StopReason.PEER_FAILED, stopped=10.0)
    assert found.rank == 0
    assert found.details[-1] == "rank 1: was interrupted at line 3"


def test_ranks_that_the_kernel_ended() -> None:
    """Each says whether it answered."""
    deaf = _rank(0, heartbeat(0, 4), Killed(rank=0), exited(0, -9))
    saving = _rank(1, heartbeat(1, 5), Interrupted(rank=1, time=LATE), Killed(rank=1))
    state, found = judge(Evidence(ranks=[deaf, saving], stop=StopReason.INTERRUPT, stopped=10.0))
    assert state is State.CANCELLED
    assert str(found) == (
        "rank 0 did not answer at line 4 and was killed; "
        "rank 1 was killed at line 5 while it cleaned up"
    )


def test_the_time_limit_names_each_rank() -> None:
    """As Stop does."""
    ranks = [_rank(0, *interrupted(0, 4), exited(0, 1)), _rank(1, finished(1), exited(1))]
    evidence = Evidence(ranks=ranks, stop=StopReason.TIME_LIMIT, stopped=10.0, time_limit_s=2.5)
    state, found = judge(evidence)
    assert state is State.FAILED
    assert str(found) == (
        "the run exceeded its time limit of 2.5 s; rank 0 stopped at line 4; rank 1 finished"
    )


def test_an_interrupt_of_a_rank_that_raised_before_it_is_no_error_of_its_own() -> None:
    """A KeyboardInterrupt shows no traceback above ours."""
    ranks = [_rank(0, *interrupted(0), exited(0, 1))]
    _, found = judge(Evidence(ranks=ranks, stop=StopReason.INTERRUPT, stopped=10.0))
    assert isinstance(found, RunInterrupted)
    assert found.details == ()


def test_an_agent_with_an_error_of_its_own() -> None:
    """The end of it is shown, without our frames; the ranks had not connected."""
    text = "\n".join(f"line {i}" for i in range(30))
    state, found = judge(Evidence(ranks=[Rank(rank=0)], group=GroupEnded(agent_error=text)))
    assert state is State.FAILED
    assert isinstance(found, LaunchError)
    assert str(found).startswith("the ranks could not be started; the agent's log is ")
    assert found.details == tuple(f"line {i}" for i in range(10, 30))


def test_a_run_that_nobody_ended_and_that_did_not_end() -> None:
    """Silence is never success."""
    state, found = judge(Evidence(ranks=[_rank(0), _rank(1, finished(1), exited(1))]))
    assert state is State.FAILED
    assert isinstance(found, LaunchError)


@pytest.mark.parametrize("stop", [None, *StopReason])
def test_a_mismatch_is_the_cause_of_what_follows(stop: StopReason | None) -> None:
    """Of errors, of crashes in C code, of a time limit; a press of Stop is the user's."""
    ranks = [
        _rank(0, error(0, GLOO), exited(0, 1)),
        _rank(1, exited(1, -signal.SIGABRT)),
        _rank(2, error(2, "", LATE, ename="KeyboardInterrupt"), exited(2, 1)),
    ]
    said = "collective #7 differs between ranks"
    evidence = Evidence(ranks=ranks, stop=stop, stopped=EARLY + 1, mismatch=said, time_limit_s=1.0)
    state, found = judge(evidence)
    if stop is StopReason.INTERRUPT:
        assert state is State.CANCELLED
        assert isinstance(found, RunInterrupted)
        assert said in found.details
        return
    assert state is State.FAILED
    assert isinstance(found, MismatchError)
    assert (found.message, found.details) == (said, ())


def test_a_mismatch_shows_the_lines_and_what_a_rank_had_raised() -> None:
    ranks = [_rank(0), _rank(1, error(1, "a bad batch", time=EARLY, line=1))]
    evidence = Evidence(
        ranks=ranks,
        stopped=EARLY + 1,
        stop=StopReason.MISMATCH,
        source="if rank:\n    dist.barrier()\n",
        mismatch="collective #1 differs",
        mismatch_lines=[("rank 1", 2)],
    )
    _, found = judge(evidence)
    assert found is not None
    assert found.details == (
        "rank 1, line 2:  dist.barrier()",
        "rank 1 raised ValueError at line 1: a bad batch",
    )


CANCELLED = GroupEnded(outside=OutsideEnd(text="Slurm job 5.0 was cancelled", time=5.0))


@pytest.mark.parametrize("stop", [None, StopReason.PEER_FAILED])
@pytest.mark.parametrize(
    "end",
    [
        [exited(1, -15, 4.9)],
        [exited(1, -9, 5.1)],
        [error(1, GLOO, 4.0), exited(1, 1, 4.1)],
        [error(1, "", 4.9, ename="KeyboardInterrupt"), exited(1, 1, 5.0)],
        [error(1, "DataLoader worker is killed by signal: Terminated", 4.8), exited(1, 1, 4.9)],
        [],
    ],
)
def test_ranks_of_a_job_that_the_cluster_ends_are_victims(
    end: list[RunEvent], stop: StopReason | None
) -> None:
    """Whatever each of them died of."""
    ranks = [_rank(0, heartbeat(0, line=7), exited(0, -15, 5.0)), _rank(1, *end)]
    state, found = judge(Evidence(ranks=ranks, group=CANCELLED, stop=stop, stopped=6.0))
    assert state is State.FAILED
    assert isinstance(found, LaunchError)
    assert str(found) == "Slurm job 5.0 was cancelled"
    assert "rank 0 was at line 7" in found.details


def test_a_rank_that_failed_before_the_cluster_ended_the_job_is_the_culprit() -> None:
    ranks = [_rank(0, error(0, "boom", 2.0), exited(0, 1, 2.1)), _rank(1, exited(1, -15, 5.0))]
    _, found = judge(Evidence(ranks=ranks, group=CANCELLED))
    assert isinstance(found, WorkerError)
    assert found.rank == 0


@pytest.mark.parametrize("stop", [StopReason.INTERRUPT, StopReason.TIME_LIMIT])
def test_what_the_kernel_did_before_is_told_rather_than_what_the_cluster_did(
    stop: StopReason,
) -> None:
    ranks = [_rank(0, exited(0, -9, 5.0, by_agent=True))]
    evidence = Evidence(ranks=ranks, group=CANCELLED, stop=stop, stopped=4.0, time_limit_s=3.0)
    assert not isinstance(judge(evidence)[1], LaunchError)


def test_a_job_that_ends_before_its_ranks_are_up_says_why_in_the_log() -> None:
    group = GroupEnded(agent_died=True, agent_words="srun: job 7 queued", outside=CANCELLED.outside)
    _, found = judge(Evidence(ranks=[Rank(rank=0)], group=group))
    assert isinstance(found, LaunchError)
    assert found.details == ("srun: job 7 queued",)
