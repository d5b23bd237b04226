"""Where the main thread is, and for how long it has been there; asked by the heartbeat's thread.

It reads the frames of the running thread (`sys._current_frames`), which costs the main thread
nothing but the time of holding the interpreter lock, some 20 us.
"""

from __future__ import annotations

import ast
import asyncio
import linecache
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from sys import _current_frames
from time import clock_gettime, monotonic  # bound here: a cell may replace the module's
from types import CodeType, FrameType, MappingProxyType
from typing import Any

from torch.distributed import distributed_c10d

from ddp_magic.system.frames import is_ours
from ddp_magic.worker.watch.user_files import is_users_file

_DISTRIBUTED = "/torch/distributed/distributed_c10d.py"
_AUTOGRAD = "/torch/autograd/"
# Frames whose name says less than that of the class that a user knows, by the end of the file.
_KNOWN = {
    "/torch/utils/data/dataloader.py": "DataLoader",
    "/torch/optim/optimizer.py": "optimizer",
}
# And those with "wrap" in their names; the last is what IPython puts in place of `open`.
_WRAPPERS = frozenset(["_call_impl", "decorate_context", "inner", "_modified_open"])
_WITH = re.compile(r"\s*(?:async )?with ([\w.]+)(?: as \w+)?:")
_MAX_FRAMES = 200
_MAX_CHARS = 60
_MAX_MEMBERS = 8  # of a group
_SELECTORS = "/selectors.py"  # where an event loop of asyncio waits
# What runs a line as `!sleep 3`.
_SHELL_COMMANDS = frozenset(["system_piped", "system_raw", "getoutput"])
_SHELL = "/IPython/core/interactiveshell.py"
# The argument that names the root, by function of torch.distributed.
_SOURCES = frozenset(["broadcast", "scatter", "broadcast_object_list", "scatter_object_list"])
_DESTINATIONS = frozenset(["reduce", "gather", "gather_object"])
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
        root: The source or the destination of the collective that it is in, as `from rank 1`.
        inner: The innermost line of the user's, if it is in another of the notebook's cells, or in
            a module: `Cell In[3], line 7`. Then `call` is what that line has called.
    """

    line: int | None = None
    call: str = ""
    peer: int | None = None
    cell: str = ""
    root: str = ""
    inner: str = ""


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

    Args:
        is_module: Whether a file is a module of the user's, whose lines are told.

    Attributes:
        place: Where it was at the last look.
        still_s: For how long it has been at exactly the same place, in seconds: in a loop with one
            long call, each look finds it there, so what it has called counts too.
    """

    def __init__(self, is_module: Callable[[str], bool] = is_users_file) -> None:
        self._is_module = is_module
        self.place = Place()
        self.still_s = 0.0
        self._at: tuple[tuple[CodeType, int], ...] = ()
        self._since = monotonic()
        self._clock = CpuClock()
        self._called: object = None
        self._cpu_s = 0.0

    def look(
        self,
        cell_labels: Mapping[str, str],
        others: Mapping[str, str] = MappingProxyType({}),
        called: object = None,
    ) -> None:
        """Look where it is now.

        Args:
            cell_labels: What a person calls the code whose lines are told, by its file.
            others: What a person calls the notebook's other cells, by the files of their code.
            called: Changes when a thread of the process has called torch for other ranks.
        """
        frames = with_coroutines(frames_of_main_thread())
        now, cpu_s = monotonic(), self.cpu_s()
        at = tuple((frame.f_code, frame.f_lasti) for frame in frames)
        # A main thread that waits needs no processor time: another thread has called it then.
        has_called = called != self._called and cpu_s != self._cpu_s
        self._called, self._cpu_s = called, cpu_s
        if at != self._at:
            self.place = self._place(frames, cell_labels, others)
        if at != self._at or has_called:
            self._at, self._since = at, now
        self.still_s = now - self._since

    def _place(
        self, frames: list[FrameType], cell_labels: Mapping[str, str], others: Mapping[str, str]
    ) -> Place:
        place, inner = _place(frames, cell_labels)
        for number, frame in enumerate(inner):
            file = frame.f_code.co_filename
            name = others.get(file) or (Path(file).name if self._is_module(file) else "")
            if name:
                where = f"{name}, line {frame.f_lineno}"
                return replace(place, inner=where, call=_call(frame, inner[:number]))
        return place

    def cpu_s(self) -> float:
        """Return the processor time that it has used, in seconds."""
        return self._clock.seconds()


def current_place(cell_file: str) -> Place:
    """Return where the main thread is at this moment; for any thread.

    Args:
        cell_file: File name of the cell's code.
    """
    return place_of(frames_of_main_thread(), {cell_file: ""})


def place_of(frames: list[FrameType], cell_labels: Mapping[str, str]) -> Place:
    """Return where a thread is in the cell; arguments as of `with_coroutines` and `look`."""
    return _place(frames, cell_labels)[0]


def is_in_torch_distributed(frames: list[FrameType]) -> bool:
    """Return whether a thread with these frames is in a function of torch.distributed."""
    return any(frame.f_code.co_filename.endswith(_DISTRIBUTED) for frame in frames)


def frames_of_main_thread() -> list[FrameType]:
    """Return the main thread's frames, innermost first."""
    # Python 3.10 to 3.13: tests/unit/worker/test_private_names.py
    return frames_from(_current_frames().get(threading.main_thread().ident or 0))


def frames_from(frame: FrameType | None) -> list[FrameType]:
    """Return a frame and those that have called it, innermost first."""
    frames: list[FrameType] = []
    while frame is not None and len(frames) < _MAX_FRAMES:
        frames.append(frame)
        frame = frame.f_back
    return frames


def with_coroutines(frames: list[FrameType]) -> list[FrameType]:
    """Return a thread's frames, with those of the coroutine that its event loop waits for.

    Args:
        frames: The frames of the thread, innermost first.
    """
    if not frames or not frames[0].f_code.co_filename.endswith(_SELECTORS):
        return frames  # a coroutine that runs is on the stack
    loop = next((f for f in frames if f.f_code.co_name == "run_until_complete"), None)
    task = None if loop is None else loop.f_locals.get("future")
    waiting: Any = task.get_coro() if isinstance(task, asyncio.Task) else None
    suspended: list[FrameType] = []
    while waiting is not None and len(suspended) < _MAX_FRAMES:
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
        if frame is None:
            break
        suspended.insert(0, frame)
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)
    return suspended + frames


def _place(
    frames: list[FrameType], cell_labels: Mapping[str, str]
) -> tuple[Place, list[FrameType]]:
    """Return the place in the cell, and the frames below it, innermost first."""
    inner: list[FrameType] = []
    for frame in frames:
        label = cell_labels.get(frame.f_code.co_filename)
        if label is not None:
            call, peer, root = _call(frame, inner), peer_of(inner), root_of(inner)
            return Place(frame.f_lineno, call, peer, label, root), inner
        inner.append(frame)
    return Place(), []


def _call(cell: FrameType, inner: list[FrameType]) -> str:
    """Return what a line of the user's has called.

    Args:
        cell: Its frame.
        inner: The frames below it, innermost first.
    """
    outward = [frame for frame in reversed(inner) if not is_ours(frame.f_code.co_filename)]
    for frame in outward:
        code = frame.f_code
        if code.co_filename.endswith(_DISTRIBUTED) and not is_wrapper(code):
            return code.co_name + _of(frame)
        if code.co_filename.endswith(_SHELL) and code.co_name in _SHELL_COMMANDS:
            return f"!{frame.f_locals.get('cmd', '')}"[:_MAX_CHARS]
        if name := next((n for end, n in _KNOWN.items() if code.co_filename.endswith(end)), ""):
            return name
    named = [frame.f_code for frame in outward if not is_wrapper(frame.f_code)]
    written = called_expression(cell)
    if named:
        name = str(getattr(named[0], "co_qualname", named[0].co_name))  # Python 3.11 and later
        # `subprocess.run` tells more than `run`.
        return written if written.endswith(f".{name}") else name
    return written


def _of(frame: FrameType) -> str:
    """Return what must be the same on all ranks that create a group, as far as they say it.

    ` #1 of ranks 0, 1` for the first `new_group`, ` of world size 2` for an `init_process_group`.
    """
    if frame.f_code.co_name == "init_process_group":
        size = frame.f_locals.get("world_size")
        return f" of world size {size}" if isinstance(size, int) and size > 0 else ""
    ranks = frame.f_locals.get("ranks") if frame.f_code.co_name == "new_group" else None
    if not isinstance(ranks, (list, tuple, range)) or not ranks:
        return ""
    count = 0 if frame.f_locals.get("use_local_synchronization") else _groups_named()
    number = f" #{count}" if count > 0 else ""
    return f"{number} of ranks {', '.join(map(str, ranks[:_MAX_MEMBERS]))}" + (
        ", ..." if len(ranks) > _MAX_MEMBERS else ""
    )


def _groups_named() -> int:
    """Return how many groups the rank has created, or begun to, beside its default one."""
    return int(getattr(distributed_c10d._world, "group_count", 0)) - 1


def is_wrapper(code: CodeType) -> bool:
    """Return whether a function only calls another one, whose name tells more."""
    return code.co_name in _WRAPPERS or "wrap" in code.co_name


def called_expression(frame: FrameType, at: int | None = None) -> str:
    """Return the source of the call that a frame is in, if C code has been called: `time.sleep`.

    Args:
        frame: Which one.
        at: Its instruction; None for the one that it has come to.
    """
    if not hasattr(frame.f_code, "co_positions"):  # Python 3.10
        return ""
    positions = list(frame.f_code.co_positions())
    line, end_line, start, end = positions[(frame.f_lasti if at is None else at) // 2]
    if line is None or start is None or end is None:
        return ""
    source = linecache.getline(frame.f_code.co_filename, line).encode()
    expression = source[start:end].decode(errors="replace")  # columns count bytes
    # Of a `with` they are those of the whole statement, or of what is entered.
    entered = _WITH.match(source.decode(errors="replace"))
    if entered and (expression == entered[1] or source[start:].startswith((b"with", b"async"))):
        return f"{entered[1]}.__enter__"
    return callee(expression) if line == end_line else ""


def callee(expression: str) -> str:
    """Return what an expression calls last, arguments left out: `dist.irecv(...).wait`."""
    try:
        call = ast.parse(expression, mode="eval").body
        if isinstance(call, ast.Await):
            call = call.value
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


def group_of(frames: list[FrameType]) -> str:
    """Return the name of the group whose collective is on the stack; empty if there is none.

    In backward, DDP calls some from C++: as a rule of the default group.
    """
    for frame in reversed(frames):
        if not frame.f_code.co_filename.endswith(_DISTRIBUTED):
            continue
        if frame.f_code.co_name in _PEER:  # the other end of a message is told of its own
            return ""
        if "group" in frame.f_locals:
            return _name_of(frame.f_locals["group"])
    in_backward = frames and _AUTOGRAD in frames[0].f_code.co_filename
    return _name_of(None) if in_backward else ""


def _name_of(group: object) -> str:
    return str(getattr(group or distributed_c10d.GroupMember.WORLD, "group_name", ""))


def root_of(frames: list[FrameType]) -> str:
    """Return the source or the destination of a collective on the stack, as `from rank 1`."""
    for frame in reversed(frames):
        name = frame.f_code.co_name
        word = "from" if name in _SOURCES else "to" if name in _DESTINATIONS else ""
        if not word or not frame.f_code.co_filename.endswith(_DISTRIBUTED):
            continue
        argument = "src" if word == "from" else "dst"
        for known, of in ((argument, ""), (f"group_{argument}", " of the group")):
            value = frame.f_locals.get(known)
            if isinstance(value, int):
                return f"{word} rank {value}{of}"
    return ""
