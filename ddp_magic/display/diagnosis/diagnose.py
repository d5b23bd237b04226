"""Which rank failed first, and how to say why: messages, hints, stacks."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ddp_magic.system.processes import signal_name
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.kernel_events import StackDumped
from ddp_magic.wire.messages import LOST_CONNECTION, Error, Finished

# Errors of gloo and NCCL when a peer is gone. A rank that raises one is a victim.
_LOST_PEER = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|Connection refused|remote process exited|"
    r"remote error|unhandled system error|recvValue failed|sendBytes failed|failed to recv|"
    r"Socket closed|connection to the peer|ncclRemoteError",
    re.IGNORECASE,
)

_NCCL_REASON = "Last error:"  # the line below it says what NCCL found

_HINTS = {
    signal.SIGKILL: "often the machine ran out of memory: lower the batch size or -n",
    signal.SIGSEGV: "a crash in C code",
    signal.SIGABRT: "C code aborted; the rank's output above may say why",
    signal.SIGBUS: "often /dev/shm is full: give DataLoader fewer workers",
    signal.SIGILL: "a library was built for another processor",
    signal.SIGFPE: "a crash in C code",
}

# What C++ writes when it aborts on an exception, and what that says when gloo has received more
# data than a collective of this rank expects: another rank has called it with other tensors.
_ABORT = re.compile(r"terminate called after throwing an instance of .*\s+what\(\):\s*(.+)")
_OTHER_SIZE = re.compile(r"op\.preamble\.length <= op\.nbytes\. (\d+) vs (\d+)")

DUMPED_CHARS = 500  # of a file name in a stack dump of faulthandler
_MAIN = (
    r"(?:__main__|__mp_main__|ddp_magic\.worker\.child_main)"  # the last is a rank's, by its spec
)
# The errors for a name that `__main__` does not have; the AttributeErrors are pickle's, which looks
# up classes there.
_MISSING = {
    "NameError": re.compile(r"^name '(\w+)'"),
    "AttributeError": re.compile(
        rf"Can't get (?:local )?attribute '(\w+)[\w.<>]*' on <module '{_MAIN}'|"
        rf"module '{_MAIN}' has no attribute '(\w+)"
    ),
}
_NEVER = re.compile(r"(?!)")

# What a function of the prelude raises if the user meant another one. Other errors come from a
# correct call; naming the prelude there would be noise.
_MISTAKEN = ("AttributeError", "TypeError")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How one rank failed.

    Attributes:
        time: When, in seconds since the epoch.
        code: Its exit code, or the negative number of a signal; None if it has not ended.
        error: What it raised; None if it did not raise.
        finished: Its `sys.exit`; None if it did not call it.
        ended_by_us: Whether the agent or the kernel ended its process.
        last_words: The end of its output, if it aborted.
    """

    rank: int
    time: float
    code: int | None = None
    last_words: str = ""
    error: Error | None = None
    finished: Finished | None = None
    ended_by_us: bool = False

    @property
    def lost_its_peer(self) -> bool:
        """Whether it failed because another rank ended."""
        return self.error is not None and bool(_LOST_PEER.search(self.error.evalue))

    @property
    def met_other_sizes(self) -> bool:
        """Whether gloo ended it, since another rank sent tensors of another size."""
        return bool(_OTHER_SIZE.search(_abort_reason(self.last_words)))

    @property
    def is_victim(self) -> bool:
        """Whether another rank's end or the kernel caused its failure."""
        return self.lost_its_peer or self.ended_by_us


def first_failure(failures: Collection[Failure]) -> Failure:
    """Return the failure that caused the others.

    It is the earliest one. But a rank that lost its peer is a victim if there is any other
    explanation: a process's death can be reported after the errors of its peers. A rank that the
    agent or the kernel ended explains nothing.
    """
    culprits = [f for f in failures if not f.is_victim]
    culprits = culprits or [f for f in failures if not f.ended_by_us] or list(failures)
    return min(culprits, key=lambda f: f.time)


def describe(failure: Failure) -> str:
    """Return a line on how a rank failed, with a hint where there is one."""
    rank = f"rank {failure.rank}"
    if failure.error is not None:
        return f"{rank} {describe_error(failure.error)}"
    if failure.finished is not None:
        said = f": {failure.finished.message}" if failure.finished.message else ""
        return f"{rank} ended by sys.exit with code {failure.finished.code}{said}"
    return f"{rank} {describe_exit(failure.code, failure.last_words)}"


def describe_error(error: Error) -> str:
    """Return what a rank raised, and where."""
    return _raised(error, error.evalue)


def summarize_error(error: Error) -> str:
    """Return `describe_error` with one line of the error's text."""
    return _raised(error, headline(error.evalue))


def _raised(error: Error, text: str) -> str:
    where = f" at {line_words(error.line, error.cell)}" if error.line else ""
    return f"raised {error.ename}{where}" + (f": {text}" if text else "")


def line_words(line: int, cell: str) -> str:
    """Return `line 3`, or `Cell In[5], line 3` if it is not in the cell that runs."""
    return f"{cell}, line {line}" if cell else f"line {line}"


def headline(text: str) -> str:
    """Return the line of an error's text that says most, with ` ...` where others follow.

    That is the first line; in an error of NCCL, the line below "Last error:".
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if _NCCL_REASON in lines[:-1]:
        return lines[lines.index(_NCCL_REASON) + 1]
    return lines[0] + (" ..." if len(lines) > 1 else "") if lines else ""


@dataclass(frozen=True)
class Surroundings:
    """Where names could have come from.

    Attributes:
        notebook: The names that the notebook defines.
        elsewhere: Returns the cell that last assigned a name in other ranks, and the session that
            still has it; both are empty if there is none.
    """

    notebook: Mapping[str, object] = field(default_factory=dict)
    elsewhere: Callable[[str], tuple[str, str]] = lambda _name: ("", "")


def name_hints(
    error: Error, cell_source: str, surroundings: Surroundings, prelude: Collection[str]
) -> list[str]:
    """Return hints on names that may have caused an error.

    Args:
        error: What the rank raised.
        cell_source: The cell's source.
        surroundings: Where names could have come from.
        prelude: Names of ddp_magic's own (not torch's) that the cell uses from the prelude.
    """
    notebook = surroundings.notebook
    hints = _hints_of_children(error, cell_source)
    if hints:
        pass  # the name is missing in a child, not in the rank
    elif found := _MISSING.get(error.ename, _NEVER).search(error.evalue):
        name = next(filter(None, found.groups()))
        if name in notebook:
            hints.append(
                f"your notebook defines `{name}`, but it was not sent to the ranks: --capture "
                "leaves it out, or the cell does not read it by name (if so, add "
                f"`{name} = {name}` to the cell)"
            )
        elif any(place := surroundings.elsewhere(name)):
            hints.append(_where_it_is(name, *place))
    lines = cell_source.splitlines()
    in_cell = error.line and not error.cell and error.line <= len(lines)
    line = lines[error.line - 1] if error.line and in_cell else ""
    for name in sorted(set(re.findall(r"\w+", line)) & set(prelude)):
        if name in notebook:
            hints.append(
                f"`{name}` is from ddp_magic.prelude, because --capture leaves out your notebook's"
            )
        elif error.ename in _MISTAKEN:
            hints.append(
                f"`{name}` is from ddp_magic.prelude: your notebook does not define {name}"
            )
    return hints


# Marks of errors that come from a `multiprocessing` child: of a pool or an executor, a DataLoader,
# `torch.multiprocessing.spawn`.
_OF_A_CHILD = ("RemoteTraceback", "worker process", "terminated with the following error")


def _hints_of_children(error: Error, cell_source: str) -> list[str]:
    text = "\n".join([error.evalue, *error.traceback])
    if not any(words in text for words in _OF_A_CHILD):
        return []
    missing = dict.fromkeys(re.findall(r"NameError: name '(\w+)' is not defined", text))
    return [
        f"`{name}`: a spawned child gets the cell's imports, functions, classes and constants, and "
        "what the cell took from the notebook, but nothing that the cell computes: pass it as an "
        "argument, or as an attribute of the Dataset"
        for name in missing
        if re.search(rf"^\s*(?:\w+ *, *)*{name}\b", cell_source, re.MULTILINE)
    ]


def _where_it_is(name: str, cell: str, session: str) -> str:
    if session:
        return (
            f"`{name}` was last defined in {cell}, in session {session}: --session {session} runs "
            f"this cell there, and --pull {name} in a cell of that session brings it to the "
            "notebook"
        )
    return (
        f"`{name}` was last defined in {cell}, whose ranks have ended: there, --pull {name} brings "
        "it to the notebook, and --session NAME keeps it in the ranks"
    )


def describe_exit(code: int | None, last_words: str = "") -> str:
    """Return what an exit code means.

    Args:
        code: The exit code, or the negative number of a signal.
        last_words: The end of the rank's output, if it aborted.
    """
    if code is None:
        return "has not ended"
    if code == LOST_CONNECTION:
        return (
            "lost its connection to the notebook: its code closed a file descriptor that it had "
            "not opened"
        )
    if code >= 0:
        return f"exited with code {code}, without a traceback (os._exit, or a library's own exit)"
    name = signal_name(-code)
    hint = _abort_hint(last_words) or _HINTS.get(-code, "")  # type: ignore[call-overload]
    return f"was killed by {name} (exit {code})" + (f": {hint}" if hint else "")


def _abort_reason(last_words: str) -> str:
    """Return what a C++ exception said that aborted a rank; empty if none is known."""
    reasons = _ABORT.findall(last_words)
    return str(reasons[-1]).strip() if reasons else ""


def _abort_hint(last_words: str) -> str:
    reason = _abort_reason(last_words)
    if not (sizes := _OTHER_SIZE.search(reason)):
        return reason and f"C++ raised: {reason}"
    return (
        f"gloo received {sizes[1]} bytes for a buffer of {sizes[2]}: the ranks have called a "
        "collective with tensors of different shapes or dtypes, or different collectives. "
        "`--check` names them"
    )


@dataclass(frozen=True)
class CellCode:
    """The code of a cell, as the ranks name it and as a person does.

    Attributes:
        file: Its file name in the ranks.
        label: What a person calls it: "Cell In[5]".
        functions: What a person calls the notebook's other cells, by their code's file name.
        is_call: Whether it only calls a function, and nobody has seen it.
    """

    file: str
    label: str
    functions: Mapping[str, str] = field(default_factory=dict)
    is_call: bool = False


def stack(dump: str, code: CellCode, limit: int = 8) -> list[str]:
    """Return the frames of the thread that runs the cell, innermost first.

    Args:
        dump: One or more dumps of faulthandler; the last one is used.
        code: The cell's.
        limit: Most frames to return.
    """
    threads: list[list[str]] = []
    for line in dump.splitlines():
        if re.match(r"(Current thread|Thread) 0x", line):
            threads.append([])
        elif threads and line.strip().startswith("File "):
            threads[-1].append(line.strip())
    place = f'"{_as_dumped(code.file)}"'
    in_cell = [frames for frames in threads if any(place in frame for frame in frames)]
    if not in_cell:
        return []
    frames = in_cell[-1]
    last = max(i for i, frame in enumerate(frames) if place in frame)
    shown = frames[: last if code.is_call else last + 1][:limit]
    labels = {**code.functions, code.file: code.label}
    names = {f'File "{_as_dumped(file)}"': label for file, label in labels.items()}
    return [_as_python(_renamed(frame, names)) for frame in shown]


def _renamed(frame: str, names: Mapping[str, str]) -> str:
    file, comma, rest = frame.partition(", line ")
    return f"{names.get(file, file)}{comma}{rest}"


def _as_python(frame: str) -> str:
    """Return a frame of faulthandler's as Python's tracebacks have it."""
    return re.sub(r", line (\d+) in (?=\S+$)", r", line \1, in ", frame)


def _as_dumped(path: str) -> str:
    """Return a file name as faulthandler writes it, in ASCII."""
    text = ""
    for char in path[:DUMPED_CHARS]:
        code = ord(char)
        if " " <= char <= "~":
            text += char
        elif code <= 0xFF:
            text += f"\\x{code:02x}"
        else:
            text += f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
    return text + ("..." if len(path) > DUMPED_CHARS else "")


def cell_line(frames: Sequence[str], code: CellCode) -> tuple[int | None, str]:
    """Return the innermost line of the cell in frames from `stack`; None if there is none.

    Returns:
        The line, and the cell's name unless it is the one that runs.
    """
    labels = set(code.functions.values()) if code.is_call else {code.label}
    for frame in frames:
        label, _, rest = frame.partition(", line ")
        if label in labels and (found := re.match(r"\d+", rest)):
            return int(found[0]), label if code.is_call else ""
    return None, ""


def read_stack(
    directory: RunDirectory, rank: int, code: CellCode, limit: int = 8
) -> StackDumped | None:
    """Return a rank's last stack dump; None if there is none.

    Args:
        directory: Directory of the run, or of its session.
        rank: Which rank.
        code: The cell's.
        limit: Most frames to return.
    """
    try:
        dump = directory.stacks(rank).read_text(errors="replace")
    except OSError:
        return None
    frames = tuple(stack(dump, code, limit))
    line, cell = cell_line(frames, code)
    return StackDumped(rank=rank, frames=frames, line=line, cell=cell)
