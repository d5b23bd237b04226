"""Sessions: whether their ranks are there, why they ended, how they are ended."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ddp_magic.kernel.run_options import Options
from ddp_magic.kernel.session import END_S, Session, Sessions
from ddp_magic.wire.kernel_events import GroupEnded
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
    assert sessions.lost == {}


def test_a_session_that_has_not_started_is_alive(tmp_path: Path) -> None:
    """Its first run is about to start it."""
    assert _session(_group(tmp_path, started=False)).alive()


def test_a_rank_that_dies_between_cells_ends_the_session(tmp_path: Path) -> None:
    """It is gone from the list; why is kept until the user is told."""
    sessions = Sessions()
    sessions.add(_session(_group(tmp_path, between=[exited(1, -9), GroupEnded()])))
    assert sessions.get("lab") is None
    (why,) = sessions.lost.values()
    assert why.startswith("rank 1 was killed by SIGKILL (exit -9)")
    assert list(sessions) == []


def test_an_agent_that_dies_between_cells(tmp_path: Path) -> None:
    """No rank's end was reported."""
    sessions = Sessions()
    sessions.add(_session(_group(tmp_path, between=[GroupEnded(agent_died=True)])))
    assert list(sessions) == []
    assert sessions.lost == {"lab": "its agent died"}


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
    assert (session.group.nproc, session.group.kept, session.group.started) == (3, True, False)
    session.group.close()
