"""Locks on GPUs that all users of this machine see, and that end with the process that holds them.

A lock is a Unix socket whose name, in Linux's abstract namespace, is made of the GPU's UUID. Only
one socket can have a name, and the operating system frees it when the process ends, however it
ends. A lock on a file would need a directory in which every user may write: there, links,
permissions, cleaners of temporary files, and services with a private /tmp would each break it. The
operating system also says which process of which user holds such a socket.

What is guaranteed: of all processes in one network namespace (containers mostly have their own),
one holds the lock of a GPU. Programs other than ddp_magic do not ask for it. Any user can take a
lock, as any user can fill a GPU. `kernel.machine.idle_gpus` decides which GPUs a run locks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import socket
import struct
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

_NAME = "\0ddp_magic/gpu/"  # and the UUID
_CHOOSING = "choosing"
_CHOOSING_S = 2.0  # to choose takes milliseconds
_PEER = struct.Struct("3i")  # pid, uid, gid
_BACKLOG = 128  # processes that ask who holds it; nothing is read from them


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lock.

    Attributes:
        user: Name of the user; empty if it is not known.
        pid: The process; 0 if it cannot be seen from here.
    """

    user: str
    pid: int


class GpuLocks:
    """The GPUs that one run, or one session, holds.

    A forked child of the process holds none of them. A program that it starts with `descriptors`
    takes them over when it unpickles them; they are free once both have released them.
    """

    def __init__(self) -> None:
        self._sockets: dict[str, socket.socket] = {}
        _all_locks.add(self)

    @property
    def descriptors(self) -> dict[str, int]:
        """The descriptor of each lock, by UUID."""
        return {uuid: lock.fileno() for uuid, lock in self._sockets.items()}

    def __reduce__(self) -> tuple[object, ...]:
        return _inherited, (os.getpid(), self.descriptors)

    def take(self, uuid: str) -> bool:
        """Lock a GPU; return False if somebody holds it.

        Raises:
            OSError: This process can open no more files.
        """
        taken = _bind(uuid)
        if taken is None:
            return False
        taken.listen(_BACKLOG)
        self._sockets[uuid] = taken
        return True

    def release(self) -> None:
        """Give all of them back."""
        while self._sockets:
            self._sockets.popitem()[1].close()

    @contextlib.contextmanager
    def released_on_error(self) -> Iterator[None]:
        """Give all of them back if the body raises: there is no run that would do it."""
        try:
            yield
        except BaseException:
            self.release()
            raise


def _inherited(pid: int, descriptors: dict[str, int]) -> GpuLocks:
    """Take over locks from process `pid`, which has started this one with their descriptors."""
    locks = GpuLocks()
    if pid == os.getpid():
        return locks  # a copy holds nothing
    for uuid, descriptor in descriptors.items():
        with contextlib.suppress(OSError):  # it was not passed on
            lock = socket.socket(fileno=os.dup(descriptor))
            if lock.getsockname() != (_NAME + uuid).encode():
                lock.close()
                continue
            os.close(descriptor)
            lock.listen(_BACKLOG)  # the holder is who listened last
            locks._sockets[uuid] = lock
    return locks


def holder(uuid: str) -> Holder | None:
    """Return who holds the lock of a GPU; None if nobody does."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(_NAME + uuid)
            pid, uid, _ = _PEER.unpack(
                probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
            )
        except ConnectionRefusedError:
            return None
        except OSError:  # very many have asked
            return Holder(user="", pid=0)
    return Holder(user=user_name(uid), pid=pid)


def user_name(uid: int) -> str:
    """Return a user's name, or the number of a user without one."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


@contextlib.contextmanager
def choosing() -> Iterator[None]:
    """Choose GPUs alone: of two that want the last two, one gets both rather than each gets one."""
    deadline = time.monotonic() + _CHOOSING_S
    while (turn := _bind(_CHOOSING)) is None and time.monotonic() < deadline:
        time.sleep(0.002)
    with turn or contextlib.nullcontext():
        yield


def _bind(name: str) -> socket.socket | None:
    """Return a socket with this name; None if another one has it."""
    made = socket.socket(socket.AF_UNIX)
    try:
        made.bind(_NAME + name)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise
    return made


_all_locks: weakref.WeakSet[GpuLocks] = weakref.WeakSet()


def _release_inherited() -> None:
    """Let go of the locks in a forked child, which may outlive the run (a `DataLoader` worker)."""
    for locks in list(_all_locks):
        locks.release()


os.register_at_fork(after_in_child=_release_inherited)
