"""The connections of a rank's process groups: closing them ends a wait in a collective of gloo."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator


class GroupSockets:
    """Knows the sockets that were opened while process groups were created."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    @contextlib.contextmanager
    def opened_here(self) -> Iterator[None]:
        """Note the sockets that are opened within the block."""
        before = _names()
        try:
            yield
        finally:
            self._names |= _names() - before

    def cut(self) -> None:
        """Close the connections of all groups.

        A rank that waits in a collective of gloo does not react to signals; only an error of its
        connection ends the wait.
        """
        for fd, name in _sockets():
            if name in self._names:
                try:
                    with socket.socket(fileno=os.dup(fd)) as connection:
                        connection.getpeername()  # not one that listens: gloo would abort
                        connection.shutdown(socket.SHUT_RDWR)
                except OSError:  # it listens, or is closed already
                    continue
        self._names.clear()


def _sockets() -> list[tuple[int, str]]:
    """Return (descriptor, name with inode number) of this process's sockets."""
    found = []
    for fd in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []:  # noqa: PTH112, PTH208 -- hot path
        try:
            name = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
        except OSError:  # the listing's own
            continue
        if name.startswith("socket:"):
            found.append((int(fd), name))
    return found


def _names() -> set[str]:
    return {name for _, name in _sockets()}
