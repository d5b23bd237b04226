"""The terminal's verbs, with kernels that are threads of the test."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ddp_magic import errors
from ddp_magic.display.journal.journal import Journal
from ddp_magic.display.rank import Rank
from ddp_magic.display.record import Background, RunRecord
from ddp_magic.kernel import cli
from ddp_magic.kernel.control.server import ControlServer
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.states import State
from tests.unit.kernel.test_past_runs import run


@pytest.fixture
def root() -> Iterator[Path]:
    """Where runs lie. Its path is short: it is that of a socket."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


@pytest.fixture
def kernel(root: Path) -> Iterator[list[list[str]]]:
    """A kernel that has run "1127-103517-7-1"; returns what it was asked."""
    asked: list[list[str]] = []

    def answer(words: list[str]) -> str:
        asked.append(words)
        if len(words) > 1 and words[1] not in ("7-1", "lab"):
            raise ValueError(f"unknown run {words[1]!r}")
        return "7-1" if words == ["running"] else "answer to " + " ".join(words)

    server = ControlServer(answer)
    server.start(root)
    yield asked
    server.close()


def _log(root: Path, run: str, *lines: str, rank: int = 0) -> None:
    directory = root / run
    directory.mkdir(exist_ok=True)
    (directory / f"rank{rank}.log").write_text("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["logs", "-r", "x"], "argument -r/--rank: invalid rank 'x': use 0, 1, ..."),
        (["logs", "-n", "-3"], "argument -n/--lines: invalid number of lines '-3': use 0, 1, 2"),
        (["logs", "-r", "-1"], "argument -r/--rank: invalid rank '-1': use 0, 1, ..."),
        (["show", "-r", "1.5"], "argument -r/--rank: invalid rank '1.5': use 0, 1, ..."),
    ],
)
def test_a_wrong_value_is_refused_as_by_the_line_magics(
    words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(words, [])
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["status", "stacks", "stop"])
def test_a_verb_asks_the_kernel(
    root: Path, kernel: list[list[str]], capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    assert cli.main([verb], [root]) == 0
    assert cli.main([verb, "7-1"], [root]) == 0
    first = [["running"]] if verb == "stop" else []  # which are there?
    assert kernel == [*first, [verb], [verb, "7-1"]]
    assert f"answer to {verb} 7-1" in capsys.readouterr().out


@pytest.mark.usefixtures("kernel")
def test_runs_of_ended_notebooks_are_listed_once(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However many notebooks there are; also if there is none."""
    run(root, "1127-103517-6-1")
    second = ControlServer(" ".join, is_host=True)
    second.start(root)
    assert cli.main(["status"], [root]) == 0
    assert capsys.readouterr().out.count("run 1127-103517-6-1") == 1
    second.close()


def test_what_no_kernel_knows_is_an_error(
    root: Path, kernel: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["stop", "other"], [root]) == 1
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "unknown run 'other'\n")
    assert kernel == [["stop", "other"]]


def test_a_killed_kernel_is_forgotten(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its socket is still there."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(root / "kernel-1.control"))
    assert cli.main(["status"], [root]) == 1
    assert "none of your running notebooks" in capsys.readouterr().err
    assert list(root.iterdir()) == []


def test_logs_need_no_kernel(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By default of the run that wrote last, all ranks, labeled."""
    _log(root, "1127-103517-7-1", "old")
    _log(root, "1127-103518-7-2", "one", "two")
    _log(root, "1127-103518-7-2", "three", rank=11)
    assert cli.main(["logs"], [root]) == 0
    lines = "[rank 0] one\n[rank 0] two\n[rank 11] three\n"
    assert capsys.readouterr() == (lines, "run 1127-103518-7-2\n")
    assert cli.main(["logs", "7-1"], [root]) == 0
    assert capsys.readouterr() == ("[rank 0] old\n", "")
    assert cli.main(["logs", "-r", "0", "-n", "1"], [root]) == 0
    assert capsys.readouterr().out == "two\n"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["logs", "9-9"], "no run '9-9' with logs is left"),
        (["logs", "-r", "5"], "rank 5 of run 1127-103517-7-1 wrote nothing; ranks that did: 0"),
    ],
)
def test_logs_that_are_not_there(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], error: str
) -> None:
    _log(root, "1127-103517-7-1", "text")
    assert cli.main(arguments, [root]) == 1
    assert error in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words"), [(None, 0, ""), (errors.TimeLimitError("too long"), 1, "too long")]
)
def test_attach_shows_a_run_and_exits_as_it_ended(
    root: Path, capsys: pytest.CaptureFixture[str], error: Any, code: int, words: str
) -> None:
    directory = RunDirectory(root / "1127-103517-7-1")
    directory.make_again()
    record = RunRecord(
        id=directory.id,
        label="Cell In[1]",
        log_directory=directory,
        background=Background(detached=True, pull="x"),
        ranks=[Rank(rank=0, log=directory.rank_log(0))],
        state=State.FAILED if error else State.SUCCEEDED,
        error=error,
    )
    journal = Journal(directory.journal)
    journal.begin(record)
    journal.text("[rank 0] hello\n")
    journal.end(record)
    assert cli.main(["attach", "7-1"], [root]) == code
    shown = capsys.readouterr()
    assert shown.out.startswith("[rank 0] hello\n1 rank · ")
    assert words in shown.err
    assert cli.main(["attach"], [root]) == code
    assert capsys.readouterr().err.startswith("run 1127-103517-7-1 · Cell In[1] · ")  # which it is
    assert ("%ddp_attach 1127-103517-7-1 in a notebook" in shown.out) is (code == 0)


def test_a_run_that_has_ended_cannot_be_stopped(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody serves it any more."""
    run(root, "1127-103517-7-1")
    assert cli.main(["stop", "7-1"], [root]) == 1
    assert capsys.readouterr().err == "run 1127-103517-7-1 has ended: 1 rank · 1.0 s · ok\n"
    assert cli.main(["stop", "7-2"], [root]) == 1
    assert "none of your running notebooks" in capsys.readouterr().err


def test_a_run_that_is_not_there_cannot_be_attached(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["attach", "7-1"], [root]) == 1
    assert "no run '7-1' is left" in capsys.readouterr().err


def test_a_host_is_asked_too(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It serves a background run, as a kernel would."""
    server = ControlServer(" ".join, is_host=True)
    server.start(root)
    assert cli.main(["status"], [root]) == 0
    assert capsys.readouterr().out == f"host {os.getpid()}\nstatus\n\n"
    server.close()
    assert list(root.iterdir()) == []


def test_a_stopped_kernel_is_named_beside_what_others_answer(
    root: Path,
    kernel: list[list[str]],
    stopped_kernel: Callable[[Path], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Otherwise its runs would not be there, or `no run is going on` be said."""
    pid = stopped_kernel(root)
    said = f"kernel {pid} does not answer: it is stopped: `kill -CONT {pid}` continues it\n"
    assert cli.main(["status"], [root]) == 0
    shown = capsys.readouterr()
    assert "answer to status" in shown.out
    assert shown.err == said
    kernel.clear()
    assert cli.main(["stacks", "8-1"], [root]) == 1
    assert capsys.readouterr().err == said


def test_of_several_runs_none_is_stopped(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also if they are of two notebooks: the one that is meant must be named."""
    asked: list[list[str]] = []

    def answer(words: list[str]) -> str:
        asked.append(words)
        return "7-1\n7-2" if words == ["running"] else "stopped"

    server = ControlServer(answer)
    server.start(root)
    assert cli.main(["stop"], [root]) == 1
    assert asked == [["running"]]
    assert "give the id of one: 7-1 7-2" in capsys.readouterr().out
    assert cli.main(["stop", "7-2"], [root]) == 0
    server.close()
