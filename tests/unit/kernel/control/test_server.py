"""The socket on which a kernel answers a terminal."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ddp_magic.kernel.control.server import ControlServer, ask
from tests.limits import HANG_S


def _answer(words: list[str]) -> str:
    if words == ["wrong"]:
        raise ValueError("no such thing")
    return f"{' '.join(words)} in {threading.current_thread().name}"


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory with a short path: it is that of a socket."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


@pytest.fixture
def path(short_path: Path) -> Iterator[Path]:
    server = ControlServer(_answer)
    server.start(short_path)
    yield next(short_path.glob("kernel-*.control"))
    server.close()
    assert list(short_path.iterdir()) == []


def test_a_question_is_answered_in_a_thread(path: Path) -> None:
    assert ask(path, ["status", "3"]) == (True, "status 3 in ddp_magic_control")
    assert ask(path, ["stacks"])[0]


def test_a_wrong_question_has_an_answer_too(path: Path) -> None:
    assert ask(path, ["wrong"]) == (False, "no such thing")


@pytest.mark.parametrize(
    "rubbish", [b"", b"\n", b"{}\n", b"[1]\n", b"x" * 20_000, b"\xff\xfe\n", b'["a"']
)
def test_a_stranger_does_no_harm(path: Path, rubbish: bytes) -> None:
    """Its connection is closed, and the next one is served."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(HANG_S)
        connection.connect(str(path))
        connection.sendall(rubbish)
        connection.shutdown(socket.SHUT_WR)
        try:
            assert connection.recv(100) == b""
        except ConnectionResetError:
            pass  # it was closed before all was read
    assert ask(path, ["status"])[0]


def test_a_stranger_that_says_nothing_is_left(short_path: Path) -> None:
    """Not for long: it would keep others from being served."""
    server = ControlServer(_answer, question_s=0.1)
    server.start(short_path)
    path = next(short_path.glob("kernel-*.control"))
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(path))
        assert ask(path, ["status"])[0]
    server.close()


def test_a_socket_that_was_removed_is_made_again(short_path: Path) -> None:
    """Cleaners of temporary files remove it; the next run asks for it again."""
    server = ControlServer(_answer)
    for _ in range(2):
        server.start(short_path)
        server.start(short_path)
        path = next(short_path.glob("kernel-*.control"))
        assert ask(path, ["status"])[0]
        path.unlink()
    server.close()


def test_a_place_where_nothing_can_be_made_costs_nothing_else(short_path: Path) -> None:
    server = ControlServer(_answer)
    server.start(short_path / "missing")
    server.close()


def test_a_kernel_that_is_stopped_is_not_waited_for(
    short_path: Path, stopped_kernel: Callable[[Path], int]
) -> None:
    """It would not answer; the reason says how to continue it."""
    pid = stopped_kernel(short_path)
    with pytest.raises(TimeoutError, match=f"it is stopped: `kill -CONT {pid}` continues it"):
        ask(short_path / f"kernel-{pid}.control", ["status"], limit_s=0.1)


def test_a_kernel_that_is_gone_does_not_answer(short_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(short_path / "kernel-1.control"))
    for path in (short_path / "kernel-1.control", short_path / "kernel-2.control"):
        with pytest.raises(ConnectionError):
            ask(path, ["status"])
