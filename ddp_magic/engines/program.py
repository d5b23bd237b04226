"""Starts the program that reaches all nodes: `srun`, or the driver of Ray.

Its stdin and stdout carry the frames of all nodes.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence

from ddp_magic.system import libraries
from ddp_magic.system.processes import exit_words

CANCEL_S = 5.0  # for the program to end its job, before it is killed
LAST_WORDS_S = 10.0  # for what it wrote to be read, after its end


class Program:
    """A running program, from a thread that lives as long as that.

    Args:
        argv: Its command.
        env: Its environment.
        log: Is called with what it writes to its stderr.

    Attributes:
        program: What a person calls the program.
        name: What a person calls the job; empty if that is not known.
    """

    program = "program"

    def __init__(
        self, argv: Sequence[str], env: dict[str, str], log: Callable[[bytes], None]
    ) -> None:
        self._env = env
        self._log = log
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            # srun and Ray start nothing in a directory that was removed.
            cwd=libraries.current_directory() or tempfile.gettempdir(),
            start_new_session=True,  # Jupyter interrupts the kernel's whole process group
        )
        assert self._process.stdin is not None  # noqa: S101 -- PIPE was given
        assert self._process.stdout is not None  # noqa: S101 -- as above
        self.stdin = self._process.stdin.fileno()
        self.stdout = self._process.stdout.fileno()
        self.name = ""
        self._waits_for = ""
        self._cancelled = False
        self._words = threading.Thread(target=self._read_words, daemon=True)
        self._words.start()

    def waits_for(self) -> str:
        """Return what it waits for in the queue; empty if it runs."""
        return self._waits_for

    def fate(self) -> str:
        """Return what the cluster did to the job, as the rest of a sentence; empty if nothing."""
        code = self._process.returncode
        if self._cancelled or code is None or code >= 0:
            return ""
        return f"lost its {self.program}, which was {exit_words(code)}"

    def lost(self) -> str:
        """Return the node that the cluster has lost first; empty if none."""
        return ""

    def cancel(self) -> None:
        """End the job. Returns at once."""
        if not self._cancelled:
            self._cancelled = True
            threading.Thread(target=self._cancel, daemon=True).start()

    def _cancel(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()  # it ends its job with it
        try:
            self._process.wait(CANCEL_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # then `wait` ends the job

    def wait(self) -> int:
        """Wait for its end; return its exit code."""
        code = self._process.wait()
        self._words.join(LAST_WORDS_S)
        if code < 0:  # it was killed before it could end its job
            self._end_job()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        return code

    def _read_words(self) -> None:
        assert self._process.stderr is not None  # noqa: S101 -- PIPE was given
        for line in self._process.stderr:
            if not self._hear(line.decode(errors="replace")):
                self._log(line)

    def _hear(self, text: str) -> bool:
        """Take a line that it wrote to its stderr; return whether nobody else needs it."""
        return not text

    def _end_job(self) -> None:
        """End the job in another way: the program was killed."""
