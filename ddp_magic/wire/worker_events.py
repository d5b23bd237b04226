"""What a worker says to its kernel; see `commands`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ddp_magic.wire.collectives import Exchange, GroupRecord, Membership, Transfer
from ddp_magic.wire.states import Phase

# Exit code of a rank that can no longer reach its kernel.
LOST_CONNECTION = 113

# --- events: worker -> kernel -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WorkerHello:
    """A rank is connected. The read end of its stdout and stderr comes with this frame.

    Attributes:
        marker: Followed by a number and BEL, marks the place of a display in the rank's text; see
            `ddp_magic.display.text.rank_text`.
        attempt: How often the ranks were restarted before (TORCHELASTIC_RESTART_COUNT).
        node: Name of its node; empty on the kernel's own machine.
    """

    rank: int
    pid: int
    marker: str
    attempt: int = 0
    node: str = ""


@dataclass(frozen=True, kw_only=True)
class WorkerReady:
    """The process group is up and the cell can start."""

    rank: int
    time: float
    device: str


@dataclass(frozen=True, kw_only=True)
class Imported:
    """Installed libraries that the cell has imported on rank 0, in order."""

    rank: int
    modules: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """A rank is alive.

    Attributes:
        phase: STARTING, RUNNING, IDLE or EXITING.
        line: The cell's line that its main thread is in; None outside the cell.
        cell: What a person calls the cell of that line; empty for the one that runs.
        call: What that line has called: `all_reduce`, `DataLoader`, `time.sleep`.
        inner: The innermost line of the user's, if it is in another cell or in a module: `Cell
            In[3], line 7`. Then `call` is what that line has called.
        still_s: For how long the main thread has been at the same place, in seconds.
        cpu_s: Processor time that the main thread has used, in seconds.
        enqueued: Number of the last collective that the rank has called, by group; see
            `GroupRecord.key`.
        completed: Number of the last one that has completed, by group.
        rss_mib: Resident memory, in MiB.
        device_mib: Memory that torch holds on the rank's GPU, in MiB; None on a CPU.
        takes_usr1: Whether the user's code handles SIGUSR1, which asks a rank for its stacks.
        exit_wait: What its exit waits for, after the end of its cell; empty if it does not exit.
    """

    rank: int
    time: float
    phase: Phase
    line: int | None
    rss_mib: float
    device_mib: float | None = None
    cell: str = ""
    call: str = ""
    inner: str = ""
    still_s: float = 0.0
    cpu_s: float = 0.0
    enqueued: dict[str, int] = field(default_factory=dict)
    completed: dict[str, int] = field(default_factory=dict)
    takes_usr1: bool = False
    exit_wait: str = ""


@dataclass(frozen=True, kw_only=True)
class Collectives:
    """The rank's process groups: when it has waited for a while, and at the end of its cell.

    Attributes:
        transfers: The sends and receives that its main thread waits for; if it waits for one of
            several and it is not known for which, all of them. After an error, that which has
            raised it.
        root: The source or the destination of the collective that its main thread is in, or which
            has raised an error, as `from rank 1`; empty if it has none, or it is not known.
        thread: The line of another thread that waits for ranks while the main thread waits for it,
            as `line 5`, or `Cell In[3], line 5`; empty if the main thread itself may wait for them.
        threads: The lines of other threads that are in collectives, by the name of the group; the
            main thread itself is in none of that group.
        groups: The process groups that it has used, in the order in which they were created.
        memberships: The members of all its process groups.
        exchanges: At the end of the cell, what it has sent and received, if all of it is known.
        runs_on: At the end of the cell, whether a thread of the user's code runs on, which may yet
            call collectives.
    """

    rank: int
    time: float
    transfers: tuple[Transfer, ...] = ()
    root: str = ""
    thread: str = ""
    threads: dict[str, str] = field(default_factory=dict)
    groups: tuple[GroupRecord, ...] = ()
    memberships: tuple[Membership, ...] = ()
    exchanges: tuple[Exchange, ...] = ()
    runs_on: bool = False


@dataclass(frozen=True, kw_only=True)
class Interrupted:
    """The rank's main thread has received the interrupt."""

    rank: int
    time: float


@dataclass(frozen=True, kw_only=True)
class DisplayData:
    """Jupyter's display_data, or update_display_data.

    Attributes:
        mark: Number of the mark in the rank's text where this belongs.
    """

    rank: int
    mark: int
    data: dict[str, Any]
    metadata: dict[str, Any]
    display_id: str | None = None
    update: bool = False


@dataclass(frozen=True, kw_only=True)
class ClearOutput:
    """Jupyter's clear_output.

    Attributes:
        mark: Number of the mark in the rank's text where this belongs.
        wait: Whether the output stays until something follows.
    """

    rank: int
    mark: int
    wait: bool = False


@dataclass(frozen=True, kw_only=True)
class Question:
    """Jupyter's input_request: the rank waits for a line from the person at the notebook.

    Attributes:
        mark: Number of the mark in the rank's text where this belongs.
        prompt: What it asks, in one line.
        password: Whether the answer is not to be shown.
    """

    rank: int
    mark: int
    prompt: str
    password: bool = False


@dataclass(frozen=True, kw_only=True)
class QuestionWithdrawn:
    """The rank waits for the answer no more.

    Attributes:
        number: The question's mark.
    """

    rank: int
    number: int


@dataclass(frozen=True, kw_only=True)
class DebuggerQuit:
    """The debugger of this rank was quit, which ends the run; the rank waits for the interrupt."""

    rank: int
    time: float


@dataclass(frozen=True, kw_only=True)
class Error:
    """Jupyter's error: the cell raised on this rank.

    It is sent twice: at once, and again with its text and traceback formatted.

    Attributes:
        held: The rank wants into the debugger (`--debug`), and has not failed yet.
        line: The innermost line of the cell in the traceback.
        cell: What a person calls the cell of that line; empty for the one that ran.
        classes: Its class and the base classes, as "module:name".
    """

    rank: int
    time: float
    ename: str
    evalue: str
    traceback: tuple[str, ...]
    line: int | None = None
    cell: str = ""
    classes: tuple[str, ...] = ()
    held: bool = False


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The cell has ended on this rank without an exception other than SystemExit.

    Attributes:
        code: The cell's exit code; 0 if it ran to its end.
        message: The argument of `sys.exit`, if it was not a number.
    """

    rank: int
    time: float
    code: int = 0
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Results:
    """Pulled values. Their shared memory, if any, comes with this frame.

    Attributes:
        names: In the order of the stream, which is the first buffer of the memory.
        sizes: Sizes of the buffers in the memory, in bytes.
        failed: Why a name could not be sent, and where its value was saved.
    """

    rank: int
    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CellNames:
    """Names that the cell has bound on this rank.

    Attributes:
        names: All of them.
        values: Those that are reported when the rank ends: no functions, no classes.
    """

    rank: int
    names: tuple[str, ...]
    values: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Idle:
    """A session's rank has reported all of its cell, and waits for the next command.

    Attributes:
        group: Whether the default process group, if wanted, is initialized.
        cuda_error: Why every use of CUDA fails from now on in this rank; empty if it does not.
    """

    rank: int
    time: float
    group: bool = True
    cuda_error: str = ""


WorkerEvent: TypeAlias = (
    WorkerHello
    | WorkerReady
    | Imported
    | Heartbeat
    | Collectives
    | Interrupted
    | DisplayData
    | ClearOutput
    | Question
    | QuestionWithdrawn
    | DebuggerQuit
    | Error
    | Finished
    | Results
    | CellNames
    | Idle
)
