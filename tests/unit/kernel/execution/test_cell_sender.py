"""What the ranks of a run are sent, and when."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ddp_magic.kernel.cell import Cell
from ddp_magic.kernel.execution.cell_sender import CellSender
from ddp_magic.kernel.execution.questions import Questions
from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.values.capture import Capture
from ddp_magic.kernel.values.names import Names
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.commands import Captured, RunCell
from ddp_magic.wire.memory import Segment
from tests.unit.fakes import FakeBox, FakeGroup


def _sender(group: FakeGroup, directory: Path, **more: Any) -> CellSender:
    environment = more.pop("environment", {})
    cell = Cell("input()\n", Names(frozenset(), frozenset()), environment, number=5)
    return CellSender(
        group,  # type: ignore[arg-type]
        cell,
        Options(nproc=2, **more.pop("options", {})),
        more.pop("capture", Capture()),
        RunDirectory(directory),
        file="/here/cell_5.py",
    )


def _command(group: FakeGroup) -> RunCell:
    (command,) = [command for name, command, *_ in group.commands if name == "RunCell"]
    assert isinstance(command, RunCell)
    return command


def test_the_cell_is_sent_after_what_it_takes_along(tmp_path: Path) -> None:
    """Ranks that serve one cell then end."""
    capture = Capture(
        command=Captured(names=("x",), stream=7, parts=()),
        segments={7: Segment.of([memoryview(b"abc")])},
        prelude={"plt", "np"},
    )
    group = FakeGroup(tmp_path)
    sender = _sender(group, tmp_path, capture=capture)
    sender.send_values()
    assert not sender.sent
    sender.send_cell(Questions(None), last_attempt=True)
    assert sender.sent
    assert group.names == ["share", "Captured", "RunCell", "Exit"]
    command = _command(group)
    assert (command.file, command.execution_count) == ("/here/cell_5.py", 5)
    assert command.prelude == sender.prelude == ("np", "plt")
    assert Path(command.path).read_text() == "input()\n"
    sender.close()
    sender.send_values()
    assert group.names.count("share") == 1


def test_ranks_of_a_session_go_on(tmp_path: Path) -> None:
    group = FakeGroup(tmp_path, kept=True)
    _sender(group, tmp_path).send_cell(Questions(None), last_attempt=True)
    assert group.names == ["RunCell"]


def test_ranks_that_start_again_have_not_been_sent_the_cell(tmp_path: Path) -> None:
    sender = _sender(FakeGroup(tmp_path), tmp_path)
    sender.send_cell(Questions(None), last_attempt=False)
    sender.send_values()
    assert not sender.sent


def test_a_file_that_is_gone_is_written_again(tmp_path: Path) -> None:
    """With its directory."""
    group = FakeGroup(tmp_path)
    sender = _sender(group, tmp_path)
    RunDirectory(tmp_path).cell.unlink()
    sender.send_cell(Questions(None), last_attempt=True)
    assert RunDirectory(tmp_path).cell.read_text() == "input()\n"


def test_the_ranks_know_whether_they_can_ask(tmp_path: Path) -> None:
    group = FakeGroup(tmp_path)
    _sender(group, tmp_path).send_cell(Questions(FakeBox()), last_attempt=True)
    assert _command(group).can_ask
    assert _command(group).may_ask


def test_the_environment_of_the_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The notebook's, what measuring needs, and what the cell sets for its imports."""
    monkeypatch.setenv("FROM_NOTEBOOK", "1")
    group = FakeGroup(tmp_path)
    sender = _sender(group, tmp_path, environment={"HF_HOME": "/data", "A": "cell"})
    sender.start(None, ["/lib"], {"A": "ours", "B": "ours"})  # type: ignore[arg-type]
    ((_, env, sys_path, _),) = group.commands
    assert sys_path == ["/lib"]
    found = {name: env[name] for name in ("FROM_NOTEBOOK", "HF_HOME", "A", "B")}
    assert found == {"FROM_NOTEBOOK": "1", "HF_HOME": "/data", "A": "cell", "B": "ours"}
    assert "HF_HOME" not in os.environ or os.environ["HF_HOME"] != "/data"
