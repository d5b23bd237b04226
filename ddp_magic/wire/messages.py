"""The vocabulary of the wire: commands from the kernel, and events to it.

Commands go from the kernel to its workers, agents and forkserver; events go the other way. Each
message is a frozen dataclass with Jupyter's field names where Jupyter has the message
(`display_data`, `error`). `wire.codec` turns messages into JSON and back.

Times are seconds since the epoch, on the sender's clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ddp_magic.wire.collectives import Exchange, GroupRecord, Membership, Transfer
from ddp_magic.wire.states import Phase

# Exit code of a rank that can no longer reach its kernel.
LOST_CONNECTION = 113
# Precedes a rank's number in the agent's log if the rank could not even connect.
NOT_STARTED = "could not start rank"
# Number of the answer that lets a rank that raised into the debugger; marks begin with 1.
EXAMINE = 0

# --- commands: kernel -> worker ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SharedMemory:
    """Shared memory with values, for the cells that follow. Its descriptor comes with this frame.

    Attributes:
        number: Its number in `Captured`.
        sizes: Sizes of its buffers, in bytes; `memory.Segment` knows where each begins.
    """

    number: int
    sizes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Captured:
    """Put these values of the notebook into the cell's namespace.

    Attributes:
        names: In the order of the stream.
        stream: Number of the shared memory whose first buffer is the pickle stream.
        parts: (number, first buffer, count) of the stream's buffers, in the order of the stream.
        sources: Text and cell number of the code of functions, by the name of its file.
        keep: Numbers of shared memory that later cells may use; the rest can be closed.
    """

    names: tuple[str, ...]
    stream: int
    parts: tuple[Any, ...]
    sources: dict[str, list[Any]] = field(default_factory=dict)
    keep: tuple[int, ...] = ()

    @property
    def segments(self) -> set[int]:
        """Numbers of the shared memory that this cell or a later one may use."""
        return {self.stream, *(part[0] for part in self.parts), *self.keep}


CALLED = "_function"  # a name that no session's cell and no notebook has


@dataclass(frozen=True, kw_only=True)
class RunCell:
    """Run the cell in the file `path`.

    Attributes:
        path: The cell's own file; its line numbers are the notebook's.
        file: The cell's `__file__`, also shown in tracebacks; empty for `path`.
        execution_count: The number in the notebook's `In[n]`; None if there is none.
        prelude: Names of `ddp_magic.prelude` that the cell reads.
        argv: The cell's `sys.argv[1:]`.
        seed: Seed for the generators of Python, NumPy and torch; None for a new one in each rank.
        shell: Settings of the notebook's shell: "xmode", "theme", "ast_node_interactivity".
        pull: (dotted name, rank or None for all) of each value to send to the notebook.
        call: The cell is generated and calls the function that it knows as `CALLED`: tracebacks
            leave it out.
        check: Whether to write down every collective, beside the file `path`; see `wire.calls`.
        profile: Whether to measure where the time goes; see `wire.profile`.
        can_ask: Whether a person can answer what the cell asks.
        may_ask: Whether the cell is likely to ask, so that collectives wait without a timeout.
        debug: Whether a rank that raises stops in the debugger.
    """

    path: str
    file: str = ""
    execution_count: int | None = None
    prelude: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()
    seed: int | None = None
    shell: dict[str, str] = field(default_factory=dict)
    pull: tuple[Any, ...] = ()
    call: bool = False
    check: bool = False
    profile: bool = False
    can_ask: bool = False
    may_ask: bool = False
    debug: bool = False

    @property
    def name(self) -> str:
        """The cell's `__file__`."""
        return self.file or self.path


@dataclass(frozen=True, kw_only=True)
class Interrupt:
    """To a worker: raise KeyboardInterrupt in the cell. To an agent: let the ranks answer.

    Attributes:
        abort_collectives: Abort a collective that waits for ranks that will not join. Its process
            group cannot be used afterwards.
    """

    abort_collectives: bool = False


@dataclass(frozen=True, kw_only=True)
class NewGroup:
    """To the ranks of a session: create the process group again, and report when it is ready.

    Attributes:
        number: Number of the group, the same on all ranks.
    """

    number: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a question of this rank's.

    Attributes:
        number: The question's mark, or `EXAMINE`.
        text: What was answered, without the end of the line.
        ended: The input was ended (Ctrl-D) instead.
        problem: Why there is no answer; empty if there is one.
    """

    number: int
    text: str = ""
    ended: bool = False
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class HoldTimeouts:
    """Let collectives wait without a timeout until the cell ends: a rank waits for an answer."""


@dataclass(frozen=True, kw_only=True)
class Exit:
    """Run the exit handlers and end: there are no more cells."""


# --- commands: kernel -> agent ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Kill:
    """Kill these ranks (SIGKILL); all of them if `ranks` is empty."""

    ranks: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DumpStack:
    """Let this rank write its stack to its file, where the kernel cannot signal it itself."""

    rank: int


# --- commands: kernel -> forkserver -----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Preload:
    """Import these libraries when there is nothing else to do.

    Attributes:
        number: Number of this command; `Preloaded` names the last one that was carried out.
        sys_path: The kernel's module search path.
    """

    modules: tuple[str, ...]
    number: int
    sys_path: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ForkAgent:
    """Fork an agent with the kernel's current environment.

    Attributes:
        spec: An `AgentSpec`, as JSON.
        env: The whole environment of the agent and its ranks.
        cwd: Working directory.
        umask: File mode creation mask.
    """

    spec: str
    env: dict[str, str]
    cwd: str
    umask: int


@dataclass(frozen=True, kw_only=True)
class ForkServer:
    """Fork a forkserver for a host, which has imported what this one has. A socket comes along.

    Attributes:
        kernel_pid: The host, with which it ends, and which has the socket's other end.
    """

    kernel_pid: int


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


Command: TypeAlias = (
    SharedMemory
    | Captured
    | RunCell
    | Interrupt
    | Answer
    | HoldTimeouts
    | NewGroup
    | Exit
    | Kill
    | DumpStack
    | Preload
    | ForkAgent
    | ForkServer
)
ForkserverEvent: TypeAlias = ForkserverHello | Importing | Preloaded | ForkObstacle | Forked
AgentEvent: TypeAlias = AgentHello | WorkerExited | AgentDone
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
Event: TypeAlias = ForkserverEvent | AgentEvent | WorkerEvent
