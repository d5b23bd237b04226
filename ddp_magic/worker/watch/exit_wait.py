"""What the exit of a rank waits for, once its cell has ended."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from sys import _current_frames
from types import FrameType

from ddp_magic.worker.exit import run_steps
from ddp_magic.worker.shell import end_names
from ddp_magic.worker.watch.main_thread import Place, frames_from, frames_of_main_thread, place_of


def exit_wait(cell_labels: Mapping[str, str]) -> str:
    """Return what the exit waits for: `its thread Thread-1 (load) (line 4, in time.sleep)`.

    Args:
        cell_labels: What a person calls the code whose lines are told, by its file.

    Returns:
        Empty if the rank does not exit: it sends its results, for example.
    """
    frames = frames_of_main_thread()
    codes = [frame.f_code for frame in frames]
    if run_steps.__code__ not in codes:
        return ""
    place = place_of(frames, cell_labels)
    # Python 3.10 to 3.13: tests/unit/worker/test_private_names.py
    if _is_in(frames, "/threading.py", "_shutdown"):
        thread = next(filter(_holds_the_exit, threading.enumerate()), None)
        if thread is None or thread.ident is None:
            return "its threads"
        place = place_of(frames_from(_current_frames().get(thread.ident)), cell_labels)
        return f"its thread {thread.name}{_words(place)}"
    if _is_in(frames, "/multiprocessing/util.py", "_exit_function"):
        return "its child processes"
    if end_names.__code__ in codes:
        return f"the destructor of an object{_words(place)}"
    return f"an exit handler{_words(place)}"


def _holds_the_exit(thread: threading.Thread) -> bool:
    return not thread.daemon and thread is not threading.main_thread()


def _is_in(frames: list[FrameType], file: str, function: str) -> bool:
    codes = (frame.f_code for frame in frames)
    return any(code.co_name == function and code.co_filename.endswith(file) for code in codes)


def _words(place: Place) -> str:
    words = place.words(with_call=True)
    return f" ({words})" if words else ""
