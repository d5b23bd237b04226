"""The vocabulary of the wire, the other half: events to the kernel; see `commands`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ddp_magic.wire.worker_events import WorkerEvent

# Precedes a rank's number in the agent's log if the rank could not even connect.
NOT_STARTED = "could not start rank"

# --- events: forkserver -> kernel -------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ForkserverHello:
    """A forkserver that was forked is up: its first message to its host.

    Attributes:
        pid: Its process id.
    """

    pid: int


@dataclass(frozen=True, kw_only=True)
class Importing:
    """The forkserver is about to import a library. If it dies now, this library is the reason."""

    module: str


@dataclass(frozen=True, kw_only=True)
class Preloaded:
    """The forkserver has nothing left to import.

    Attributes:
        files: (path, mtime in ns, inode) of each package and top-level module that it has imported,
            to detect an upgrade.
        number: Number of the last `Preload` that was carried out; 0 before the first.
        failed: Why a library could not be imported, by name.
        environ: Environment variables that the libraries set while they were imported.
        left_out: Why a library is left for the ranks to import, by name.
        good: Dependencies of such libraries that have been imported.
    """

    files: dict[str, list[Any]]
    number: int
    failed: dict[str, str] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    good: tuple[str, ...] = ()


SOME_LIBRARY = "a library"


@dataclass(frozen=True, kw_only=True)
class ForkObstacle:
    """Forking from this forkserver is no longer safe; it ends.

    Attributes:
        module: The library that is the reason; `SOME_LIBRARY` if it is not known; empty if no
            forkserver would be safe.
        reason: What it does: "it starts threads".
    """

    module: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Forked:
    """The agent of a run has been forked. Its pidfd comes with this frame."""

    run_id: str


# --- events: agent -> kernel ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AgentHello:
    """The agent is connected and about to start the ranks, or to restart them.

    Attributes:
        attempt: How often the ranks were restarted before (TORCHELASTIC_RESTART_COUNT).
    """

    attempt: int = 0


@dataclass(frozen=True, kw_only=True)
class WorkerExited:
    """A rank's process has ended.

    Attributes:
        code: Its exit code; negative for the signal that killed it.
        by_agent: Whether the agent had sent it a signal, so that it is not the first failure.
    """

    rank: int
    time: float
    code: int
    by_agent: bool = False


@dataclass(frozen=True, kw_only=True)
class AgentDone:
    """Every rank has ended, is not restarted, and so have the processes that the ranks started.

    Attributes:
        error: Traceback of an error in the agent itself; empty if there was none.
        swept: Number of processes left behind by the ranks, which the agent killed.
    """

    error: str = ""
    swept: int = 0


ForkserverEvent: TypeAlias = ForkserverHello | Importing | Preloaded | ForkObstacle | Forked
AgentEvent: TypeAlias = AgentHello | WorkerExited | AgentDone
Event: TypeAlias = ForkserverEvent | AgentEvent | WorkerEvent
