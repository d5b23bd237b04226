"""The wire vocabulary: what a kernel tells its workers, agents and forkserver, and their answers.

Commands go down, events come up. Every message is a frozen dataclass whose fields are Jupyter's
where Jupyter has the thing (`display_data`, `error`); on the wire it is JSON, with the name of its
class under "type". Nothing here is pickled, and nothing is executed to read a message.

Times are seconds since the epoch, on the sender's clock.
"""

from __future__ import annotations

import builtins
import dataclasses
import enum
import functools
import json
import re
import reprlib
import types
from dataclasses import dataclass, field
from typing import Any, TypeAlias, get_args, get_origin, get_type_hints

from ddp_magic.errors import ProtocolError
from ddp_magic.wire.states import Phase

# Exit code of a rank that can no longer reach its kernel.
LOST_CONNECTION = 113
# What stands before a rank's number in the agent's log, where the rank could not even connect.
NOT_STARTED = "could not start rank"

# --- commands: kernel -> worker ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SharedMemory:
    """Values' bytes, for the cells that follow. The descriptor comes with this frame.

    Attributes:
        number: By which `Captured` names it.
        sizes: Of the buffers in it, bytes; where each begins, `memory.Segment` knows.
    """

    number: int
    sizes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Captured:
    """Put these values of the notebook's into the cell's namespace.

    Attributes:
        names: In the order of the stream.
        stream: Number of the shared memory whose first buffer is the pickle stream.
        parts: (number, first buffer, how many) of the stream's buffers, in their order.
        sources: Text and cell number of the code of functions, by its file's name.
        keep: Numbers of shared memory that later cells may name; the rest can go.
    """

    names: tuple[str, ...]
    stream: int
    parts: tuple[Any, ...]
    sources: dict[str, list[Any]] = field(default_factory=dict)
    keep: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunCell:
    """Run the cell that lies in the file `path`.

    Attributes:
        path: The cell's own file; its line numbers are the notebook's.
        file: What the cell calls itself (`__file__`, and in tracebacks); empty for `path`.
        execution_count: The number in the notebook's `In[n]`; None where it has none.
        prelude: Names of `ddp_magic.prelude` that the cell reads.
        argv: The cell's `sys.argv[1:]`.
        seed: Seed of Python's, NumPy's and torch's generators; None for a fresh one in each rank.
        shell: What the notebook's shell is set to: "xmode", "theme", "ast_node_interactivity".
        pull: (dotted name, rank or None for all) of what the notebook wants afterwards.
        call: The cell is ours, and calls a function: it is in no traceback.
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

    @property
    def name(self) -> str:
        """What the cell calls itself."""
        return self.file or self.path


@dataclass(frozen=True, kw_only=True)
class Interrupt:
    """To a worker: raise KeyboardInterrupt in the cell. To an agent: let the ranks answer.

    Attributes:
        abort_collectives: Abort a collective that waits for ranks which will not come. Its process
            group is of no use afterwards.
    """

    abort_collectives: bool = False


@dataclass(frozen=True, kw_only=True)
class NewGroup:
    """To the ranks of a session: make the process group anew, and tell when it is ready.

    Attributes:
        number: Of the group, the same on all ranks.
    """

    number: int


@dataclass(frozen=True, kw_only=True)
class Exit:
    """No further cell: run the exit handlers and end."""


# --- commands: kernel -> agent ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Kill:
    """End these ranks at once (SIGKILL); all of them where `ranks` is empty."""

    ranks: tuple[int, ...] = ()


# --- commands: kernel -> forkserver -----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Preload:
    """Import these libraries when there is nothing else to do.

    Attributes:
        number: Of this command, counted by the kernel; `Preloaded` says which was the last.
        sys_path: Where they are to be found, as the kernel finds them.
    """

    modules: tuple[str, ...]
    number: int
    sys_path: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ForkAgent:
    """Fork an agent, in the kernel's present state.

    Attributes:
        spec: An `AgentSpec`, as JSON.
        env: The whole environment of the agent and its ranks.
        cwd: Working directory.
        umask: Mask of new files' modes.
    """

    spec: str
    env: dict[str, str]
    cwd: str
    umask: int


# --- events: forkserver -> kernel -------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Importing:
    """The forkserver is about to import a library: should it die, it was of that."""

    module: str


@dataclass(frozen=True, kw_only=True)
class Preloaded:
    """The forkserver has nothing left to import.

    Attributes:
        files: File of each package and top-level module that it holds, with the file's
            (mtime in ns, inode), by which a later upgrade shows.
        number: Of the last `Preload` that has been carried out; 0 before the first.
        failed: Why a library could not be imported, by name.
        environ: Environment variables that the libraries have set while they were imported.
        left_out: Why a library is left to the ranks, by name.
        good: What such a library imports first, and is there.
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
    """This forkserver must not be forked from any more; it ends.

    Attributes:
        module: The library that is the reason; `SOME_LIBRARY` where it is not known which; empty
            where any forkserver would be unfit.
        reason: What it did: "it starts threads".
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
    """The agent is connected."""


@dataclass(frozen=True, kw_only=True)
class WorkerExited:
    """A rank's process has ended.

    Attributes:
        code: Its exit code; the negative number of the signal that killed it.
        by_agent: Whether the agent had sent it a signal: its end follows from something else.
    """

    rank: int
    time: float
    code: int
    by_agent: bool = False


@dataclass(frozen=True, kw_only=True)
class AgentDone:
    """Every rank has ended, and so has all that the ranks had started.

    Attributes:
        error: What went wrong in the agent itself, a traceback; empty if nothing did.
        swept: How many processes the ranks had left behind, which the agent ended.
    """

    error: str = ""
    swept: int = 0


# --- events: worker -> kernel -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WorkerHello:
    """A rank is connected. The read end of its stdout and stderr comes with this frame.

    Attributes:
        marker: The bytes (as text) after which a number and BEL mark a display's place in the
            text; see `ddp_magic.display.rank_text`.
    """

    rank: int
    pid: int
    marker: str


@dataclass(frozen=True, kw_only=True)
class WorkerReady:
    """The process group is up and the cell can start."""

    rank: int
    time: float
    device: str


@dataclass(frozen=True, kw_only=True)
class Imported:
    """Installed libraries that the cell has imported on rank 0, in their order."""

    rank: int
    modules: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """A rank is alive.

    Attributes:
        line: The cell's line that its main thread is in; None outside the cell.
        phase: What it is doing.
        rss_mib: Resident memory, MiB.
        device_mib: Memory that torch holds on the rank's GPU, MiB; None on a CPU.
    """

    rank: int
    time: float
    phase: Phase
    line: int | None
    rss_mib: float
    device_mib: float | None = None


@dataclass(frozen=True, kw_only=True)
class Interrupted:
    """The rank's main thread has taken the interrupt."""

    rank: int
    time: float


@dataclass(frozen=True, kw_only=True)
class DisplayData:
    """Jupyter's display_data, or update_display_data.

    Attributes:
        mark: Number of the mark in the rank's text at which this belongs.
    """

    rank: int
    mark: int
    data: dict[str, Any]
    metadata: dict[str, Any]
    display_id: str | None = None
    update: bool = False


@dataclass(frozen=True, kw_only=True)
class ClearOutput:
    """Jupyter's clear_output: the rank's next output takes the place of its last."""

    rank: int
    mark: int


@dataclass(frozen=True, kw_only=True)
class Error:
    """Jupyter's error: the cell raised on this rank.

    It comes twice: at once, and again when its text and traceback are formatted.

    Attributes:
        line: The innermost line of the cell in the traceback.
        classes: Its class and those above, as "module:name".
    """

    rank: int
    time: float
    ename: str
    evalue: str
    traceback: tuple[str, ...]
    line: int | None = None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The cell has ended on this rank without an exception other than SystemExit.

    Attributes:
        code: Exit code that the cell asked for; 0 at its end.
        message: What was given to `sys.exit`, where that was no number.
    """

    rank: int
    time: float
    code: int = 0
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Results:
    """Values that the notebook has asked for. Their shared memory comes with this frame, if any.

    Attributes:
        names: In the order of the stream, which is the memory's first buffer.
        sizes: Of the buffers in the memory, bytes.
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
        values: Those that are worth a word when the rank ends: no functions, no classes.
    """

    rank: int
    names: tuple[str, ...]
    values: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Idle:
    """A session's rank has told everything of its cell, and waits for the next command.

    Attributes:
        group: Whether there is a default process group, where there is to be one.
    """

    rank: int
    time: float
    group: bool = True


# --- made in the kernel: from the text that a rank's descriptors 1 and 2 carry, from its silence --


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Text that a rank, its C code or its children wrote.

    Attributes:
        log_bytes: Size of the rank's log with this text in it, in bytes.
    """

    rank: int
    text: str
    log_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class ConnectionLost:
    """A rank's connection has ended, and its process has not."""

    rank: int
    time: float


Command: TypeAlias = (
    SharedMemory | Captured | RunCell | Interrupt | NewGroup | Exit | Kill | Preload | ForkAgent
)
Event: TypeAlias = (
    Importing
    | Preloaded
    | ForkObstacle
    | Forked
    | AgentHello
    | WorkerExited
    | AgentDone
    | WorkerHello
    | WorkerReady
    | Imported
    | Heartbeat
    | Interrupted
    | DisplayData
    | ClearOutput
    | Error
    | Finished
    | Results
    | CellNames
    | Idle
    | Stream
    | ConnectionLost
)

_CLASSES: dict[str, type[Any]] = {
    cls.__name__: cls
    for cls in (
        SharedMemory,
        Captured,
        RunCell,
        Interrupt,
        NewGroup,
        Exit,
        Kill,
        Preload,
        ForkAgent,
        Importing,
        Preloaded,
        ForkObstacle,
        Forked,
        AgentHello,
        WorkerExited,
        AgentDone,
        WorkerHello,
        WorkerReady,
        Imported,
        Heartbeat,
        Interrupted,
        DisplayData,
        ClearOutput,
        Error,
        Finished,
        Results,
        CellNames,
        Idle,
    )
}


MAX_BYTES = 256 * 2**20
MAX_DEPTH = 200  # of lists and dictionaries in one another; whoever writes them out again recurses
_MAX_INT = 2**63
_SIGNED = frozenset(["code", "seed"])  # all other whole numbers are counts, or count something


# What a person sees; paths and environments keep what is no UTF-8 in them.
_SHOWN = (AgentDone, DisplayData, Error, Finished, Heartbeat, Results, CellNames, WorkerReady)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def encode(message: Command | Event) -> bytes:
    """Turn a message into the JSON that travels in one frame.

    Raises:
        ProtocolError: It could not be read at the other end: too long, or an output of the user's
            own that is none.
    """
    fields = {f.name: getattr(message, f.name) for f in dataclasses.fields(message)}
    payload = json.dumps({"type": type(message).__name__, **fields}, default=str).encode()
    if len(payload) > MAX_BYTES:
        raise ProtocolError(
            f"{type(message).__name__} has {len(payload):,} bytes; the limit is {MAX_BYTES:,}"
        )
    if isinstance(message, DisplayData):
        decode(payload)
    return payload


def decode(payload: bytes) -> Command | Event:
    """Read the message of one frame.

    Raises:
        ProtocolError: The payload is no JSON object of a known class with that class's fields,
            each of its own type.
    """
    try:
        fields = json.loads(payload)
        cls = _CLASSES[fields.pop("type")]
        if cls in _SHOWN and _SURROGATE.search(payload):
            # Half a character, which no notebook could be sent.
            whole = json.dumps(fields, ensure_ascii=False).encode(errors="replace")
            fields = json.loads(whole)
        wanted = _types(cls.__name__)
        message: Command | Event = cls(
            **{name: _restored(value, wanted.get(name)) for name, value in fields.items()}
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProtocolError(f"unreadable message {payload[:80]!r}: {error!r:.200}") from error
    for name, kind in wanted.items():
        value = getattr(message, name)
        if not _fits(value, kind, signed=name in _SIGNED):
            raise ProtocolError(f"{cls.__name__}.{name} is {reprlib.repr(value)}: invalid")
    return message


def _restored(value: object, wanted: Any) -> object:  # noqa: ANN401 -- a type, as written
    """Turn what JSON cannot express back into what was sent, so that messages compare equal."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        return wanted(value)
    return value


@functools.cache
def _types(name: str) -> dict[str, Any]:
    return get_type_hints(_CLASSES[name])


def _fits(value: object, wanted: Any, *, signed: bool) -> bool:  # noqa: ANN401 -- a type, as written
    """Tell whether a value that came as JSON is of a field's type."""
    items: list[object]
    match get_origin(wanted), get_args(wanted):
        case (types.UnionType, options):
            return any(_fits(value, option, signed=signed) for option in options)
        case (builtins.tuple, (of, *_)):
            items = list(value) if isinstance(value, tuple) else [_NOTHING]
        case (builtins.list, (of,)):
            items = list(value) if isinstance(value, list) else [_NOTHING]
        case (builtins.dict, (_, of)):
            items = list(value.values()) if isinstance(value, dict) else [_NOTHING]
        case _:
            return _is(value, wanted, signed=signed)
    if of is Any:
        return _NOTHING not in items[:1] and _is_shallow(items)
    return all(_fits(item, of, signed=signed) for item in items)


_NOTHING = object()  # fits no type


def _is(value: object, wanted: Any, *, signed: bool) -> bool:  # noqa: ANN401 -- a type
    if isinstance(value, bool):  # Python's own are whole numbers
        return wanted is bool
    if wanted is int:
        low = -_MAX_INT if signed else 0
        return isinstance(value, int) and low <= value < _MAX_INT
    if wanted is float:
        return isinstance(value, (int, float)) and abs(value) < _MAX_INT  # so neither inf nor nan
    return isinstance(value, wanted)


def _is_shallow(items: list[object]) -> bool:
    for _ in range(MAX_DEPTH):
        below = [item for item in items if isinstance(item, (dict, list))]
        if not below:
            return True
        items = [x for item in below for x in (item.values() if isinstance(item, dict) else item)]
    return False
