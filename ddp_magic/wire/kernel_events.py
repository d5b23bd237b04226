"""Events made in the kernel. They never travel over a socket.

A run is one stream of events: those of its agents and ranks (`events`, `worker_events`), and
these, which say what only the kernel knows: what a rank has written, that it killed a rank, where
a rank was, the end of the group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ddp_magic.wire.events import Event
from ddp_magic.wire.worker_events import Results


@dataclass(frozen=True, kw_only=True)
class Note:
    """A line of ddp_magic's own, for the user."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Doing:
    """What the whole run is doing, for the headline of the table; empty for nothing special."""

    text: str


@dataclass(frozen=True, kw_only=True)
class NodesGranted:
    """The cluster has chosen how many nodes the ranks are on, in the range that was asked for.

    Attributes:
        nnodes: Number of nodes.
        nproc: Number of ranks, of all nodes together.
    """

    nnodes: int
    nproc: int


@dataclass(frozen=True, kw_only=True)
class Rejoined:
    """A rank of a session is there for another cell.

    Attributes:
        log_bytes: Size of its log so far, in bytes.
        node: Name of its node; empty for this machine.
    """

    rank: int
    pid: int | None
    device: str
    log_bytes: int
    node: str = ""


@dataclass(frozen=True, kw_only=True)
class PulledValues:
    """The values that a rank has sent. Whoever takes the event owns the descriptor.

    Attributes:
        results: The rank's message.
        fd: Shared memory with the values; None if there are none.
    """

    results: Results
    fd: int | None


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Text from a rank, its C code or its child processes.

    Attributes:
        log_bytes: Size of the rank's log with this text in it, in bytes.
        writer: 1 for `sys.stdout`, 2 for `sys.stderr`, 0 for anybody.
        begins: Whether it is the beginning of what this one writes; False where nobody knows.
    """

    rank: int
    text: str
    log_bytes: int = 0
    writer: int = 0
    begins: bool = False


@dataclass(frozen=True, kw_only=True)
class QuestionOpened:
    """A rank's question is about to be asked: no other one is open."""

    rank: int
    prompt: str


@dataclass(frozen=True, kw_only=True)
class QuestionClosed:
    """A rank's question was answered or dropped.

    Attributes:
        number: The question's mark.
        line: Question and answer, as they are to be read later; empty if it was dropped.
    """

    rank: int
    number: int
    line: str = ""


@dataclass(frozen=True, kw_only=True)
class ConnectionLost:
    """A rank's connection has ended, but its process has not."""

    rank: int
    time: float


@dataclass(frozen=True, kw_only=True)
class Killed:
    """The kernel killed a rank that did not stop."""

    rank: int


@dataclass(frozen=True, kw_only=True)
class StackDumped:
    """Where a rank was when it was last asked for its stack, or crashed.

    Attributes:
        frames: Innermost first.
        line: The cell's innermost line in them; None if there is none.
        cell: What a person calls the cell of that line; empty for the one that runs.
    """

    rank: int
    frames: tuple[str, ...]
    line: int | None
    cell: str = ""


@dataclass(frozen=True, kw_only=True)
class OutsideEnd:
    """The cluster, or somebody else, has ended a run; or its nodes were lost.

    Attributes:
        text: How, in a sentence.
        time: When, in seconds since the epoch; what happened to the ranks later follows from it.
    """

    text: str
    time: float


@dataclass(frozen=True, kw_only=True)
class Restarted:
    """Every rank has ended, at least one of them with a failure, and the agent restarts them all.

    Attributes:
        number: Number of the restart, from 1.
        agent_died: Whether a keeper of torchrun's ended without a report, and its rank with it.
        lost: How a node was lost, without which the ranks are placed again; None if none was. If
            its loss was told before, as the failure of a rank, the number is that of the last
            restart.
    """

    number: int
    agent_died: bool = False
    lost: OutsideEnd | None = None


@dataclass(frozen=True, kw_only=True)
class GroupEnded:
    """Every process of a group has ended.

    Attributes:
        agent_died: Whether the agent ended without a report.
        agent_error: A traceback of the agent's own; empty if nothing went wrong there.
        agent_words: The end of the agent's log.
        swept: Number of processes that the ranks had left behind.
        outside: How it was ended from outside; None if it was not, as far as is known.
    """

    agent_died: bool = False
    agent_error: str = ""
    agent_words: str = ""
    swept: int = 0
    outside: OutsideEnd | None = None


RunEvent: TypeAlias = (
    Event
    | Note
    | Doing
    | NodesGranted
    | Rejoined
    | PulledValues
    | Stream
    | QuestionOpened
    | QuestionClosed
    | ConnectionLost
    | Killed
    | StackDumped
    | Restarted
    | GroupEnded
)
