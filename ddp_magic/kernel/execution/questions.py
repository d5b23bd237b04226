"""What the ranks of a run ask, one question after the other.

A state machine: events of the ranks go in, answers come out. Where a person answers is a `Box`.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ddp_magic.display.diagnosis.first_failure import Failure
from ddp_magic.display.question_box import Box, Reply
from ddp_magic.wire.commands import EXAMINE, Answer, RunCell
from ddp_magic.wire.events import WorkerExited
from ddp_magic.wire.kernel_events import QuestionClosed, QuestionOpened, Restarted, RunEvent
from ddp_magic.wire.worker_events import Error, Idle, Question, QuestionWithdrawn

STOPPED = "the run is being stopped"
INTERRUPT_S = 1.0  # for the interrupt to reach a rank that waits for an answer
CELL_ENDED = "its cell has ended"
# Calls that ask. `input` is also what many call a tensor, and `x.input(...)` a layer.
_ASKS = re.compile(
    r"(?<![\w.])input\s*\(|\b(?:breakpoint|set_trace|getpass|post_mortem|runcall)\s*\("
    r"|\bIPython\.embed\s*\(|\bpdb\.pm\s*\("
)


def may_ask(sources: Iterable[str]) -> bool:
    """Return whether code is likely to ask, as far as its text tells.

    Args:
        sources: The text of cells.
    """
    return any(_ASKS.search(source) for source in sources)


@dataclass(frozen=True)
class Answered:
    """An answer for a rank, and what to tell the user."""

    rank: int
    answer: Answer | None = None
    event: RunEvent | None = None


class Questions:
    """The open questions of one run.

    Args:
        box: Where a person answers; None for nowhere.
        clock: Returns the time, in seconds.
    """

    def __init__(self, box: Box | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._box = box
        self._clock = clock
        self._open: deque[Question] = deque()  # the first one is in the box once it is asked
        self._asked = False
        self._withdrawn: set[tuple[int, int]] = set()  # before the question was shown
        self._out: list[Answered] = []
        self._examined = False  # whether a rank that raised is in the debugger
        self._refusal = ""  # why no more questions are asked
        self._left: dict[tuple[int, int], float] = {}  # open when the run was stopped, and since
        self._since = 0.0
        self._waited_s = 0.0

    @property
    def problem(self) -> str:
        """Why nobody can answer; empty if somebody can."""
        return "nobody can answer" if self._box is None else self._box.problem

    def prepare(self, command: RunCell, sources: Iterable[str], *, last_attempt: bool) -> RunCell:
        """Return the command to run a cell, with what its ranks need to know of questions.

        Args:
            command: The command.
            sources: The text of the cell, and of others whose functions it uses.
            last_attempt: Whether a failure ends the run: otherwise the ranks are restarted.
        """
        if self.problem:
            return dataclasses.replace(command, can_ask=False, debug=False)
        debug = command.debug and last_attempt
        asks = debug or may_ask(sources)
        return dataclasses.replace(command, can_ask=True, debug=debug, may_ask=asks)

    @property
    def waited_s(self) -> float:
        """For how long there were questions to be answered, in seconds."""
        return self._waited_s + (self._clock() - self._since if self._open else 0.0)

    @property
    def waiting(self) -> bool:
        """Whether there is a question to be answered."""
        return bool(self._open)

    # --- events in ----------------------------------------------------------------------------

    def take(self, event: RunEvent) -> None:
        """Take an event of the run."""
        match event:
            case Question(rank=rank, mark=mark) if (rank, mark) in self._withdrawn:
                self._withdrawn.discard((rank, mark))
                self._close(event)
            case Question():
                self._add(event)
            case QuestionWithdrawn(rank=rank, number=number):
                self._left.pop((rank, number), None)
                if not self._drop(
                    lambda question: (question.rank, question.mark) == (rank, number)
                ):
                    self._withdrawn.add((rank, number))
            case WorkerExited(rank=rank):
                self._drop(lambda question: question.rank == rank)
            case Idle(rank=rank):  # a thread of the rank waits
                self._drop(lambda question: question.rank == rank, CELL_ENDED)
            case Error(held=True):
                self._admit(event)
            case Restarted():
                self._examined = False
                self._drop(lambda _: True)
                self._withdrawn.clear()
            case _:
                pass

    def _admit(self, error: Error) -> None:
        """Let the first rank that raised into the debugger; the others wait for the run's end.

        A rank that failed because another one ended does not wait: there is nothing to look at.
        """
        victim = Failure(rank=error.rank, time=error.time, error=error).is_victim
        problem = self._refusal or ("another rank had ended" if victim else "")
        if problem or not self._examined:
            self._examined = self._examined or not problem
            self._out.append(Answered(error.rank, Answer(number=EXAMINE, problem=problem)))

    def _add(self, question: Question) -> None:
        if self._refusal or self._box is None:
            self._close(question, Answer(number=question.mark, problem=self._refusal or STOPPED))
            return
        if not self._open:
            self._since = self._clock()
        self._open.append(question)

    def _drop(self, concerns: Callable[[Question], bool], problem: str = "") -> bool:
        """Drop questions that nobody waits for any more; with a problem, somebody does."""
        dropped = [question for question in self._open if concerns(question)]
        for question in dropped:
            if self._asked and question is self._open[0] and self._box is not None:
                self._box.close()
                self._asked = False
            self._remove(question)
            answer = Answer(number=question.mark, problem=problem) if problem else None
            self._close(question, answer)
        return bool(dropped)

    def _remove(self, question: Question) -> None:
        self._open.remove(question)
        if not self._open:
            self._waited_s += self._clock() - self._since

    def _close(self, question: Question, answer: Answer | None = None, line: str = "") -> None:
        closed = QuestionClosed(rank=question.rank, number=question.mark, line=line)
        self._out.append(Answered(question.rank, answer, closed))

    # --- answers out --------------------------------------------------------------------------

    def step(self) -> Iterator[Answered]:
        """Ask the next question if none is being answered; yield what was answered."""
        if self._open and self._box is not None:
            question = self._open[0]
            if not self._asked:
                self._asked = True
                opened = QuestionOpened(rank=question.rank, prompt=question.prompt)
                yield Answered(question.rank, event=opened)  # shown with all text before it
                self._box.open(shown(question), password=question.password)
            if (reply := self._box.poll()) is not None:
                self._asked = False
                self._remove(question)
                self._answer(question, reply)
        self._release_threads()
        out, self._out = self._out, []
        yield from out

    def _release_threads(self) -> None:
        """Answer those that the interrupt of their rank's main thread has not reached."""
        for (rank, number), since in list(self._left.items()):
            if self._clock() - since > INTERRUPT_S:
                del self._left[rank, number]
                self._out.append(Answered(rank, Answer(number=number, problem=STOPPED)))

    def _answer(self, question: Question, reply: Reply) -> None:
        answer = Answer(
            number=question.mark, text=reply.text, ended=reply.ended, problem=reply.problem
        )
        text = "********" if question.password else reply.text
        line = "" if reply.problem else shown(question) + ("^D" if reply.ended else text)
        self._close(question, answer, line)

    def stop(self) -> None:
        """Ask no more: the run is being stopped, and its ranks are interrupted."""
        if not self._refusal:
            self._refusal = STOPPED
            self._left = {(q.rank, q.mark): self._clock() for q in self._open}
            self._drop(lambda _: True)


def shown(question: Question) -> str:
    """Return a question as a person sees it: `[rank 1] name? `."""
    return f"[rank {question.rank}] {question.prompt}"
