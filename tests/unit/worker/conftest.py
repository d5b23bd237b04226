"""What the tests of a rank's modules share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

# As in a rank. torch reads it once; a full record of its default, 2000 calls, takes 0.3 s to read.
os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "64")

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGURG)


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    """Restore the handlers that `interrupts` has replaced."""
    before = {number: signal.getsignal(number) for number in HANDLED}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def standard_descriptors() -> Iterator[None]:
    """Restore descriptors 0, 1 and 2."""
    copies = [os.dup(fd) for fd in range(3)]
    yield
    for fd, copy in enumerate(copies):
        os.dup2(copy, fd)
        os.close(copy)
