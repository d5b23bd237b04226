"""Where a person answers a rank's question: the front end's input box, or the terminal.

One question at a time. `poll` never waits, since the run goes on meanwhile.
"""

from __future__ import annotations

import builtins
import contextlib
import contextvars
import ctypes
import getpass
import os
import sys
import termios
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from IPython.core.error import StdinNotImplementedError
from IPython.core.interactiveshell import InteractiveShell

from ddp_magic.system.readable import readable

NOBODY = "this front end cannot ask (nbclient, papermill, a script without a terminal)"
CLOSE_S = 1.0  # for the thread that waits for an answer to end
_READ_BYTES = 64 * 1024


@dataclass(frozen=True)
class Reply:
    """What came of a question.

    Attributes:
        text: What was answered, without the end of the line.
        ended: The input was ended (Ctrl-D) instead.
        problem: Why there is no answer; empty if there is one.
    """

    text: str = ""
    ended: bool = False
    problem: str = ""


class Box(Protocol):
    """Where a person answers, one question at a time."""

    @property
    def problem(self) -> str:
        """Why nobody can answer; empty if somebody can."""

    def open(self, prompt: str, *, password: bool) -> None:
        """Show a question."""

    def poll(self) -> Reply | None:
        """Return what came of it; None if it is still open."""

    def close(self) -> None:
        """Withdraw it."""


def box_of(shell: InteractiveShell | None) -> Box:
    """Return where questions are answered.

    Args:
        shell: The notebook's shell, or a terminal's; None in a script.
    """
    kernel = getattr(shell, "kernel", None)
    return TerminalBox() if kernel is None else NotebookBox(kernel)


class _Turn:
    """The turn of one of several runs in this process: threads may each have one that asks."""

    _lock = threading.Lock()

    def __init__(self) -> None:
        self._mine = False

    def take(self) -> bool:
        """Take it if nobody has it; return whether it is ours."""
        self._mine = self._mine or self._lock.acquire(blocking=False)
        return self._mine

    def release(self) -> None:
        """Give it to another."""
        if self._mine:
            self._mine = False
            self._lock.release()


class NotebookBox:
    """The input box of a front end, opened by the kernel's own `input` and `getpass`.

    These wait for the answer, so a thread calls them.

    Args:
        kernel: ipykernel's.
    """

    def __init__(self, kernel: object) -> None:
        # ipykernel 6 and 7, which have no public name for it. Where it is missing, asking raises.
        self.problem = "" if getattr(kernel, "_allow_stdin", True) else NOBODY
        self._kernel: Any = kernel
        self._turn = _Turn()
        self._thread: threading.Thread | None = None
        self._reply: Reply | None = None

    def open(self, prompt: str, *, password: bool) -> None:
        """Show a question."""
        ask: Callable[[str], str] = getpass.getpass if password else builtins.input
        self._reply = None
        # With the context of the cell: its output is where the box is to be.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._ask, ask, prompt), daemon=True)

    def _ask(self, ask: Callable[[str], str], prompt: str) -> None:
        try:
            self._reply = Reply(text=ask(prompt))
        except EOFError:
            self._reply = Reply(ended=True)
        except StdinNotImplementedError:
            self._reply = Reply(problem=NOBODY)
        except SystemExit:  # `close`
            return
        except Exception as error:  # noqa: BLE001 -- the front end's; the rank shows it
            self._reply = Reply(problem=f"the question could not be asked ({error!r})")

    def poll(self) -> Reply | None:
        """Return what came of it; None if it is still open."""
        if self._thread is not None and self._thread.ident is None and self._turn.take():
            self._thread.start()
        if self._reply is not None:
            self._turn.release()
        return self._reply

    def close(self) -> None:
        """Withdraw it: raise SystemExit in its thread, which looks every 10 ms."""
        thread, self._thread = self._thread, None
        if thread is not None and thread.ident is not None and thread.is_alive():
            raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
            raise_in(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
            thread.join(CLOSE_S)
            self._let_cells_run()
        self._turn.release()

    def _let_cells_run(self) -> None:
        """Tell JupyterLab that the kernel waits for no answer: until then it runs no other cell.

        This message is the only one of a kernel's that tells it so, and tells it nothing else.
        """
        session, socket = (getattr(self._kernel, n, None) for n in ("session", "iopub_socket"))
        if session is not None and socket is not None:
            content = {"status": "ok", "restart": True}
            parent = self._kernel.get_parent()
            session.send(socket, "shutdown_reply", content, parent=parent)


class TerminalBox:
    """The terminal that the process reads from. The screen shows the question."""

    def __init__(self) -> None:
        self._turn = _Turn()
        self._fd = -1
        self._password = False
        self._echo: Any = None  # the terminal's settings, while it does not echo
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, replaced, None
            if sys.stdin.isatty():
                self._fd = sys.stdin.fileno()

    @property
    def problem(self) -> str:
        """Why nobody can answer; empty if somebody can."""
        return NOBODY if self._fd < 0 else ""

    def open(self, prompt: str, *, password: bool) -> None:
        """Show a question."""
        del prompt
        self._password = password

    def poll(self) -> Reply | None:
        """Return what came of it; None if it is still open."""
        if not self._turn.take():
            return None
        if self._password and self._echo is None:
            self._stop_echo()
        if not readable([self._fd], 0):
            return None
        data = os.read(self._fd, _READ_BYTES)  # a terminal gives a line at a time
        if self._echo is not None:
            sys.stdout.write("\n")  # the Enter that was not echoed
        self.close()
        if not data:
            return Reply(ended=True)
        return Reply(text=data.decode(errors="replace").removesuffix("\n"))

    def _stop_echo(self) -> None:
        with contextlib.suppress(termios.error):
            silent = termios.tcgetattr(self._fd)
            self._echo = termios.tcgetattr(self._fd)
            silent[3] &= ~termios.ECHO
            termios.tcsetattr(self._fd, termios.TCSADRAIN, silent)

    def close(self) -> None:
        """Withdraw it."""
        if self._echo is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._echo)
            self._echo = None
        self._turn.release()
