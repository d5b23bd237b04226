"""`input()`, `getpass` and `sys.stdin` in a rank."""

from __future__ import annotations

import builtins
import getpass
import io
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from IPython.core.error import StdinNotImplementedError

from ddp_magic.wire.commands import Answer
from ddp_magic.wire.events import Event
from ddp_magic.wire.worker_events import Error, Question, QuestionWithdrawn
from ddp_magic.worker.console import keyboard
from tests.limits import HANG_S
from tests.unit.worker.fakes import FakeChannel


class Person:
    """The kernel's end: answers what is asked.

    Args:
        answers: In their order.
    """

    def __init__(self, *answers: Answer) -> None:
        self.channel = FakeChannel()
        self.asked: list[Question] = []
        self._answers = list(answers)
        self.keyboard = keyboard.Keyboard(1, self.channel, self._send)  # type: ignore[arg-type]
        keyboard.connect(self.keyboard)
        keyboard.begin_cell(can_ask=True)

    def _send(self, event: Callable[[int], Event]) -> bool:
        question = event(len(self.asked) + 1)
        assert isinstance(question, Question)
        self.asked.append(question)
        if self._answers:
            answer = self._answers.pop(0)
            self.keyboard.take(Answer(**{**vars(answer), "number": question.mark}))
        return True


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module, name in [(builtins, "input"), (getpass, "getpass"), (sys, "stdin")]:
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(sys, "__stdin__", sys.__stdin__)
    yield
    keyboard._keyboard = None


def says(text: str) -> Answer:
    return Answer(number=0, text=text)


ENDED = Answer(number=0, ended=True)


@pytest.mark.parametrize("text", ["Bob", "", "ünï ✓ 🙂", " spaces ", "x" * 100_000])
def test_input_returns_the_answer(text: str) -> None:
    person = Person(says(text))
    assert input("name? ") == text
    assert person.asked == [Question(rank=1, mark=1, prompt="name? ")]


@pytest.mark.parametrize("prompt", [7, None, ["a"], ""])
def test_a_prompt_is_any_object(prompt: object) -> None:
    person = Person(says(""))
    input(prompt)
    assert person.asked[0].prompt == str(prompt)


def test_a_password_is_asked_for_as_one() -> None:
    person = Person(says("secret"), says("secret"))
    assert getpass.getpass() == getpass.getpass("key: ", stream=sys.stderr) == "secret"
    assert [(q.prompt, q.password) for q in person.asked] == [("Password: ", True), ("key: ", True)]


def test_the_end_of_the_input_is_an_eof_error() -> None:
    Person(ENDED)
    with pytest.raises(EOFError, match="EOF when reading a line"):
        input()


def test_lines_above_the_last_one_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """An input box has one line."""
    person = Person(says(""))
    input("1) one\n2) two\nwhich? ")
    assert person.asked[0].prompt == "which? "
    assert capsys.readouterr().out == "1) one\n2) two\n"


def test_a_very_long_prompt_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    person = Person(says(""))
    input("x" * 10_000)
    assert len(person.asked[0].prompt) < 10
    assert capsys.readouterr().out == "x" * 10_000 + "\n"


def test_standard_input_is_asked_for_line_by_line() -> None:
    Person(says("a"), says("b\nc"), ENDED, says("d"))
    assert sys.stdin.readline() == "a\n"
    assert list(sys.stdin) == ["b\n", "c\n"]
    assert sys.stdin.read(1) == "d"
    assert sys.stdin.readline() == "\n"
    assert not sys.stdin.isatty()
    assert sys.stdin.fileno() == 0


def test_pythons_own_input_reads_it_too() -> None:
    """A library may have kept it under a name of its own."""
    Person(says("kept"))
    assert keyboard._python_input("? ") == "kept"


def test_nobody_can_answer() -> None:
    Person()
    keyboard.begin_cell(can_ask=False)
    words = r"^input\('name\? '\) needs an answer, but nothing here can answer .*sys.argv"
    with pytest.raises(StdinNotImplementedError, match=words):
        input("name? ")
    with pytest.raises(StdinNotImplementedError, match=r"getpass\(\) needs"):
        getpass.getpass()


def test_a_session_is_not_asked_between_its_cells() -> None:
    person = Person()
    person.keyboard.idle = True
    with pytest.raises(StdinNotImplementedError, match="no cell is running"):
        input()


def test_the_front_end_refuses() -> None:
    Person(Answer(number=0, problem="the run is being stopped"))
    with pytest.raises(StdinNotImplementedError, match="but the run is being stopped"):
        input()


def test_a_process_that_the_rank_has_started_cannot_ask() -> None:
    """A DataLoader's worker, for one."""
    person = Person()
    person.channel.closed = True
    with pytest.raises(RuntimeError, match=r"that rank 1 has started .*num_workers=0"):
        input("? ")


def test_a_process_that_is_no_rank_reads_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    keyboard.install()
    monkeypatch.setattr(sys, "stdin", io.StringIO("its own\n"))
    assert input("? ") == "its own"


def test_a_question_is_withdrawn_when_its_rank_is_interrupted() -> None:
    person = Person()
    asked = person.asked

    class Interrupted(list[Question]):
        def append(self, question: Question) -> None:
            asked.append(question)
            raise KeyboardInterrupt

    person.asked = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        input("? ")
    assert person.channel.sent == [QuestionWithdrawn(rank=1, number=1)]


def test_threads_get_their_own_answers() -> None:
    person = Person()
    got: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda name=name: got.update({name: input(name)}))  # type: ignore[misc]
        for name in "ab"
    ]
    for thread in threads:
        thread.start()
    marks: dict[str, int] = {}
    while len(marks) < 2:
        marks = {question.prompt: question.mark for question in list(person.asked)}
    for name, mark in reversed(marks.items()):
        person.keyboard.take(Answer(number=mark, text=name.upper()))
    for thread in threads:
        thread.join(HANG_S)
    assert got == {"a": "A", "b": "B"}


@pytest.mark.parametrize(("problem", "allowed"), [("", True), ("another rank had ended", False)])
def test_the_kernel_lets_a_rank_into_the_debugger(problem: str, allowed: bool) -> None:
    person = Person()
    error = Error(rank=1, time=1.0, ename="E", evalue="", traceback=(), held=True)

    def answer(message: Any) -> bool:
        assert message is error
        person.keyboard.take(Answer(number=0, problem=problem))
        return True

    person.channel.send = answer  # type: ignore[assignment, method-assign]
    assert person.keyboard.may_examine(error) is allowed
