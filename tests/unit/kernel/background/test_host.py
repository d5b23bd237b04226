"""What a kernel hands to a host, and what the host keeps for those that follow."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

import pytest

from ddp_magic.display.diagnosis.name_hints import Surroundings
from ddp_magic.display.journal import past_run
from ddp_magic.display.rank import Rank
from ddp_magic.display.record import Background, RunRecord
from ddp_magic.display.screen import CellScreen
from ddp_magic.engines.local import LocalEngine
from ddp_magic.engines.torchrun import Torchrun
from ddp_magic.kernel.background.host import NoOutputs, TableFile
from ddp_magic.kernel.background.start_host import HostStart, start_host
from ddp_magic.kernel.cell import Cell
from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.values.capture import Capture
from ddp_magic.kernel.values.names import Names
from ddp_magic.kernel.values.pull import parse
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.commands import Captured
from ddp_magic.wire.kernel_events import Stream
from ddp_magic.wire.memory import Segment
from ddp_magic.wire.states import State
from ddp_magic.wire.worker_events import ClearOutput
from tests.limits import HANG_S


def _start(directory: Path, segment: Segment) -> HostStart:
    return HostStart(
        directory=directory,
        cell=Cell(
            "print(x)\n",
            Names(frozenset({"x"}), frozenset()),
            number=3,
            settings={"colors": "neutral"},
        ),
        options=Options(nproc=2, pull=parse("y@all"), devices="2 ranks on the CPU"),
        background=Background(detached=True, kernel=os.getpid(), pull="y@all"),
        cold=False,
        sys_path=list(sys.path),
        hang_s=5.0,
        notebook=frozenset({"x", "z"}),
        elsewhere={"w": ("Cell In[2]", "")},
        values=[],
        captured=Captured(names=("x",), stream=0, parts=()),
        segments={0: (segment.fd, segment.sizes)},
        prelude={"plt"},
        notes=["captured 1 GB"],
    )


def test_the_host_has_the_kernels_run(tmp_path: Path) -> None:
    """With its directory and its id."""
    segment = Segment.of([memoryview(b"values")])
    start = pickle.loads(pickle.dumps(_start(tmp_path, segment)))
    run = start.make_run()
    assert (run.id, run.label, len(run.ranks)) == (tmp_path.name, "Cell In[3]", 2)
    assert run.directory.cell.read_text() == "print(x)\n"
    assert run.background == start.background
    assert bytes(run._parts.sender._capture.segments[0].views()[0]) == b"values"
    segment.close()


def test_the_host_is_told_what_explains_an_error(tmp_path: Path) -> None:
    """Where the names that the cell reads could have come from; no value of the notebook's."""
    cells = {"w": ("Cell In[2]", "lab"), "v": ("Cell In[1]", "")}
    start = HostStart.of(
        Cell("print(x, w)\n", Names(frozenset({"x", "w"}), frozenset())),
        Options(nproc=2),
        Capture(notes=["captured 1 GB"]),
        Surroundings({"x": object()}, lambda name: cells.get(name, ("", ""))),
        directory=RunDirectory(tmp_path),
        background=Background(),
        cold=False,
        hang_s=5.0,
    )
    assert (start.notebook, start.elsewhere) == ({"x"}, {"w": ("Cell In[2]", "lab")})
    assert pickle.loads(pickle.dumps(start)) == start


def test_a_host_that_dies_at_once_leaves_its_last_words(tmp_path: Path) -> None:
    """Its kernel is not hindered: with an unreadable order, for example."""
    segment = Segment.of([memoryview(b"")])
    start = _start(tmp_path, segment)
    object.__setattr__(start, "segments", {})
    object.__setattr__(start, "cell", None)
    process = start_host(start, LocalEngine(fallback=Torchrun()))
    assert process.wait(HANG_S) == 1
    assert "AttributeError" in (tmp_path / "host.log").read_text()
    segment.close()


# --- the table ------------------------------------------------------------------------------------


def test_the_table_is_kept_in_a_file(tmp_path: Path) -> None:
    """Once a second at most."""
    path = tmp_path / "table.json"
    table = TableFile(NoOutputs(), path)
    for text, now, kept in (("1", 0.0, "1"), ("2", 0.5, "1"), ("3", 1.0, "3")):
        table.show(text, f"<b>{text}</b>", now, room=9)
        assert json.loads(path.read_text()) == {"text": kept, "html": f"<b>{kept}</b>"}


def test_a_table_that_cannot_be_written_is_left(tmp_path: Path) -> None:
    TableFile(NoOutputs(), tmp_path / "nowhere" / "table.json").show("text", "", 0.0, room=9)


def test_the_journal_of_a_host_is_that_of_a_notebook(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rank's page of `clear_output` too; nothing is shown beside it."""
    directory = RunDirectory(tmp_path)
    record = RunRecord(
        id="1-2",
        label="Cell",
        log_directory=directory,
        journal=directory.journal,
        background=Background(),
        ranks=[Rank(rank=0, log=directory.rank_log(0))],
    )
    outputs = NoOutputs()
    screen = CellScreen(None, outputs=outputs, table_place=TableFile(outputs, directory.table))
    screen.start(record)
    screen.take(Stream(rank=0, text="before\n"))
    screen.tick(record)
    screen.take(ClearOutput(rank=0, mark=1))
    screen.take(Stream(rank=0, text="after\n"))
    record.state, record.ended = State.SUCCEEDED, record.started + 1
    screen.finish(record)
    assert capsys.readouterr().out == ""
    past = past_run.read(directory.journal)
    assert past is not None
    assert past.closing.endswith(" · ok")
    (page,) = [entry["display"]["text/plain"] for entry in past.outputs() if "display" in entry]
    assert "after" in page
