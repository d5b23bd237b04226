"""Waiting for descriptors. Unlike `select.select`, also for those from number 1024 on."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from select import POLLIN, poll  # bound here: a cell may replace the module's
from typing import Protocol, TypeVar


class HasFileno(Protocol):
    """A socket, a channel, a process."""

    def fileno(self) -> int:
        """Return its descriptor."""


End = TypeVar("End", bound="int | HasFileno")


def readable(ends: Iterable[End], timeout_s: float | None) -> list[End]:
    """Return those that can be read or have ended, after waiting for the first of them.

    Args:
        ends: Descriptors, and what has one.
        timeout_s: Longest wait, in seconds; None for ever.
    """
    waiting = poll()
    by_fd = {end if isinstance(end, int) else end.fileno(): end for end in ends}
    for fd in by_fd:
        waiting.register(fd, POLLIN)
    found = waiting.poll(None if timeout_s is None else ceil(timeout_s * 1000))
    return [by_fd[fd] for fd, _ in found]
