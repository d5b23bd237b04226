"""Decides which rank caused a failure, and which are its victims, and says why.

A rank that lost its peer, or that was ended by us, is a victim. `verdict` asks this module.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Collection
from dataclasses import dataclass

from ddp_magic.system.processes import signal_name
from ddp_magic.wire.worker_events import LOST_CONNECTION, Error, Finished

# Errors of gloo and NCCL when a peer is gone. A rank that raises one is a victim.
_LOST_PEER = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|Connection refused|remote process exited|"
    r"remote error|unhandled system error|recvValue failed|sendBytes failed|failed to recv|"
    r"Socket closed|connection to the peer|ncclRemoteError",
    re.IGNORECASE,
)

# Escape sequences and other characters that a line of ours is not to have: it is no terminal.
_CONTROLS = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()*+].)?|[\x00-\x08\x0e-\x1f\x7f]"
)
_NCCL_REASON = "Last error:"  # the line below it says what NCCL found

_ASKED = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
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


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How one rank failed.

    Attributes:
        time: When, in seconds since the epoch.
        code: Its exit code, or the negative number of a signal; None if it has not ended.
        error: What it raised; None if it did not raise.
        finished: Its `sys.exit`; None if it did not call it.
        ended_by_us: Whether the agent or the kernel ended its process.
        node: Name of its node; empty for the kernel's own machine.
        last_words: The end of its output, if it aborted.
    """

    rank: int
    time: float
    code: int | None = None
    last_words: str = ""
    error: Error | None = None
    finished: Finished | None = None
    ended_by_us: bool = False
    node: str = ""

    @property
    def name(self) -> str:
        """Its rank, and its node if there are several: `rank 5 on n2`."""
        return f"rank {self.rank}" + (f" on {self.node}" if self.node else "")

    @property
    def lost_its_peer(self) -> bool:
        """Whether it failed because another rank ended."""
        return self.error is not None and bool(_LOST_PEER.search(self.error.evalue))

    @property
    def received_bytes(self) -> int | None:
        """What another rank had sent when gloo ended it since that is too much; None if not so."""
        sizes = _OTHER_SIZE.search(_abort_reason(self.last_words))
        return int(sizes[1]) if sizes else None

    @property
    def is_signaled(self) -> bool:
        """Whether it ended by a signal that asks a process to end, or by its KeyboardInterrupt."""
        if self.error is not None:
            return self.error.ename == "KeyboardInterrupt"
        return self.code is not None and -self.code in _ASKED

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
    return f"{failure.name} {describe_end(failure)}"


def describe_end(failure: Failure) -> str:
    """Return how a rank failed, without its name."""
    if failure.error is not None:
        return describe_error(failure.error)
    if failure.finished is not None:
        said = f": {failure.finished.message}" if failure.finished.message else ""
        return f"ended by sys.exit with code {failure.finished.code}{said}"
    return describe_exit(failure.code, failure.last_words)


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
    lines = [line.strip() for line in _CONTROLS.sub("", text).splitlines() if line.strip()]
    if _NCCL_REASON in lines[:-1]:
        return lines[lines.index(_NCCL_REASON) + 1]
    return lines[0] + (" ..." if len(lines) > 1 else "") if lines else ""


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
        "collective, or a send and its receive, with tensors of different shapes or dtypes, or "
        "different collectives"
    )
