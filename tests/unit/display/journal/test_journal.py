"""What a person saw of a run: written as it comes, read again, shown again."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ddp_magic.display.journal import past_run
from ddp_magic.display.journal.journal import Journal
from ddp_magic.display.journal.past_run import PastRun
from ddp_magic.display.journal.replay import TEXT_CHARS, replay
from ddp_magic.display.outputs import MAX_OUTPUTS
from ddp_magic.display.rank import Rank
from ddp_magic.display.record import RunRecord
from ddp_magic.display.screen import CellScreen
from ddp_magic.errors import WorkerLostError
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.kernel_events import NodesGranted
from ddp_magic.wire.states import State
from ddp_magic.wire.worker_events import ClearOutput, DisplayData
from tests.limits import HANG_S
from tests.unit.fakes import FakeShell, text

PNG = base64.b64encode(b"\x89PNG and so on").decode()


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    """Two ranks of a run whose output is kept."""
    return RunRecord(
        id="1127-103517-7-1",
        label="Cell In[3]",
        log_directory=RunDirectory(tmp_path),
        journal=tmp_path / "journal.jsonl",
        devices="2 ranks on the CPU",
        ranks=[Rank(rank=r, log=tmp_path / f"rank{r}.log") for r in range(2)],
    )


def _read(record: RunRecord) -> PastRun:
    assert record.journal is not None
    run = past_run.read(record.journal)
    assert run is not None
    return run


def _end(record: RunRecord, screen: CellScreen, error: Any = None) -> None:
    record.state = State.FAILED if error else State.SUCCEEDED
    record.error, record.ended = error, record.started + 5.5
    screen.finish(record)


def _display(mark: int, body: str, **more: Any) -> DisplayData:
    return DisplayData(rank=0, mark=mark, data={"text/plain": body}, metadata={}, **more)


def _shown(run: PastRun, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], FakeShell]:
    shell = FakeShell()
    replay(run, shell)  # type: ignore[arg-type]
    return capsys.readouterr().out.splitlines()[1:], shell


def test_what_was_cleared_is_not_shown_again(
    record: RunRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    """Text and displays of that rank, and all pages but the last; what the others have shown is."""
    screen = CellScreen(FakeShell())  # type: ignore[arg-type]
    screen.start(record)
    clear = ClearOutput(rank=0, mark=1, wait=True)
    events = [text(0, "old\n"), text(1, "other\n"), _display(1, "old\n.")]
    for event in [*events, clear, text(0, "first\n"), clear, _display(1, "last")]:
        screen.take(event)
        screen.tick(record)
    _end(record, screen)
    capsys.readouterr()
    lines, again = _shown(_read(record), capsys)
    assert lines[0] == "[rank 1] other"
    assert not any("rank 0" in line for line in lines)
    assert [text for _, text in again.visible] == ["[rank 0] last"]


def test_what_a_hidden_rank_displays_is_kept(
    record: RunRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `--show 0`: not shown, nor shown again, but for who asks for that rank."""
    record.show = frozenset([0])
    shell = FakeShell()
    screen = CellScreen(shell)  # type: ignore[arg-type]
    screen.start(record)
    of_one = replace(_display(1, "early", display_id="a"), rank=1)
    cleared = replace(_display(1, "cleared"), rank=1)
    late = replace(of_one, data={"text/plain": "late"}, update=True)
    clear = ClearOutput(rank=1, mark=1, wait=False)
    for event in (cleared, clear, of_one, _display(1, "shown"), text(1, "text\n"), late):
        screen.take(event)
    _end(record, screen)
    assert [words for _, words in shell.visible][1:-1] == ["[rank 0] shown"]
    capsys.readouterr()
    run = _read(record)
    _, again = _shown(run, capsys)
    assert [words for _, words in again.visible] == ["[rank 0] shown"]
    replay(run, shell := FakeShell(), 1)  # type: ignore[arg-type]
    assert [words for _, words in shell.visible] == ["[rank 1] late"]
    replay(run, None, 1)
    assert "[rank 1] late\n" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"rank 5 of run .* displayed nothing .*: 0, 1"):
        replay(run, None, 5)


def test_two_displays_of_one_id_are_one(
    record: RunRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = CellScreen(FakeShell())  # type: ignore[arg-type]
    screen.start(record)
    first = _display(1, "early", display_id="a")
    for event in (first, first, replace(first, data={"text/plain": "late"}, update=True)):
        screen.take(event)
    _end(record, screen)
    capsys.readouterr()
    _, again = _shown(_read(record), capsys)
    assert [text for _, text in again.visible] == ["[rank 0] late"]


def test_a_run_is_shown_again(record: RunRecord, capsys: pytest.CaptureFixture[str]) -> None:
    """Text and displays in order, the error, the closing line; a display with its last content."""
    shell = FakeShell()
    screen = CellScreen(shell)  # type: ignore[arg-type]
    screen.start(record)
    events: list[Any] = [
        text(0, "one\n"),
        DisplayData(rank=0, mark=1, data={"image/png": PNG}, metadata={"width": 3}),
        _display(2, "early\n.", display_id="a"),
        text(1, "two\n"),
        _display(3, "late\n.", display_id="a", update=True),
    ]
    for event in events:
        screen.take(event)
        screen.tick(record)
    lost = WorkerLostError(
        "rank 1 exited with code 3", rank=1, code=3, details=["rank 0: was stopped"]
    )
    _end(record, screen, lost)
    capsys.readouterr()
    lines, again = _shown(_read(record), capsys)
    assert lines == [
        "[rank 0] one",
        "[rank 1] two",
        "rank 0: was stopped",
        "WorkerLostError: rank 1 exited with code 3",
        "2 ranks · 5.5 s · failed · rank 1 exited with code 3",
    ]
    figure, update = [(data, meta) for data, meta, *_ in again.published]
    assert figure[0]["image/png"] == PNG
    assert figure[1] == {"width": 3, "ddp": {"rank": 0}}
    assert update == ({"text/plain": "[rank 0]\nlate\n."}, {"ddp": {"rank": 0}})
    assert figure[0] == shell.displays[0][0]  # as it was shown
    names = {name for *_, name, _ in again.published}
    assert len(names) == 2
    assert names.isdisjoint(name for *_, name, _ in shell.published)


def test_how_many_ranks_there_were_is_known_at_the_end(record: RunRecord) -> None:
    """The cluster chooses after the run's start."""
    screen = CellScreen(FakeShell())  # type: ignore[arg-type]
    record.fewest = 1
    screen.start(record)
    for event in (NodesGranted(nnodes=1, nproc=1), text(0, "one\n")):
        record.take(event)
        screen.take(event)
    record.devices = "1 rank"
    screen.tick(record)
    _end(record, screen)
    past = _read(record)
    assert (past.ranks, past.devices) == (1, "1 rank")


def test_a_page_is_kept_with_its_last_text(
    record: RunRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `clear_output` has replaced was seen and is gone."""
    now = [0.0]
    screen = CellScreen(FakeShell(), lambda: now[0])  # type: ignore[arg-type]
    screen.start(record)
    for step in range(5):
        for event in (ClearOutput(rank=0, mark=step), text(0, f"step {step}\n")):
            screen.take(event)
            now[0] += 1
            screen.tick(record)
    _end(record, screen)
    capsys.readouterr()
    lines, again = _shown(_read(record), capsys)
    assert lines == ["2 ranks · 5.5 s · ok"]
    assert [data["text/plain"] for data, *_ in again.published] == ["[rank 0] step 4"]


def test_in_a_terminal_figures_are_saved(
    record: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And named; so are those of a run that was started in one."""
    screen = CellScreen(None)
    screen.start(record)
    screen.take(DisplayData(rank=0, mark=1, data={"image/png": PNG}, metadata={}))
    _end(record, screen)
    capsys.readouterr()
    replay(_read(record), None)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "figure: " in line]
    path = Path(line.removeprefix("figure: "))
    assert path.parent == tmp_path
    assert path.name.endswith("-0-1.png")
    assert path.read_bytes() == base64.b64decode(PNG)


def test_many_displays_are_all_in_sight(
    record: RunRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    """JupyterLab draws 50 outputs: several displays, and the text between, are one."""
    writer = Journal(record.journal or Path())
    writer.begin(record)
    for number in range(100):
        writer.text(f"[rank 0] text {number}\n")
        data = {"image/png": PNG, "text/plain": f"figure {number}"}
        writer.display(data, {"ddp": {"rank": 0}}, f"d{number}", update=False)
    writer.end(record)
    _, shell = _shown(_read(record), capsys)
    assert len(shell.published) <= MAX_OUTPUTS - 3
    everything = "".join(data["text/html"] for data, *_ in shell.published)
    found = re.findall(r"text (\d+)\n|alt=\"figure (\d+)\"", everything)
    assert [int(a or b) for a, b in found] == [n for n in range(100) for _ in (0, 1)]
    everything = "".join(data["text/plain"] for data, *_ in shell.published)
    assert everything.count("[rank 0] figure") == 100


def test_the_middle_of_long_text_is_left_out(
    record: RunRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server drops what comes too fast, the end too."""
    writer = Journal(record.journal or Path())
    writer.begin(record)
    for number in range(30):
        writer.text(f"{number} {'x' * 98_000}\n")
    writer.end(record)
    lines, _ = _shown(_read(record), capsys)
    assert sum(map(len, lines)) < 1.3 * TEXT_CHARS
    assert [line.split()[0] for line in lines[:-1]] == [
        *map(str, range(6)), "...", *map(str, range(24, 30)),
    ]  # fmt: skip


def test_a_run_without_an_end(record: RunRecord, capsys: pytest.CaptureFixture[str]) -> None:
    """Its kernel was killed, perhaps while it wrote a line."""
    writer = Journal(record.journal or Path())
    writer.begin(record)
    writer.text("seen\n")
    assert _read(record).goes_on  # in this process
    assert _read(record).outcome == "2 ranks · running"
    assert record.journal is not None
    whole = record.journal.read_text().replace(f'"kernel": {os.getpid()}', '"kernel": 4194303')
    record.journal.write_text(whole + '{"text": "cut o')
    assert not _read(record).goes_on
    assert _shown(_read(record), capsys)[0] == ["seen", "2 ranks · ended with its notebook"]
    early = re.sub(r'"started": [\d.]+', '"started": 5.0', whole)
    record.journal.write_text(early.replace("4194303", str(os.getpid())))
    assert not _read(record).kernel_lives  # a process of today has the number of one long ago


@pytest.mark.parametrize("content", ["", "\n", "[1]\n", '{"id": 3}\n', "\x00\n", '{"id": "'])
def test_what_is_no_journal_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "journal.jsonl"
    assert past_run.read(path) is None
    path.write_text(content)
    assert past_run.read(path) is None


def test_replaced_displays_do_not_fill_the_disk(record: RunRecord, tmp_path: Path) -> None:
    """A figure that is updated for hours; what is shown again stays the same."""
    writer = Journal(tmp_path / "journal.jsonl", compact_bytes=20_000)
    writer.begin(record)
    for number in range(1000):
        writer.text(f"{number}\n")
        data = {"text/plain": f"{number} {'x' * 1000}"}
        writer.display(data, {}, f"figure-{number % 2}", update=number > 1)
    writer.end(record)
    assert (tmp_path / "journal.jsonl").stat().st_size < 100_000
    assert [path.name for path in tmp_path.iterdir()] == ["journal.jsonl"]
    run = _read(record)
    outputs = run.outputs()
    assert "".join(entry.get("text", "") for entry in outputs).split() == [*map(str, range(1000))]
    figures = [entry["display"]["text/plain"] for entry in outputs if "display" in entry]
    assert [figure.split()[0] for figure in figures] == ["998", "999"]
    assert run.state is State.SUCCEEDED or run.summary


def test_a_full_disk_is_told_once(record: RunRecord, capsys: pytest.CaptureFixture[str]) -> None:
    """The run goes on."""
    record.journal = Path("/dev/full")
    screen = CellScreen(FakeShell())  # type: ignore[arg-type]
    screen.start(record)
    screen.take(text(0, "one\n"))
    screen.tick(record)
    _end(record, screen)
    told = [line for line in capsys.readouterr().out.splitlines() if "%ddp_show" in line]
    assert told == ["%ddp_show cannot show all of this again: No space left on device"]


def test_a_run_on_a_full_disk_has_an_end(tmp_path: Path) -> None:
    """Its last line takes the place of others."""
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "from tests.unit.display.journal.test_journal import full_disk\n"
        "full_disk(Path(sys.argv[1]))"
    )
    folder = Path(__file__).parents[4]
    # -B: compiled modules would be written in part, and Python would not notice.
    command = [sys.executable, "-B", "-c", code, tmp_path]
    subprocess.run(command, cwd=folder, check=True, timeout=HANG_S)
    run = past_run.read(tmp_path / "journal.jsonl")
    assert run is not None
    assert run.state is State.FAILED
    assert (
        run.outcome == "2 ranks · 5.5 s · failed · not all of its output was kept: File too large"
    )
    assert len(run.outputs()) > 10


def full_disk(folder: Path) -> None:
    """Write a journal that does not fit, in a process with a limit."""
    writer = Journal(folder / "journal.jsonl")
    record = RunRecord(
        id="1-2",
        label="Cell",
        log_directory=RunDirectory(folder),
        ranks=[Rank(rank=r, log=folder / f"rank{r}.log") for r in range(2)],
    )
    writer.begin(record)
    for number in range(100):
        writer.text(f"{number} {'x' * 500}\n")
    record.state, record.ended = State.FAILED, record.started + 5.5
    writer.end(record)


def test_each_entry_is_a_line_of_json(record: RunRecord) -> None:
    """Others can read it too."""
    writer = Journal(record.journal or Path())
    writer.begin(record)
    writer.text("a lone \udc80 surrogate\n")
    writer.display({"application/x": {"a": Path("b")}}, {}, "d", update=False)
    writer.end(record)
    assert _read(record).outputs()[0]["text"] == "a lone \udc80 surrogate\n"
    assert record.journal is not None
    entries = [json.loads(line) for line in record.journal.read_text().splitlines()]
    assert [next(iter(entry)) for entry in entries] == [
        "id", "text", "display", "state",
    ]  # fmt: skip
