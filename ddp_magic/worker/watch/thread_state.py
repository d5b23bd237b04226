"""What the operating system says of the main thread; asked by the profile's thread."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ddp_magic.worker.console.streams import move_high
from ddp_magic.worker.watch.main_thread import CpuClock


class ThreadState:
    """What the operating system says of the main thread."""

    def __init__(self) -> None:
        # Linux numbers the main thread as the process; Python, after a fork, as it was before.
        self._task = Path(f"/proc/self/task/{os.getpid()}")
        self._head = f"{os.getpid()} (".encode()
        self._clock = CpuClock()
        self._queued_s = self._queued()
        self._fd = -1

    def sleeps(self) -> bool:
        """Return whether it waits for something; False where nobody can tell."""
        # The name of the program, in parentheses, may have any character.
        state = self._stat().rpartition(b") ")[2][:1]
        return state in (b"S", b"D")

    def _stat(self) -> bytes:
        """Return the first part of the thread's stat file, which is kept open.

        Each call of the system gives the interpreter lock away, and takes it back from the main
        thread. The cell may close the descriptor, and open a file of its own under its number.
        """
        try:
            stat = os.pread(self._fd, 256, 0)
            if stat.startswith(self._head):
                return stat
        except OSError:
            pass
        try:
            self._fd = move_high(os.open(self._task / "stat", os.O_RDONLY | os.O_CLOEXEC))
            return os.pread(self._fd, 256, 0)
        except OSError:
            return b""

    def close(self) -> None:
        """Close the file, if it is still ours."""
        if self._stat().startswith(self._head):
            with contextlib.suppress(OSError):
                os.close(self._fd)

    def cpu_s(self) -> float:
        """Return the processor time that it has used, in seconds."""
        return self._clock.seconds()

    def queued_s(self) -> float | None:
        """Return for how long it has been ready to run without a processor, since this began."""
        queued_s = self._queued()
        return None if queued_s is None or self._queued_s is None else queued_s - self._queued_s

    def _queued(self) -> float | None:
        try:
            return int((self._task / "schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            return None
