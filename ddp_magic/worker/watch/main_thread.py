"""Where the main thread is, and for how long it has been there; asked by the heartbeat's thread.

It reads the frames of the running thread (`sys._current_frames`), which costs the main thread
nothing but the time of holding the interpreter lock, some 20 us.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from sys import _current_frames
from time import clock_gettime, monotonic  # bound here: a cell may replace the module's
from types import CodeType, FrameType, MappingProxyType
from typing import Any

from ddp_magic.worker.watch.frame_calls import DISTRIBUTED, call_of, peer_of, root_of
from ddp_magic.worker.watch.user_files import is_users_file

_MAX_FRAMES = 200
_SELECTORS = "/selectors.py"  # where an event loop of asyncio waits


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

    def words(self, *, with_call: bool = False) -> str:
        """Return it as `Cell In[3], line 7`, or as `line 7, in time.sleep`; empty if unknown."""
        line = "" if self.line is None else f"line {self.line}"
        call = f"in {self.call}" if with_call and self.call else ""
        return ", ".join(filter(None, [self.cell, line, call]))


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
                return replace(place, inner=where, call=call_of(frame, inner[:number]))
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
    return any(frame.f_code.co_filename.endswith(DISTRIBUTED) for frame in frames)


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
            call, peer, root = call_of(frame, inner), peer_of(inner), root_of(inner)
            return Place(frame.f_lineno, call, peer, label, root), inner
        inner.append(frame)
    return Place(), []
