"""The vocabulary of the wire, one half: commands from the kernel to workers, agents, forkserver.

`events` and `worker_events` go the other way. Each message is a frozen dataclass with Jupyter's
field names where Jupyter has the message (`display_data`, `error`). `wire.codec` turns messages
into JSON and back.

Times are seconds since the epoch, on the sender's clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

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
