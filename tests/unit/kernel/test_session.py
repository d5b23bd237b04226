"""Sessions: whether their ranks are there, why they ended, how they are ended."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ddp_magic.errors import LaunchError
from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.session import END_S, Session, Sessions
from ddp_magic.wire.kernel_events import GroupEnded, OutsideEnd
from tests.limits import HANG_S
from tests.unit.fakes import FakeGroup, exited, hello, press_stop


def _session(group: FakeGroup, name: str = "lab") -> Session:
    options = Options(nproc=group.nproc, session=name, devices="2 ranks on the CPU")
    return Session(options, group)  # type: ignore[arg-type]


def _group(
    directory: Path, *batches: list[object], started: bool = True, **more: object
) -> FakeGroup:
    return FakeGroup(directory, *batches, kept=True, started=started, **more)  # type: ignore[arg-type]


def test_a_session_is_found_by_its_name(tmp_path: Path) -> None:
    sessions = Sessions()
    one, two = _session(_group(tmp_path), "one"), _session(_group(tmp_path), "two")
    sessions.add(one)
    sessions.add(two)
    assert sessions.get("two") is two
    assert sessions.get("three") is None
    assert list(sessions) == [one, two]
    assert sessions.take_loss("lab") == []


def test_a_session_that_has_not_started_is_alive(tmp_path: Path) -> None:
    """Its first run is about to start it."""
    assert _session(_group(tmp_path, started=False)).alive()


def test_a_rank_that_dies_between_cells_ends_the_session(tmp_path: Path) -> None:
    """It is gone from the list; why is kept until the user is told."""
    sessions = Sessions()
    sessions.add(_session(_group(tmp_path, between=[exited(1, -9), GroupEnded()])))
    assert list(sessions) == []
    (why,) = sessions.take_loss("lab")
    assert "its last cell: rank 1 was killed by SIGKILL (exit -9)" in why
    assert sessions.get("lab") is None


def test_an_agent_that_dies_between_cells(tmp_path: Path) -> None:
    """No rank's end was reported."""
    sessions = Sessions()
    sessions.add(_session(_group(tmp_path, between=[GroupEnded(agent_died=True)])))
    assert list(sessions) == []
    assert sessions.take_loss("lab") == [
        "session lab had ended since its last cell: its agent died; these are new ranks, without "
        "its variables"
    ]
    assert sessions.take_loss("lab") == []  # it is said once


def test_a_job_that_the_cluster_ends_between_cells(tmp_path: Path) -> None:
    """That its ranks died of it says nothing."""
    sessions = Sessions()
    end = GroupEnded(outside=OutsideEnd(text="Slurm job 5.0 was cancelled", time=1.0))
    sessions.add(_session(_group(tmp_path, between=[exited(1, -15), end])))
    assert list(sessions) == []
    assert "last cell: Slurm job 5.0 was cancelled;" in sessions.take_loss("lab")[0]


def test_ending_a_session(tmp_path: Path) -> None:
    """Its ranks are asked, and have their time; then it is closed."""
    group = _group(tmp_path, on={"finish": [[exited(0), exited(1), GroupEnded()]]})
    sessions = Sessions()
    sessions.add(_session(group))
    assert sessions.end("lab") == "session lab (2 ranks) ended"
    assert group.commands == [("finish", END_S), ("close",)]
    assert sessions.get("lab") is None


def test_ranks_that_do_not_end_are_killed(tmp_path: Path) -> None:
    """After their time; that is said."""
    group = _group(tmp_path, nproc=1)
    text = _session(group).end()
    assert text == "session lab (1 rank) did not end within 30 s and was killed"
    assert group.ended


def test_a_session_that_never_started_is_not_asked(tmp_path: Path) -> None:
    group = _group(tmp_path, started=False)
    assert _session(group).end() == "session lab (2 ranks) ended"
    assert group.names == ["close"]


def test_stop_ends_the_wait_for_its_ranks(tmp_path: Path) -> None:
    """The group is closed all the same."""
    group = _group(tmp_path, on={"finish": [[press_stop]]})
    with pytest.raises(KeyboardInterrupt):
        _session(group).end()
    assert group.ended


def test_ending_all(tmp_path: Path) -> None:
    sessions = Sessions()
    for name in ("one", "two"):
        sessions.add(_session(_group(tmp_path, [GroupEnded()]), name))
    assert sessions.end_all() == ["session one (2 ranks) ended", "session two (2 ranks) ended"]
    assert sessions.end_all() == []


# --- several threads --------------------------------------------------------------------------


def test_a_session_serves_one_thread_at_a_time() -> None:
    """Of all that start or use it at once, one goes on and the others are refused."""
    sessions = Sessions()
    together = threading.Barrier(8)

    def one_thread(_: int) -> bool:
        together.wait(HANG_S)
        try:
            with sessions.claim("lab"):
                together.wait(HANG_S)
        except LaunchError:
            together.wait(HANG_S)
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(one_thread, range(8))) == 1


def test_who_is_refused_learns_why() -> None:
    sessions = Sessions()
    why = "session lab is in use by another thread or subshell: try again when its cell has ended"
    with sessions.claim("lab"), pytest.raises(LaunchError, match=f"^{why}$"), sessions.claim("lab"):
        pass


def test_other_sessions_and_runs_go_on_beside_it() -> None:
    """None is a run with ranks of its own."""
    sessions = Sessions()
    with sessions.claim("lab"), sessions.claim("other"), sessions.claim(None), sessions.claim(None):
        pass


def test_a_session_is_free_after_an_error() -> None:
    sessions = Sessions()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), sessions.claim("lab"):
            raise ZeroDivisionError


def test_a_session_in_use_is_left_alone(tmp_path: Path) -> None:
    """A status does not take events from the thread that waits for them."""
    sessions = Sessions()
    group = _group(tmp_path)
    session = _session(group)
    sessions.add(session)
    with sessions.claim("lab"):
        group.between = [exited(1, -9), GroupEnded()]
        assert list(sessions) == [session]
        assert not group.ended
    assert list(sessions) == []


def test_a_session_in_use_is_not_ended(tmp_path: Path) -> None:
    """`%ddp_stop --all` ends the others, and says which one is left."""
    sessions = Sessions()
    groups = {name: _group(tmp_path, [GroupEnded()]) for name in ("one", "two")}
    for name, group in groups.items():
        sessions.add(_session(group, name))
    with sessions.claim("one"):
        with pytest.raises(LaunchError, match="session one is in use"):
            sessions.end("one")
        busy, ended = sessions.end_all()
    assert busy.startswith("session one is in use")
    assert ended == "session two (2 ranks) ended"
    assert [session.name for session in sessions] == ["one"]


def test_the_kernels_end_is_that_of_a_session_in_use(tmp_path: Path) -> None:
    """Its ranks are killed; the thread that waits for them sees it."""
    sessions = Sessions()
    group = _group(tmp_path)
    sessions.add(_session(group))
    with sessions.claim("lab"):
        sessions.close()
    assert group.commands == [("kill", ())]


# --- its status -------------------------------------------------------------------------------


def test_a_sessions_status(tmp_path: Path) -> None:
    """Its name, devices and the ranks' processes."""
    group = _group(tmp_path)
    group.pids = {0: os.getpid(), 1: hello(1).pid}
    status = _session(group).status()
    assert (status.name, status.devices) == ("lab", "2 ranks on the CPU")
    assert status.pids == {0: os.getpid(), 1: 101}


def test_a_new_session_has_a_group_that_is_kept() -> None:
    """By the options of its first cell."""
    session = Session.of(Options(nproc=3, session="lab"))
    assert session.name == "lab"
    assert (session.options.nproc, session.group.kept, session.group.started) == (3, True, False)
    session.group.close()
