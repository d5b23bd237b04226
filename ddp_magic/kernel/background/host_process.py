"""The host of a background run, as a notebook reaches it: by its process and by its socket."""

from __future__ import annotations

import os
import signal
import subprocess

from ddp_magic.display.journal import past_run
from ddp_magic.display.journal.past_run import PastRun
from ddp_magic.errors import DDPMagicError, HostLostError, LaunchError, RunInterrupted
from ddp_magic.kernel.control import server as control
from ddp_magic.system.entry_points import last_words
from ddp_magic.system.processes import exit_words
from ddp_magic.system.run_directory import RunDirectory

ANSWER_S = 5.0  # for it to answer: it does at once, unless someone has stopped it
CLOSE_S = 3.0  # for a host to end with its kernel


class HostProcess:
    """The host of one run.

    Args:
        directory: Of the run.
        process: The host, if this process has started it; otherwise the run's journal names it.

    Attributes:
        ended_here: Whether it was asked to end with this process.
    """

    def __init__(
        self, directory: RunDirectory, process: subprocess.Popen[bytes] | None = None
    ) -> None:
        self.ended_here = False
        self._directory = directory
        self._process = process
        self._head: PastRun | None = None  # which process it is does not change

    @property
    def is_ours(self) -> bool:
        """Whether this process has started it."""
        return self._process is not None

    @property
    def pid(self) -> int | None:
        """Its process id; None if it is not known yet."""
        if self._process is not None:
            return self._process.pid
        head = self._read_head()
        return None if head is None else head.kernel

    def lives(self) -> bool:
        """Return whether it has not ended."""
        if self._process is not None:
            return self._process.poll() is None
        head = self._read_head()
        return head is not None and head.kernel_lives

    def _read_head(self) -> PastRun | None:
        self._head = self._head or past_run.read(self._directory.journal)
        return self._head

    def kill(self) -> None:
        """Kill it: its ranks end with it."""
        if self.lives() and self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)

    def ask(self, words: list[str]) -> str:
        """Ask it; see `answers`.

        Raises:
            ConnectionError: It does not listen: not yet, or not any more.
            TimeoutError: It does not answer.
            ValueError: It refuses.
        """
        if (pid := self.pid) is None:
            raise ConnectionError
        path = control.host_socket(self._directory.path.parent, pid)
        ok, text = control.ask(path, words, ANSWER_S)
        if not ok:
            raise ValueError(text)
        return text

    def loss(self, *, started: bool) -> DDPMagicError | RunInterrupted:
        """Return the error of a run whose host ended before it.

        Args:
            started: Whether the run had started.
        """
        if self.ended_here:
            return RunInterrupted("the notebook's kernel ended, and this background run with it")
        code = self._process.poll() if self._process is not None else None
        how = "" if code is None else f" ({exit_words(code)})"
        if code == -signal.SIGKILL:
            how = f" ({exit_words(code)}: often the machine ran out of memory)"
        words, run = last_words(self._directory.host_log).splitlines(), self._directory.id
        if not started:
            text = f"run {run} could not start: its host process ended at once{how}"
            return LaunchError(text, details=words)
        text = f"the host process of run {run} ended{how} before the run, and its ranks with it"
        return HostLostError(text, details=words)

    def reap(self) -> None:
        """Wait for its end, if this process has started it: otherwise it stays a zombie."""
        if self._process is not None:
            self._process.wait()

    def end(self) -> None:
        """Ask it to end with this process, which has started it."""
        if self._process is not None:
            self.ended_here = True
            self._process.terminate()

    def close(self) -> None:
        """Wait for what `end` asked for, and kill it if that takes too long."""
        if self._process is None:
            return
        try:
            self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
