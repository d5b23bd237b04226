"""Where a person answers: a front end's input box, and a terminal."""

from __future__ import annotations

import builtins
import contextvars
import getpass
import io
import os
import pty
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from IPython.core.error import StdinNotImplementedError

from ddp_magic.display.question_box import NOBODY, NotebookBox, Reply, TerminalBox, box_of
from tests.limits import HANG_S


def wait(box: Any) -> Reply | None:
    """The reply, once there is one."""
    deadline = time.monotonic() + HANG_S
    while (reply := box.poll()) is None and time.monotonic() < deadline:
        time.sleep(0.005)
    return cast("Reply | None", reply)


# --- a front end --------------------------------------------------------------------------------


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], str]], NotebookBox]:
    """Make a kernel whose `input` and `getpass` are a function, as ipykernel replaces them."""

    def make(ask: Callable[[str], str]) -> NotebookBox:
        monkeypatch.setattr(builtins, "input", ask)
        monkeypatch.setattr(getpass, "getpass", lambda prompt: "*" + ask(prompt))
        return NotebookBox(SimpleNamespace(_allow_stdin=True))

    return make


def _raise(error: BaseException) -> Callable[[str], str]:
    def ask(_prompt: str) -> str:
        raise error

    return ask


@pytest.mark.parametrize(("password", "expected"), [(False, "? Bob"), (True, "*? Bob")])
def test_the_kernels_own_input_asks(kernel: Any, password: bool, expected: str) -> None:
    box = kernel(lambda prompt: prompt + "Bob")
    box.open("? ", password=password)
    assert wait(box) == Reply(expected)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (EOFError(), Reply(ended=True)),
        (StdinNotImplementedError("no"), Reply(problem=NOBODY)),
        (OSError("gone"), Reply(problem="the question could not be asked (OSError('gone'))")),
    ],
)
def test_a_question_without_an_answer(kernel: Any, error: Exception, expected: Reply) -> None:
    box = kernel(_raise(error))
    box.open("? ", password=False)
    assert wait(box) == expected


def test_it_is_asked_in_the_context_of_the_cell(kernel: Any) -> None:
    """By which ipykernel knows where the box is to be."""
    cell: contextvars.ContextVar[str] = contextvars.ContextVar("cell")
    cell.set("In[3]")
    box = kernel(lambda _prompt: cell.get())
    box.open("? ", password=False)
    assert wait(box) == Reply("In[3]")


def test_a_box_that_is_closed_waits_no_more(kernel: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Its thread ends, silently, and the next question has an answer of its own."""
    waits = threading.Event()

    def for_ever(prompt: str) -> str:
        while prompt == "first":  # as ipykernel waits
            time.sleep(0.01)
        return "second"

    box = kernel(for_ever)
    box.open("first", password=False)
    assert box.poll() is None
    thread = box._thread
    waits.wait(0.05)
    box.close()
    thread.join(HANG_S)
    assert not thread.is_alive()
    assert box.poll() is None
    box.open("next", password=False)
    assert wait(box) == Reply("second")
    assert capfd.readouterr().err == ""


def test_jupyterlab_is_told_that_a_box_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs no other cell while it believes that the kernel waits for an answer."""
    never = threading.Event()

    def ask(_prompt: str) -> str:
        while not never.is_set():  # as ipykernel waits
            time.sleep(0.01)
        return ""

    monkeypatch.setattr(builtins, "input", ask)
    sent: list[tuple[Any, ...]] = []
    session = SimpleNamespace(send=lambda *args, **kwargs: sent.append((*args, kwargs)))
    kernel = SimpleNamespace(session=session, iopub_socket="iopub", get_parent=lambda: "the cell")
    box = NotebookBox(kernel)
    box.open("? ", password=False)
    assert box.poll() is None
    assert sent == []
    box.close()
    content = {"status": "ok", "restart": True}
    assert sent == [("iopub", "shutdown_reply", content, {"parent": "the cell"})]


def test_runs_of_several_threads_ask_in_turn(kernel: Any) -> None:
    """They share the front end."""
    answered = threading.Event()
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        answered.wait(HANG_S)
        return prompt

    first, second = kernel(ask), kernel(ask)
    first.open("1", password=False)
    second.open("2", password=False)
    assert (first.poll(), second.poll(), second.poll()) == (None, None, None)
    assert asked == ["1"]
    answered.set()
    assert wait(first) == Reply("1")
    assert wait(second) == Reply("2")


def test_a_box_that_is_not_open_can_be_closed() -> None:
    NotebookBox(object()).close()


@pytest.mark.parametrize(
    ("kernel", "problem"),
    [
        (SimpleNamespace(_allow_stdin=False), NOBODY),
        (SimpleNamespace(_allow_stdin=True), ""),
        (object(), ""),
    ],
)
def test_a_kernel_says_whether_its_front_end_can_ask(kernel: object, problem: str) -> None:
    """`_allow_stdin`; one without it is asked, and refuses."""
    box = box_of(cast("Any", SimpleNamespace(kernel=kernel)))
    assert isinstance(box, NotebookBox)
    assert box.problem == problem


# --- a terminal ---------------------------------------------------------------------------------


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Make `sys.stdin` a terminal; its other end."""
    person, ours = pty.openpty()
    monkeypatch.setattr(sys, "stdin", os.fdopen(ours, closefd=False))
    yield person
    os.close(person)
    os.close(ours)


def _echoes() -> bool:
    return bool(termios.tcgetattr(sys.stdin.fileno())[3] & termios.ECHO)


def test_a_terminal_gives_a_line(terminal: int) -> None:
    box = TerminalBox()
    assert box.problem == ""
    box.open("? ", password=False)
    assert box.poll() is None
    os.write(terminal, "ünï\nnext\n".encode())
    assert wait(box) == Reply("ünï")
    box.open("? ", password=False)
    assert wait(box) == Reply("next")


def test_ctrl_d_ends_the_input(terminal: int) -> None:
    box = TerminalBox()
    box.open("? ", password=False)
    os.write(terminal, b"\x04")
    assert wait(box) == Reply(ended=True)


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.usefixtures("capsys")
def test_a_password_is_not_echoed(terminal: int, answered: bool) -> None:
    box = TerminalBox()
    box.open("? ", password=True)
    assert box.poll() is None
    assert not _echoes()
    if answered:
        os.write(terminal, b"secret\n")
        assert wait(box) == Reply("secret")
    else:
        box.close()
    assert _echoes()


def test_a_script_without_a_terminal_cannot_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    for stdin in (io.StringIO("x"), None):
        monkeypatch.setattr(sys, "stdin", stdin)
        assert box_of(None).problem == NOBODY
