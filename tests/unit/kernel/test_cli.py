"""The terminal's verbs, with kernels that are threads of the test."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddp_magic.kernel import cli
from ddp_magic.kernel.control import ControlServer


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


@pytest.mark.parametrize("verb", ["status", "stacks", "stop"])
def test_a_verb_asks_the_kernel(
    root: Path, kernel: list[list[str]], capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    assert cli.main([verb], [root]) == 0
    assert cli.main([verb, "7-1"], [root]) == 0
    first = [["running"]] if verb == "stop" else []  # which are there?
    assert kernel == [*first, [verb], [verb, "7-1"]]
    assert f"answer to {verb} 7-1" in capsys.readouterr().out


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
    assert "no notebook of yours" in capsys.readouterr().err
    assert list(root.iterdir()) == []


def test_logs_need_no_kernel(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By default of the run that wrote last, all ranks, labeled."""
    _log(root, "1127-103517-7-1", "old")
    _log(root, "1127-103518-7-2", "one", "two")
    _log(root, "1127-103518-7-2", "three", rank=11)
    assert cli.main(["logs"], [root]) == 0
    assert capsys.readouterr().out == "[rank 0] one\n[rank 0] two\n[rank 11] three\n"
    assert cli.main(["logs", "7-1"], [root]) == 0
    assert capsys.readouterr().out == "[rank 0] old\n"
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
