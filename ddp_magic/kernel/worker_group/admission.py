"""Which messages a rank, an agent or an unknown connection may send.

A connection to a group's socket is unknown until its first message. That message identifies it as a
rank, which may only report on itself, or as an agent, which reports how its ranks ended. The socket
is in a private directory, so unknown connections come from the user's own processes: a library that
connects to any open socket, a launcher inside a rank, a faulty script. They must not harm a run.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import get_args

from ddp_magic.errors import ProtocolError
from ddp_magic.wire.channel import Channel
from ddp_magic.wire.commands import Command
from ddp_magic.wire.events import AgentDone, AgentHello, Event, WorkerExited
from ddp_magic.wire.worker_events import WorkerEvent, WorkerHello

MAX_MARKER_CHARS = 100
_OF_RANKS = tuple(kind for kind in get_args(WorkerEvent) if kind is not WorkerHello)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a group knows when a message arrives.

    Attributes:
        nproc: Number of ranks.
        present: Ranks that are or were connected.
        exited: Ranks whose end an agent has reported.
        rank: The rank that sent the message; None if the connection is not a rank's.
        agent: Whether the connection is an agent's.
        attempt: How often the ranks were restarted.
        max_restarts: How often they may be restarted.
    """

    nproc: int
    present: Collection[int] = ()
    exited: Collection[int] = ()
    rank: int | None = None
    agent: bool = False
    attempt: int = 0
    max_restarts: int = 0

    def is_restart(self, hello: AgentHello | WorkerHello) -> bool:
        """Return whether a hello belongs to the next attempt, which begins with it."""
        return hello.attempt == self.attempt + 1 <= self.max_restarts

    def repeats(self, hello: AgentHello) -> bool:
        """Return whether an agent begins an attempt that another node's has begun already."""
        return self.agent and hello.attempt == self.attempt > 0


def check(message: Command | Event, standing: Standing) -> None:
    """Check a message against the connection that it arrived on.

    Raises:
        ProtocolError: It is invalid on that connection.
    """
    kind = type(message).__name__
    match message:
        case WorkerHello() if standing.rank is None and not standing.agent:
            _check_hello(message, standing)
        case AgentHello() if standing.rank is None and (
            standing.is_restart(message) or standing.repeats(message)
        ):
            pass
        case AgentHello() if standing.rank is None and not standing.agent:
            _check_attempt(message, standing)
            # An agent starts the ranks, so it connects before the last of them.
            if len(standing.present) == standing.nproc:
                raise ProtocolError(f"{kind}, but every rank is connected already")
        case WorkerExited(rank=rank) if standing.agent:
            _check_rank(kind, rank, standing)
            if rank in standing.exited:
                raise ProtocolError(f"{kind} names rank {rank}, which has ended already")
        case AgentDone() if standing.agent:
            pass
        case _ if isinstance(message, _OF_RANKS) and standing.rank is not None:
            if message.rank != standing.rank:
                raise ProtocolError(f"{kind} names rank {message.rank}")
        case _:
            raise ProtocolError(f"unexpected {kind}")


def _check_hello(hello: WorkerHello, standing: Standing) -> None:
    _check_rank("WorkerHello", hello.rank, standing)
    if not standing.is_restart(hello):
        _check_attempt(hello, standing)
    if hello.rank in standing.present and not standing.is_restart(hello):
        raise ProtocolError(f"WorkerHello names rank {hello.rank}, which is connected already")
    if not 0 < len(hello.marker) <= MAX_MARKER_CHARS or not hello.marker.isascii():
        raise ProtocolError(f"WorkerHello has the marker {hello.marker[:MAX_MARKER_CHARS]!r}")


def _check_attempt(hello: AgentHello | WorkerHello, standing: Standing) -> None:
    if hello.attempt != standing.attempt:
        kind, now = type(hello).__name__, standing.attempt
        raise ProtocolError(f"{kind} names attempt {hello.attempt}; the ranks are in attempt {now}")


def _check_rank(kind: str, rank: int, standing: Standing) -> None:
    if rank >= standing.nproc:
        raise ProtocolError(f"{kind} names rank {rank}; the last rank is {standing.nproc - 1}")


def take_pipe(channel: Channel) -> int:
    """Return the read end of a pipe that came with a message.

    Raises:
        ProtocolError: None came, or it is something else.
    """
    return _take(channel, _check_pipe)


def take_buffers(channel: Channel, sizes: Sequence[int]) -> int:
    """Return the file with buffers of these sizes, in bytes, that came with a message.

    Raises:
        ProtocolError: None came, or it is something else.
    """
    return _take(channel, lambda fd: _check_buffers(fd, sizes))


def _take(channel: Channel, check_fd: Callable[[int], None]) -> int:
    fd = channel.take_fd()
    try:
        check_fd(fd)
    except ProtocolError:
        os.close(fd)
        raise
    return fd


def _check_pipe(fd: int) -> None:
    mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    if not stat.S_ISFIFO(os.fstat(fd).st_mode) or mode == os.O_WRONLY:
        raise ProtocolError("its descriptor is not the read end of a pipe")


def _check_buffers(fd: int, sizes: Sequence[int]) -> None:
    status = os.fstat(fd)
    if not sizes or not stat.S_ISREG(status.st_mode) or sum(sizes) > status.st_size:
        raise ProtocolError(
            f"its descriptor does not hold {sum(sizes)} bytes in {len(sizes)} buffers"
        )
