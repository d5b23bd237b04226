"""What outlives a cell: a run is made of a cell, options, and what earlier cells left."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ddp_magic.errors import CaptureError, LaunchError
from ddp_magic.kernel.cell import Cell
from ddp_magic.kernel.controller import Controller
from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.session import Session
from ddp_magic.kernel.values.capture import Notebook
from ddp_magic.kernel.values.names import Names
from ddp_magic.wire.kernel_events import GroupEnded, Note
from ddp_magic.wire.worker_events import CellNames
from tests.unit.fakes import FakeGroup, FakeScreen, exited, finished, idle

NOTHING: dict[str, Any] = {
    "argv": (), "profile": False, "trace": None,
    "session": None, "nproc_per_node": None, "gpus": None, "backend": None, "timeout": None,
    "no_init": False, "cold": False, "time_limit": None, "show": None, "quiet": False,
    "seed": None, "pull": (), "out": None,
    "check": False,
    "max_restarts": 0, "bg": False, "detach": False, "debug": False,
}  # fmt: skip


def _args(**given: Any) -> SimpleNamespace:
    return SimpleNamespace(**{**NOTHING, **given}, given=frozenset(given))


def _cell(*reads: str, number: int | None = None) -> Cell:
    return Cell("pass", Names(frozenset(reads), frozenset()), number=number)


def _controller(**names: Any) -> Controller:
    return Controller(Notebook(names))


class _Values:
    """What a run brought back."""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[tuple[Controller, FakeGroup]]:
    """A controller with a session of two ranks, whose next cell binds `model`."""
    controller = _controller(x=1)
    bound = CellNames(rank=0, names=("model",))
    ends = [bound, finished(0), idle(0), finished(1), idle(1)]
    group = FakeGroup(
        tmp_path,
        kept=True,
        started=True,
        on={"RunCell": [ends], "finish": [[GroupEnded()]]},
    )
    options = Options(nproc=2, session="lab", devices="2 ranks on the CPU")
    controller.sessions.add(Session(options, group))  # type: ignore[arg-type]
    yield controller, group
    controller.close()


def test_a_forked_child_of_the_notebook_starts_no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the notebook's controller, and none of its connections."""
    controller = _controller()
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(LaunchError, match="was forked from the notebook's, and cannot start ranks"):
        controller.make(_cell(), Options(nproc=1, devices="1 rank on the CPU"), None)


# --- joining a session ------------------------------------------------------------------------


def test_a_session_that_is_still_to_be_started() -> None:
    """Its options are those of a run of its own."""
    controller = _controller()
    assert controller.join(_args()) is None
    assert controller.join(_args(session="lab")) is None


def test_a_later_cell_has_the_sessions_ranks(lab: tuple[Controller, FakeGroup]) -> None:
    """And what is asked for of this cell only."""
    options = lab[0].join(_args(session="lab", time_limit=5.0, seed=3, argv=("a",)))
    assert options is not None
    assert options.nproc == 2
    assert options.devices == "session lab · 2 ranks on the CPU"
    assert (options.time_limit_s, options.seed, options.argv) == (5.0, 3, ("a",))


def test_the_same_number_of_ranks_is_no_contradiction(lab: tuple[Controller, FakeGroup]) -> None:
    assert lab[0].join(_args(session="lab", nproc_per_node=2)) is not None


# --- making a run -----------------------------------------------------------------------------


def test_a_run_has_ranks_of_its_own() -> None:
    controller = _controller(x=[1])
    run = controller.make(_cell("x", number=5), Options(nproc=2), None)
    assert run.label == "Cell In[5]"
    assert [value.name for value in run.captured] == ["x"]
    assert list(controller.runs) == [run]
    assert list(controller.sessions) == []


def test_ranks_of_a_notebook_whose_directory_is_gone_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that they write by relative paths are elsewhere."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    assert _controller()._capture(_cell(), Options(nproc=2), None, None, None).notes == []
    gone.rmdir()
    (note,) = _controller()._capture(_cell(), Options(nproc=2), None, None, None).notes
    assert note.startswith("the notebook's working directory was removed: ")


def test_the_first_cell_of_a_session_makes_it() -> None:
    """The run has its ranks."""
    controller = _controller()
    run = controller.make(_cell(), Options(nproc=2, session="lab"), None)
    session = controller.sessions.get("lab")
    assert session is not None
    assert run.log_directory is session.group.directory
    controller.close()


def test_a_name_that_cannot_be_sent_leaves_no_run() -> None:
    """Nor a session without ranks."""
    controller = _controller(lines=(line for line in "ab"))
    with pytest.raises(CaptureError, match="lines"):
        controller.make(_cell("lines"), Options(nproc=2, session="lab"), None)
    assert list(controller.runs) == []
    assert list(controller.sessions) == []


def test_a_new_session_in_place_of_a_lost_one(tmp_path: Path) -> None:
    """The user is told, once, that the variables are gone."""
    controller = _controller()
    group = FakeGroup(tmp_path, kept=True, started=True, between=[GroupEnded(agent_died=True)])
    options = Options(nproc=2, session="lab")
    controller.sessions.add(Session(options, group))  # type: ignore[arg-type]
    with controller.sessions.claim("lab"):
        assert controller.join(_args(session="lab")) is None
        run = controller.make(_cell(), options, None)
    (note,) = run._notes
    assert note.startswith("session lab had ended since its last cell: its agent died")
    assert controller.sessions.take_loss("lab") == []
    controller.close()


@pytest.mark.parametrize("name", ["_", "Out", "_5", "In"])
def test_the_notebooks_results_are_not_sent(name: str) -> None:
    """A cell that reads one is told what it reads."""
    controller = Controller(Notebook({name: 3}, hidden={name: 3}))
    run = controller.make(_cell(name), Options(nproc=2), None)
    (note,) = run._notes
    assert note.startswith(f"`{name}` in the cell is the rank's own")


def test_a_loop_variable_of_that_name_is_not_meant() -> None:
    """`for _ in range(3)`."""
    controller = Controller(Notebook({"_": 3}, hidden={"_": 3}))
    cell = Cell("pass", Names(frozenset("_"), frozenset("_")))
    assert controller.make(cell, Options(nproc=2), None)._notes == ()


# --- running it -------------------------------------------------------------------------------


def test_what_a_sessions_cell_bound_is_its_own(lab: tuple[Controller, FakeGroup]) -> None:
    """It is not replaced by the notebook's later, and an error elsewhere says where it is."""
    controller, group = lab
    options = controller.join(_args(session="lab"))
    assert options is not None
    run = controller.make(_cell("x", number=4), options, None)
    screen = FakeScreen()
    controller.execute(run, screen)
    session = controller.sessions.get("lab")
    assert session is not None
    assert session.held.bound == {"model"}
    assert group.names == ["share", "Captured", "RunCell"]
    assert not [event for event in screen.events if isinstance(event, Note)]
    around = controller.surroundings()
    assert around.elsewhere("model") == ("Cell In[4]", "lab")
    assert around.elsewhere("other") == ("", "")


def test_a_session_that_ends_in_a_cell(tmp_path: Path) -> None:
    """The cell has said so; the next one starts the session again without a word."""
    controller = _controller()
    ends = [exited(0, -9), exited(1, -9), GroupEnded()]
    group = FakeGroup(tmp_path, kept=True, started=True, on={"RunCell": [ends]})
    options = Options(nproc=2, session="lab")
    controller.sessions.add(Session(options, group))  # type: ignore[arg-type]
    with controller.sessions.claim("lab"):
        controller.execute(controller.make(_cell(), options, None), FakeScreen())
    assert list(controller.sessions) == []
    with controller.sessions.claim("lab"):
        assert controller.make(_cell(), options, None)._notes == ()
    controller.close()


def test_a_kept_run_holds_no_results(lab: tuple[Controller, FakeGroup]) -> None:
    """They may be large, and the list is long."""
    controller, _ = lab
    options = controller.join(_args(session="lab"))
    assert options is not None
    run = controller.make(_cell(), options, None)
    controller.execute(run, FakeScreen())
    (kept,) = controller.runs
    assert kept is not run
    assert kept.id == run.id
    run.results = {"model": (results := _Values())}
    alive = weakref.ref(results)
    del run, results
    gc.collect()
    assert alive() is None


def test_closing_ends_the_sessions(lab: tuple[Controller, FakeGroup]) -> None:
    """`%reload_ext` says which, since their variables are gone."""
    controller, group = lab
    assert controller.close() == ["session lab (2 ranks) ended"]
    assert group.commands == [("finish", 30.0), ("close",)]
    assert list(controller.sessions) == []
