"""Python threads of the user's that run beside the main thread, and share its interpreter lock."""

from __future__ import annotations

import threading
from sys import _current_frames
from types import FrameType

from ddp_magic.wire.profile import Place, Spent
from ddp_magic.worker.watch.frame_calls import called_expression, collective_of, group_of
from ddp_magic.worker.watch.main_thread import (
    frames_from,
    frames_of_main_thread,
    is_in_torch_distributed,
)
from ddp_magic.worker.watch.stack_kinds import kind_of_call, kind_of_function
from ddp_magic.worker.watch.user_files import is_users_file

_WAITING_FOR_THREADS = ("/threading.py", "/queue.py")  # where a main thread waits for another


def running_thread() -> Place | None:
    """Return the user's line that another thread is at, if there is one that does not wait."""
    for frame in _innermost_frames():
        if (place := _place(frame)) is not None and not _waits(frame):
            return place
    return None


def thread_waited_for() -> list[FrameType]:
    """Return the frames of a thread in torch.distributed that the main thread may wait for.

    Returns:
        Innermost first; none if there is no such thread, or the main thread waits for none.
    """
    main = frames_of_main_thread()
    if not main or not main[0].f_code.co_filename.endswith(_WAITING_FOR_THREADS):
        return []
    for frame in _innermost_frames():
        frames = frames_from(frame)
        if _place(frame) is not None and is_in_torch_distributed(frames):
            return frames
    return []


def threads_in_groups() -> dict[str, list[FrameType]]:
    """Return the frames of the threads that are in collectives, by the name of the group.

    Those of a group are left out in whose collective the main thread is too.
    """
    found = _others_in_groups()
    found.pop(group_of(frames_of_main_thread()), None)
    return found


def runs_users_code() -> bool:
    """Return whether another thread is in the user's code."""
    return any(_place(frame) is not None for frame in _innermost_frames())


def collectives_of_threads() -> dict[str, str]:
    """Return the collectives that the threads are in, the main one too, by the group's name."""
    main = frames_of_main_thread()
    found = _others_in_groups() | {group_of(main): main}
    return {group: collective_of(frames) for group, frames in found.items() if group}


def _others_in_groups() -> dict[str, list[FrameType]]:
    found = {}
    for frame in _innermost_frames():
        frames = frames_from(frame)
        if _place(frame) is not None and (group := group_of(frames)):
            found[group] = frames
    return found


def _innermost_frames() -> list[FrameType]:
    """Return the innermost frame of each thread but the main one and this one."""
    apart = (threading.main_thread().ident, threading.get_ident())
    return [frame for ident, frame in list(_current_frames().items()) if ident not in apart]


def _place(innermost: FrameType) -> Place | None:
    frame: FrameType | None = innermost
    while frame is not None:
        if is_users_file(frame.f_code.co_filename):
            return Place(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return None


def _waits(frame: FrameType) -> bool:
    kinds = (
        kind_of_function(frame.f_code.co_filename, frame.f_code.co_name),
        kind_of_call(called_expression(frame)),
    )
    return any(kind in (Spent.IDLE, Spent.COLLECTIVE) for kind in kinds)
