"""A background run, followed by its journal."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ddp_magic.display.journal.follow import Follower, JournalReader
from ddp_magic.display.journal.journal import Journal
from ddp_magic.display.outputs import Outputs
from ddp_magic.display.rank import Rank
from ddp_magic.display.record import Background, RunRecord
from ddp_magic.display.run_words import clock
from ddp_magic.errors import WorkerLostError
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.states import State
from tests.unit.fakes import FakeShell

PNG = "iVBORw0KGgo="


class Cell:
    """A notebook's cell that follows a run."""

    def __init__(self, directory: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
        self.shell = FakeShell()
        self.now = 0.0
        self.follower = Follower(
            directory,
            Outputs(self.shell),  # type: ignore[arg-type]
            now=lambda: self.now,
        )
        self._capsys = capsys

    def step(self) -> list[str]:
        """Follow, and return what is new: text, displays, tables."""
        self.shell.published.clear()
        self.follower.step()
        return self._new()

    def finish(self, last: str) -> list[str]:
        self.shell.published.clear()
        self.follower.finish(last)
        return self._new()

    def _new(self) -> list[str]:
        shown = [data["text/plain"] for data, _, _, _ in self.shell.published]
        return [*self._capsys.readouterr().out.splitlines(), *shown]


@pytest.fixture
def cell(record: RunRecord, capsys: pytest.CaptureFixture[str]) -> Cell:
    return Cell(record.log_directory, capsys)


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    directory = RunDirectory(tmp_path)
    return RunRecord(
        id="1127-103517-7-1",
        label="Cell In[3]",
        log_directory=directory,
        journal=directory.journal,
        devices="2 ranks on the CPU",
        background=Background(kernel=7),
        ranks=[Rank(rank=r, log=directory.rank_log(r)) for r in range(2)],
    )


def _end(journal: Journal, record: RunRecord, error: Any = None) -> None:
    record.state = State.FAILED if error else State.SUCCEEDED
    record.error, record.ended = error, record.started + 5.5
    journal.end(record)


# --- the journal ----------------------------------------------------------------------------------


def test_each_entry_is_read_once(record: RunRecord) -> None:
    """Also before the journal is there, and a line that has arrived in part."""
    path = record.log_directory.journal
    reader = JournalReader(path)
    assert reader.read() == []
    path.write_bytes(b'{"text": "a", "n": 1}\n{"text": "b"')
    assert [entry["text"] for entry in reader.read()] == ["a"]
    with path.open("ab") as file:
        file.write(b', "n": 2}\n{"text": "c", "n": 3}\nrubbish\n')
    assert [entry["text"] for entry in reader.read()] == ["b", "c"]
    assert reader.read() == []
    reader.close()


@pytest.mark.parametrize("reads_between", [True, False])
def test_a_journal_that_is_rewritten_is_read_on(record: RunRecord, reads_between: bool) -> None:
    """It is rewritten when it is large, many times here; no text twice, none left out."""
    path = record.log_directory.journal
    writer = Journal(path, compact_bytes=2000)
    writer.begin(record)
    reader = JournalReader(path)
    read = reader.read()
    for number in range(60):
        writer.text(f"{number}\n")
        writer.display({"text/plain": f"{number} {'x' * 100}"}, {}, "page", update=number > 0)
        if reads_between and number % 7 == 0:
            read += reader.read()
    read += reader.read()
    assert [e["text"] for e in read if "text" in e] == [f"{number}\n" for number in range(60)]
    assert [e["display"]["text/plain"] for e in read if "display" in e][-1].startswith("59 ")
    reader.close()


# --- what is shown --------------------------------------------------------------------------------


def _table(record: RunRecord, text: str) -> None:
    record.log_directory.table.write_text(json.dumps({"text": text, "html": f"<b>{text}</b>"}))


def _display(journal: Journal, body: str, *, update: bool = False) -> None:
    journal.display({"text/plain": body}, {"ddp": {"rank": 1}}, "a", update=update)


def test_a_run_is_shown_as_it_goes_on(record: RunRecord, cell: Cell) -> None:
    """As its own screen would: text, displays and the table as they come, the closing line."""
    assert cell.step() == []
    journal = Journal(record.log_directory.journal)
    journal.begin(record)
    journal.text("one\n")
    head = f"2 ranks on the CPU · {clock(record.started)}"
    assert cell.step() == ["one", head]
    _table(record, "running")
    _display(journal, "x")
    assert cell.step() == ["[rank 1] x", "running"]
    assert cell.step() == []
    _display(journal, "y", update=True)
    journal.text("two\n")
    _end(journal, record)
    assert cell.step() == ["two", "[rank 1] y"]
    assert cell.follower.end is not None
    assert cell.follower.end.last_line.startswith("2 ranks · 5.5 s · ")
    assert cell.finish("2 ranks · ok")[-1] == "2 ranks · ok"


def test_what_a_hidden_rank_displays_is_not_shown(record: RunRecord, cell: Cell) -> None:
    """Neither what came before nor what comes."""
    journal = Journal(record.log_directory.journal)
    journal.begin(record)
    for _ in range(2):
        journal.display({"text/plain": "x"}, {"ddp": {"rank": 1}}, "b", update=False, hidden=True)
        journal.text("one\n")
        shown = cell.step()
        assert "one" in shown
        assert not any("x" in line for line in shown)


def test_what_came_before_is_shown_as_it_is_now(record: RunRecord, cell: Cell) -> None:
    """A display with its last content, text in one piece."""
    journal = Journal(record.log_directory.journal)
    journal.begin(record)
    journal.text("one\n")
    journal.text("two\n")
    for number in range(9):
        _display(journal, str(number), update=number > 0)
    assert cell.step()[2:] == [f"2 ranks on the CPU · {clock(record.started)}", "[rank 1] 8"]


def test_what_a_rank_clears_is_removed(record: RunRecord, cell: Cell) -> None:
    """Its text; that of the others is shown again, as Jupyter removes all or nothing."""
    journal = Journal(record.log_directory.journal)
    journal.begin(record)
    cell.step()
    journal.text("[rank 0] a\n[rank 1] b\n")
    cell.step()
    journal.clear(0)
    assert cell.step()[0] == "[rank 1] b"
    assert cell.step() == []


@pytest.mark.parametrize("fails", [False, True])
def test_a_quiet_run_has_a_closing_line_only_if_it_fails(
    record: RunRecord, cell: Cell, fails: bool
) -> None:
    record.quiet = True
    journal = Journal(record.log_directory.journal)
    journal.begin(record)
    _end(journal, record, WorkerLostError("x", rank=0, code=1) if fails else None)
    assert cell.step() == []
    assert cell.finish("the end") == (["the end"] if fails else [])


@pytest.mark.parametrize("lines", [5, 100])
def test_above_much_output_stands_how_a_run_failed(
    record: RunRecord, cell: Cell, lines: int
) -> None:
    """As in the cell of a run of the notebook's own."""
    journal = Journal(record.log_directory.journal)
    journal.begin(record)
    journal.text("[rank 0] a\n" * lines)
    _end(journal, record, WorkerLostError("boom", rank=0, code=1))
    cell.step()
    cell.finish("the end")
    first, last = (text for _, text in cell.shell.visible)
    assert first.endswith(" · 5.5 s · failed · boom") == (lines == 100)
    assert last == "the end"


def test_two_cells_may_follow_one_run(
    record: RunRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    """An update in one is none in the other."""
    journal = Journal(record.log_directory.journal)
    journal.begin(record)
    _display(journal, "x")
    cells = [Cell(record.log_directory, capsys) for _ in range(2)]
    for cell in cells:
        cell.step()
    first, second = ({name for _, _, name, _ in cell.shell.published} for cell in cells)
    assert not first & second


def test_a_terminal_names_figures(record: RunRecord, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(record.log_directory.journal)
    journal.begin(record)
    journal.display({"image/png": PNG}, {"ddp": {"rank": 1}}, "a", update=False)
    _table(record, "never shown")
    _end(journal, record)
    follower = Follower(record.log_directory, Outputs(None))
    assert follower.step()
    follower.finish("the end")
    figure, end = capsys.readouterr().out.splitlines()
    assert Path(figure.partition("figure: ")[2]).read_bytes().startswith(b"\x89PNG")
    assert end == "the end"


# --- where it is shown ----------------------------------------------------------------------------


class FakePublisher:
    """ipykernel's: it publishes into the cell that runs."""

    def __init__(self, session: list[Any], pub_socket: object = None) -> None:
        self.session, self.pub_socket = session, pub_socket
        self.topic = b""
        self.parent_header: dict[str, str] = {}

    def set_parent(self, parent: dict[str, dict[str, str]]) -> None:
        self.parent_header = parent["header"]

    def publish(self, data: Any, _metadata: Any, *, transient: Any, update: bool) -> None:  # noqa: ARG002
        self.session.append((self.parent_header["cell"], data["text/plain"]))


@pytest.mark.parametrize("stays", [True, False])
def test_outputs_of_a_cell_that_has_ended(stays: bool) -> None:
    """Those of a background run stay its own, those of a cell end with it."""
    shell: Any = FakeShell()
    shell.display_pub = FakePublisher([])
    shell.display_pub.set_parent({"header": {"cell": "first"}})
    stdout, sys.stdout = sys.stdout, io.StringIO()
    first = sys.stdout
    outputs = Outputs(shell, stays=stays)
    shell.display_pub.set_parent({"header": {"cell": "second"}})
    sys.stdout = io.StringIO()  # %%capture
    outputs.write("hello\n")
    outputs.display({"text/plain": "x"}, {}, "a", update=False)
    written, sys.stdout = first.getvalue(), stdout
    assert shell.display_pub.session == [("first" if stays else "second", "x")]
    assert written == ("hello\n" if stays else "")
