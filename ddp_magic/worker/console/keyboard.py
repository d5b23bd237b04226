"""What reads from the keyboard in a rank: it asks in the notebook, and waits for the answer.

`input`, `getpass.getpass` and `sys.stdin` are replaced. The first two are replaced before the
notebook's libraries are imported, some of which keep them under a name of their own.
"""

from __future__ import annotations

import builtins
import contextlib
import getpass as getpass_module
import io
import queue
import sys
import threading
from collections.abc import Callable
from time import time as now  # bound here: a cell may replace the module's
from typing import NoReturn

from IPython.core.error import StdinNotImplementedError

from ddp_magic.wire.channel import Channel
from ddp_magic.wire.commands import EXAMINE, Answer
from ddp_magic.wire.events import Event
from ddp_magic.wire.worker_events import DebuggerQuit, Error, Question, QuestionWithdrawn
from ddp_magic.worker import interrupts

MAX_PROMPT_CHARS = 300  # of a box; a longer prompt is printed
NOWHERE = "nothing here can answer (nbclient, papermill, --bg, a script without a terminal)"
_python_input = builtins.input
_python_getpass = getpass_module.getpass
_keyboard: Keyboard | None = None  # of this process; None if it is no rank


class Keyboard:
    """Asks the person at the notebook.

    Args:
        rank: This rank.
        channel: To the kernel.
        send_marked: Sends an event whose place is marked in the rank's text.

    Attributes:
        can_ask: Whether a person can answer.
        idle: Whether no cell runs, so that nobody listens.
    """

    def __init__(
        self,
        rank: int,
        channel: Channel,
        send_marked: Callable[[Callable[[int], Event]], bool],
    ) -> None:
        self.can_ask = False
        self.idle = False
        self._rank = rank
        self._channel = channel
        self._send_marked = send_marked
        self._waiting: dict[int, queue.SimpleQueue[Answer]] = {}

    def check(self, call: str, instead: str) -> None:
        """Check that somebody can answer.

        Args:
            call: What the cell has called: `breakpoint()`.
            instead: What to do instead, where nobody can answer.

        Raises:
            RuntimeError: This process was started by the rank.
            StdinNotImplementedError: Nobody can answer.
        """
        if self._channel.closed:
            raise RuntimeError(
                f"a process that rank {self._rank} has started called {call}: only the rank itself "
                "can ask. Ask before the process is started; a DataLoader without workers "
                "(num_workers=0) runs in the rank"
            )
        if not self.can_ask or self.idle:
            where = "no cell is running" if self.idle else NOWHERE
            raise _unanswered(call, where, instead)

    def ask(self, prompt: str = "", *, password: bool = False, call: str = "input()") -> str:
        """Ask for a line.

        Args:
            prompt: What is asked; lines above its last one are printed.
            password: Do not show the answer.
            call: What the cell has called.

        Raises:
            EOFError: The input was ended.
            StdinNotImplementedError: Nobody can answer.
        """
        self.check(call, _INSTEAD)
        answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        number = 0
        text = _printed_above(prompt)

        def question(mark: int) -> Question:
            nonlocal number
            number = mark
            self._waiting[mark] = answers
            return Question(rank=self._rank, mark=mark, prompt=text, password=password)

        answer = None
        try:
            self._send_marked(question)
            answer = answers.get()
        finally:
            self._waiting.pop(number, None)
            if answer is None and number:  # interrupted
                with interrupts.held_back():
                    self._channel.send(QuestionWithdrawn(rank=self._rank, number=number))
        if answer.problem:
            raise _unanswered(call, answer.problem, _INSTEAD)
        if answer.ended:
            raise EOFError("EOF when reading a line")
        return answer.text

    def may_examine(self, error: Error) -> bool:
        """Ask whether to enter the debugger after an error, and wait for the answer."""
        answers = self._waiting[EXAMINE] = queue.SimpleQueue()
        with interrupts.held_back():
            self._channel.send(error)
        return not answers.get().problem

    def take(self, answer: Answer) -> None:
        """Hand an answer to whoever waits for it."""
        if (waiting := self._waiting.get(answer.number)) is not None:
            waiting.put(answer)

    def quit_run(self) -> NoReturn:
        """End the run, because its debugger was quit.

        Raises:
            KeyboardInterrupt: The kernel has interrupted all ranks.
            SystemExit: In another thread than the main one.
        """
        with interrupts.held_back():
            self._channel.send(DebuggerQuit(rank=self._rank, time=now()))
        if threading.current_thread() is not threading.main_thread():
            raise SystemExit
        never: queue.SimpleQueue[None] = queue.SimpleQueue()
        while True:
            never.get()


class Stdin(io.TextIOBase):
    """`sys.stdin` of a rank: each line is asked for. Its descriptor reads from /dev/null."""

    name = "<stdin>"
    mode = "r"
    encoding = "utf-8"
    errors = "strict"

    def __init__(self, keyboard: Keyboard) -> None:
        self._keyboard = keyboard
        self._rest = ""  # of an answer of several lines
        self._ended = False
        self.buffer = open(0, "rb", closefd=False)  # noqa: SIM115 -- as Python's own

    def fileno(self) -> int:
        """Return 0, for what is started with it."""
        return 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]
        """Ask for a line; empty at the end of the input."""
        if not self._rest and not self._ended:
            try:
                self._rest = self._keyboard.ask(call="sys.stdin.readline()") + "\n"
            except EOFError:
                self._ended = True
        end = self._rest.find("\n") + 1
        if size is not None and size >= 0:
            end = min(end, size)
        line, self._rest = self._rest[:end], self._rest[end:]
        if not line:
            self._ended = False  # as in a terminal, where one can read on after Ctrl-D
        return line

    def read(self, size: int | None = -1, /) -> str:
        """Ask for lines until the input is ended, or there are so many characters."""
        if size is not None and size >= 0:
            return self.readline(size)
        return "".join(iter(self.readline, ""))


_INSTEAD = (
    "pass the value after `--`, and the cell finds it in sys.argv[1:]; or run the cell where "
    "somebody can answer, in Jupyter or a terminal"
)


def install() -> None:
    """Replace `input` and `getpass`. In a process that is no rank they do what they did."""
    builtins.input = _input
    getpass_module.getpass = _getpass


def connect(keyboard: Keyboard) -> None:
    """Let what reads from the keyboard in this rank ask in the notebook."""
    global _keyboard  # noqa: PLW0603 -- there is one keyboard
    _keyboard = keyboard
    install()


def begin_cell(*, can_ask: bool) -> None:
    """Give the cell a fresh `sys.stdin`: an earlier one of the session may have closed it."""
    install()
    if _keyboard is None:
        return
    _keyboard.can_ask, _keyboard.idle = can_ask, False
    if can_ask:
        sys.stdin = sys.__stdin__ = Stdin(_keyboard)  # type: ignore[assignment, misc]


def current() -> Keyboard | None:
    """Return the keyboard of this process; None if it is no rank."""
    return _keyboard


def _input(prompt: object = "", /) -> str:
    if _keyboard is None:
        return _python_input(prompt)
    text = str(prompt)
    shown = repr(text if len(text) <= MAX_PROMPT_CHARS else text[:MAX_PROMPT_CHARS] + "...")
    return _keyboard.ask(text, call=f"input({shown if text else ''})")


def _getpass(
    prompt: str = "Password: ", stream: object = None, *, echo_char: str | None = None
) -> str:
    if _keyboard is None:
        return _python_getpass(prompt)
    del stream, echo_char  # of a terminal
    return _keyboard.ask(str(prompt), password=True, call="getpass()")


def _unanswered(call: str, why: str, instead: str) -> StdinNotImplementedError:
    """Return an error that has the same text on all ranks, so that it is shown once."""
    return StdinNotImplementedError(f"{call} needs an answer, but {why}: {instead}")


def _printed_above(prompt: str) -> str:
    """Print what of a prompt does not fit in a box of one line; return the rest."""
    above, newline, last = prompt.rpartition("\n")
    if len(last) > MAX_PROMPT_CHARS:
        above, newline, last = prompt, "\n", "... "
    if newline:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stdout.write(above + newline)  # the cell may have closed it
    return last
