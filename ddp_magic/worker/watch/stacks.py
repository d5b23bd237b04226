"""Registers faulthandler: a rank writes its stacks to a file at SIGUSR1 and when it crashes."""

from __future__ import annotations

import faulthandler
import os
import signal
from pathlib import Path

from ddp_magic.worker.console.streams import move_high


def register(path: Path) -> None:
    """Write all threads' stacks to a file when SIGUSR1 arrives, and when the process crashes.

    faulthandler does this in C, even while other C code holds the interpreter lock.

    Args:
        path: The file; stacks are appended. What a rank of an earlier attempt wrote is removed.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC
    try:
        fd = move_high(os.open(path, flags, 0o600))
    except OSError:  # a full disk costs the stacks, not the rank
        fd = move_high(os.open(os.devnull, os.O_WRONLY))
    faulthandler.register(signal.SIGUSR1, file=fd, all_threads=True)
    faulthandler.enable(file=fd, all_threads=True)


def takes_usr1() -> bool:
    """Return whether the user's code handles SIGUSR1 in its own way, as libraries for Slurm do.

    What faulthandler has registered is not known to Python.
    """
    return signal.getsignal(signal.SIGUSR1) is not signal.SIG_DFL
