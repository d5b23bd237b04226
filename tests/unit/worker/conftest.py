"""What the tests of a rank's modules share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

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
