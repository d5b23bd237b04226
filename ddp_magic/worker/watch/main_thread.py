"""Where the main thread is, and for how long it has been there; asked by the heartbeat's thread.

It reads the frames of the running thread (`sys._current_frames`), which costs the main thread
nothing but the time of holding the interpreter lock, some 20 us.
"""

from __future__ import annotations

import ast
import linecache
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from sys import _current_frames
from time import clock_gettime, monotonic  # bound here: a cell may replace the module's
from types import CodeType, FrameType

from ddp_magic.system.frames import is_ours

_DISTRIBUTED = "/torch/distributed/distributed_c10d.py"
# Frames whose name says less than that of the class that a user knows, by the end of the file.
_KNOWN = {
    "/torch/utils/data/dataloader.py": "DataLoader",
    "/torch/optim/optimizer.py": "optimizer",
}
_WRAPPERS = frozenset(["_call_impl", "decorate_context", "inner"])  # and those with "wrap" in them
_MAX_FRAMES = 200
_MAX_CHARS = 60
# The argument that names the partner, by function of torch.distributed.
_PEER = {"recv": "src", "send": "dst", "recv_object_list": "src", "send_object_list": "dst"}


@dataclass(frozen=True)
class Place:
    """Where the main thread is.

    Attributes:
        line: The cell's line; None outside the cell.
        cell: What a person calls the cell of that line; empty for the one that runs.
        call: What that line has called: `all_reduce`, `DataLoader`, `time.sleep`.
        peer: The rank that a send or a receive waits for; None if there is none.
    """

    line: int | None = None
    call: str = ""
    peer: int | None = None
    cell: str = ""


class CpuClock:
    """The processor time of the main thread."""

    def __init__(self) -> None:
        ident = threading.main_thread().ident or 0
        getcpuclockid = getattr(time, "pthread_getcpuclockid", None)  # not on macOS
        self._clock = None if getcpuclockid is None else getcpuclockid(ident)

    def seconds(self) -> float:
        """Return the processor time that it has used, in seconds; 0 where nobody can tell."""
        return 0.0 if self._clock is None else clock_gettime(self._clock)


class MainThread:
    """Looks at the main thread again and again.

    Attributes:
        place: Where it was at the last look.
        still_s: For how long it has been at exactly the same place, in seconds.
    """

    def __init__(self) -> None:
        self.place = Place()
        self.still_s = 0.0
        self._at: tuple[tuple[CodeType, int], ...] = ()
        self._since = monotonic()
        self._clock = CpuClock()

    def look(self, cell_labels: Mapping[str, str]) -> None:
        """Look where it is now.

        Args:
            cell_labels: What a person calls the code whose lines are told, by its file.
        """
        frames = frames_of_main_thread()
        now = monotonic()
        at = tuple((frame.f_code, frame.f_lasti) for frame in frames)
        if at != self._at:
            self._at, self._since = at, now
            self.place = _place(frames, cell_labels)
        self.still_s = now - self._since

    def cpu_s(self) -> float:
        """Return the processor time that it has used, in seconds."""
        return self._clock.seconds()


def current_place(cell_file: str) -> Place:
    """Return where the main thread is at this moment; for any thread.

    Args:
        cell_file: File name of the cell's code.
    """
    return _place(frames_of_main_thread(), {cell_file: ""})


def frames_of_main_thread() -> list[FrameType]:
    """Return the main thread's frames, innermost first."""
    # Python 3.10 to 3.13: tests/unit/worker/test_private_names.py
    frame = _current_frames().get(threading.main_thread().ident or 0)
    frames: list[FrameType] = []
    while frame is not None and len(frames) < _MAX_FRAMES:
        frames.append(frame)
        frame = frame.f_back
    return frames


def _place(frames: list[FrameType], cell_labels: Mapping[str, str]) -> Place:
    inner: list[FrameType] = []  # those below the cell's innermost frame, innermost first
    for frame in frames:
        label = cell_labels.get(frame.f_code.co_filename)
        if label is not None:
            return Place(frame.f_lineno, _call(frame, inner), peer_of(inner), label)
        inner.append(frame)
    return Place()


def _call(cell: FrameType, inner: list[FrameType]) -> str:
    """Return what the cell's line has called.

    Args:
        cell: The cell's frame.
        inner: The frames below it, innermost first.
    """
    outward = [frame for frame in reversed(inner) if not is_ours(frame.f_code.co_filename)]
    for frame in outward:
        code = frame.f_code
        if code.co_filename.endswith(_DISTRIBUTED) and not is_wrapper(code):
            return code.co_name
        if name := next((n for end, n in _KNOWN.items() if code.co_filename.endswith(end)), ""):
            return name
    named = [frame.f_code for frame in outward if not is_wrapper(frame.f_code)]
    written = called_expression(cell)
    if named:
        name = str(getattr(named[0], "co_qualname", named[0].co_name))  # Python 3.11 and later
        # `subprocess.run` tells more than `run`.
        return written if written.endswith(f".{name}") else name
    return written


def is_wrapper(code: CodeType) -> bool:
    """Return whether a function only calls another one, whose name tells more."""
    return code.co_name in _WRAPPERS or "wrap" in code.co_name


def called_expression(frame: FrameType) -> str:
    """Return the source of the call that a frame is in, if C code has been called: `time.sleep`."""
    if not hasattr(frame.f_code, "co_positions"):  # Python 3.10
        return ""
    positions = list(frame.f_code.co_positions())
    line, end_line, start, end = positions[frame.f_lasti // 2]
    if line is None or line != end_line or start is None or end is None:
        return ""
    source = linecache.getline(frame.f_code.co_filename, line).encode()
    return callee(source[start:end].decode(errors="replace"))  # columns count bytes


def callee(expression: str) -> str:
    """Return what an expression calls last, arguments left out: `dist.irecv(...).wait`."""
    try:
        call = ast.parse(expression, mode="eval").body
        if not isinstance(call, ast.Call):
            return ""
        for node in ast.walk(call.func):
            if isinstance(node, ast.Call) and (node.args or node.keywords):
                node.args, node.keywords = [ast.Constant(...)], []
        return ast.unparse(call.func)[:_MAX_CHARS]
    except (SyntaxError, ValueError, RecursionError):
        return ""


def peer_of(frames: list[FrameType]) -> int | None:
    """Return the rank with which a send or a receive is; None if there is none on the stack."""
    for frame in frames:
        if not frame.f_code.co_filename.endswith(_DISTRIBUTED):
            continue
        value = frame.f_locals.get(_PEER.get(frame.f_code.co_name, ""))
        if isinstance(value, int) and value >= 0:
            return value
    return None
