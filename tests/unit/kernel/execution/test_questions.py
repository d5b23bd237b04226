"""What the ranks ask: one question after the other, and what becomes of them."""

from __future__ import annotations

import pytest

from ddp_magic.display.question_box import Reply
from ddp_magic.kernel.execution.questions import (
    CELL_ENDED,
    INTERRUPT_S,
    STOPPED,
    Questions,
    may_ask,
)
from ddp_magic.wire.commands import EXAMINE, Answer, RunCell
from ddp_magic.wire.kernel_events import QuestionClosed, QuestionOpened, Restarted
from ddp_magic.wire.worker_events import QuestionWithdrawn
from tests.unit.fakes import EARLY, FakeBox, error, exited, idle, question

CELL = RunCell(path="/cell.py")


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def answers(questions: Questions) -> list[tuple[int, Answer]]:
    """The answers of one step."""
    return [(a.rank, a.answer) for a in questions.step() if a.answer is not None]


def test_ranks_are_asked_in_the_order_of_their_questions() -> None:
    box = FakeBox(Reply("Bob"), Reply("Ann"))
    questions = Questions(box)
    questions.take(question(1, 4))
    questions.take(question(0, 7))
    assert answers(questions) == [(1, Answer(number=4, text="Bob"))]
    assert answers(questions) == [(0, Answer(number=7, text="Ann"))]
    assert box.log == ["[rank 1] name? ", "[rank 0] name? "]
    assert not questions.waiting


def test_a_question_stays_open_until_it_is_answered() -> None:
    box = FakeBox(None, None, Reply(ended=True))
    questions = Questions(box)
    questions.take(question(0))
    assert [answers(questions) for _ in range(3)] == [[], [], [(0, Answer(number=1, ended=True))]]
    assert box.log == ["[rank 0] name? "]


@pytest.mark.parametrize(
    ("reply", "password", "line"),
    [
        (Reply("Bob"), False, "[rank 0] name? Bob"),
        (Reply("Bob"), True, "[rank 0] name? ********"),
        (Reply(ended=True), False, "[rank 0] name? ^D"),
        (Reply(problem="no"), False, ""),
    ],
)
def test_question_and_answer_are_kept_but_for_a_password(
    reply: Reply, password: bool, line: str
) -> None:
    questions = Questions(FakeBox(reply))
    questions.take(question(0, password=password))
    assert [a.event for a in questions.step()] == [
        QuestionOpened(rank=0, prompt="name? "),
        QuestionClosed(rank=0, number=1, line=line),
    ]


def test_what_was_written_before_a_question_is_shown_before_it() -> None:
    box = FakeBox(None)
    questions = Questions(box)
    questions.take(question(0))
    step = questions.step()
    assert next(step).event == QuestionOpened(rank=0, prompt="name? ")
    assert box.log == []  # while the screen takes it
    assert list(step) == []
    assert box.log == ["[rank 0] name? "]


def test_the_question_of_a_rank_that_ends_goes() -> None:
    """The next rank's follows, and an answer that comes too late is nobody's."""
    box = FakeBox(None, Reply("for rank 0"))
    questions = Questions(box)
    questions.take(question(1))
    questions.take(question(0))
    assert answers(questions) == []
    questions.take(exited(1, -9))
    assert answers(questions) == [(0, Answer(number=1, text="for rank 0"))]
    assert box.log == ["[rank 1] name? ", "closed", "[rank 0] name? "]


def test_a_question_that_waits_its_turn_goes_without_a_word() -> None:
    box = FakeBox(None, None)
    questions = Questions(box)
    questions.take(question(1))
    questions.take(question(0))
    answers(questions)
    questions.take(exited(0))
    answers(questions)
    assert box.log == ["[rank 1] name? "]


@pytest.mark.parametrize("withdrawn_first", [False, True])
def test_a_withdrawn_question_is_not_asked(withdrawn_first: bool) -> None:
    """It may be withdrawn before the text above it has been read."""
    box = FakeBox(Reply("late"))
    questions = Questions(box)
    events = [question(1, 3), QuestionWithdrawn(rank=1, number=3)]
    for event in reversed(events) if withdrawn_first else events:
        questions.take(event)
    assert answers(questions) == []
    assert box.log == []
    questions.take(question(1, 4))
    assert answers(questions) == [(1, Answer(number=4, text="late"))]


def test_a_thread_that_asks_at_the_end_of_its_cell_gets_an_error() -> None:
    questions = Questions(FakeBox())
    questions.take(question(0, 5))
    questions.take(idle(0))
    assert answers(questions) == [(0, Answer(number=5, problem=CELL_ENDED))]


def test_ranks_that_are_restarted_ask_anew() -> None:
    box = FakeBox(None, Reply("x"))
    questions = Questions(box)
    questions.take(question(0))
    answers(questions)
    questions.take(Restarted(number=1))
    questions.take(question(0))
    assert answers(questions) == [(0, Answer(number=1, text="x"))]
    assert box.log.count("closed") == 1


def test_a_stop_closes_the_box_and_refuses_what_is_asked_later() -> None:
    box = FakeBox(None)
    questions = Questions(box)
    questions.take(question(0))
    answers(questions)
    questions.stop()
    assert box.log[-1] == "closed"
    assert answers(questions) == []  # the interrupt is on its way
    questions.take(question(0, 2))
    assert answers(questions) == [(0, Answer(number=2, problem=STOPPED))]
    assert not questions.waiting


@pytest.mark.parametrize("withdrawn", [False, True])
def test_a_thread_that_no_interrupt_reaches_is_released(withdrawn: bool) -> None:
    clock = Clock()
    questions = Questions(FakeBox(), clock)
    questions.take(question(0, 6))
    questions.stop()
    if withdrawn:
        questions.take(QuestionWithdrawn(rank=0, number=6))
    clock.now += INTERRUPT_S + 1
    wanted = [] if withdrawn else [(0, Answer(number=6, problem=STOPPED))]
    assert answers(questions) == wanted
    assert answers(questions) == []


def test_the_time_in_which_a_person_thinks_is_known() -> None:
    """Whether one rank asks or two."""
    clock = Clock()
    questions = Questions(FakeBox(None, Reply("a"), None, Reply("b")), clock)
    questions.take(question(0))
    questions.take(question(1))
    clock.now += 3
    assert questions.waited_s == 3
    answers(questions), answers(questions)
    clock.now += 2
    answers(questions), answers(questions)
    clock.now += 10
    assert questions.waited_s == 5


def test_without_a_box_nobody_asks() -> None:
    questions = Questions(None)
    questions.take(question(0))
    assert answers(questions) == [(0, Answer(number=1, problem=STOPPED))]
    assert questions.problem


# --- the command to run a cell ------------------------------------------------------------------


def test_a_cell_knows_whether_it_can_ask() -> None:
    asks = RunCell(path="/cell.py", debug=True)
    ready = Questions(FakeBox()).prepare(asks, [""], last_attempt=True)
    assert (ready.can_ask, ready.debug, ready.may_ask) == (True, True, True)
    without = Questions(FakeBox(problem="nbclient")).prepare(asks, ["input()"], last_attempt=True)
    assert (without.can_ask, without.debug, without.may_ask) == (False, False, False)


def test_ranks_that_will_be_restarted_do_not_stop_in_the_debugger() -> None:
    asks = RunCell(path="/cell.py", debug=True)
    assert not Questions(FakeBox()).prepare(asks, [], last_attempt=False).debug


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = input('? ')", True),
        ("x=[input ( ) for _ in y]", True),
        ("breakpoint()", True),
        ("dist.breakpoint(rank=1)", True),
        ("import pdb; pdb.set_trace()", True),
        ("ipdb.set_trace()", True),
        ("key = getpass('key: ')", True),
        ("pdb.post_mortem()", True),
        ("import IPython; IPython.embed()", True),
        ("for input, target in loader: model(input)", False),
        ("x = self.input(x)", False),
        ("model.embed(x); my_input(x)", False),
        ("", False),
    ],
)
def test_a_cell_that_may_ask_is_known_by_its_text(source: str, expected: bool) -> None:
    assert may_ask(["pass", source]) is expected


# --- --debug ------------------------------------------------------------------------------------


def test_the_first_rank_that_raised_is_let_into_the_debugger() -> None:
    """The others wait, without an answer, for the end of the run."""
    questions = Questions(FakeBox())
    questions.take(error(1, held=True))
    questions.take(error(0, held=True))
    assert answers(questions) == [(1, Answer(number=EXAMINE))]


def test_a_rank_that_lost_its_peer_is_not() -> None:
    """Nor one of a run that is being stopped."""
    questions = Questions(FakeBox())
    lost = error(0, "Connection closed by peer [127.0.0.1]:5", held=True)
    questions.take(lost)
    assert [bool(answer.problem) for _, answer in answers(questions)] == [True]
    questions.take(error(1, held=True))
    assert answers(questions) == [(1, Answer(number=EXAMINE))]
    questions.stop()
    questions.take(error(2, held=True, time=EARLY))
    assert answers(questions) == [(2, Answer(number=EXAMINE, problem=STOPPED))]
