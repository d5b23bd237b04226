"""Processes by recorded identity: who dies with whom, and how what is left over is ended.

A process is known by its pid and start time (`psutil.Process` checks both before every signal),
never by its name.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterable

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def die_with_parent(parent_pid: int) -> None:
    """Let the kernel SIGKILL this process when its parent's forking thread ends.

    It holds also while C code keeps the interpreter lock, when no thread of ours could run.

    Args:
        parent_pid: Who the parent was before the fork; if it is gone already, so is this process.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends (Linux)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def tie_forked_children() -> None:
    """Let every process that this one forks from its main thread die with it.

    Only from the main thread, because the tie is to the forking *thread*: a child forked by a
    short-lived thread would die before its first line.
    """
    state: dict[str, tuple[int, bool]] = {}

    def before() -> None:
        in_main = threading.get_ident() == threading.main_thread().ident
        state["parent"] = (os.getpid(), in_main)

    def in_child() -> None:
        pid, in_main = state["parent"]
        if in_main:
            die_with_parent(pid)

    os.register_at_fork(before=before, after_in_child=in_child)


def kill(process: psutil.Process, sig: int = signal.SIGKILL) -> None:
    """Send a signal to a process, if it is still that process."""
    try:
        process.send_signal(sig)
    except psutil.NoSuchProcess:
        pass


def session_members(session_ids: Iterable[int]) -> list[psutil.Process]:
    """Return the living processes of these sessions."""
    wanted = set(session_ids)
    members = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) in wanted and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
        except (OSError, psutil.NoSuchProcess):
            continue
    return members


def descendants(spare: Collection[int] = ()) -> list[psutil.Process]:
    """Return the living descendants of this process; dead children are reaped.

    Args:
        spare: Children that are left out, with all below them; not reaped either.
    """
    if not spare:
        reap_children()
        if not _has_children():  # at once: a list of all the machine's processes takes its time
            return []
    alive = []
    for child in psutil.Process().children():
        if child.pid in spare:
            continue
        try:
            alive += [p for p in (child, *child.children(recursive=True)) if _lives(p)]
        except psutil.NoSuchProcess:
            continue
    return alive


def _lives(process: psutil.Process) -> bool:
    try:
        if process.status() != psutil.STATUS_ZOMBIE:
            return True
        if process.ppid() == os.getpid():
            os.waitpid(process.pid, os.WNOHANG)
    except (psutil.NoSuchProcess, ChildProcessError):
        pass
    return False


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def exit_words(code: int) -> str:
    """Say how a process ended."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def reap_children() -> None:
    """Collect the exit codes of all children that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def sweep(grace_s: float, deadline_s: float = 3.0, spare: Collection[int] = ()) -> int:
    """End all descendants of this process.

    Args:
        grace_s: Time in which they may end by themselves, s (multiprocessing's resource tracker
            cleans up shared memory once its owner is gone).
        deadline_s: When to stop trying, s after the grace.
        spare: Children that are left alone, with all below them.

    Returns:
        How many had to be killed.
    """
    start = time.monotonic()
    killed: set[int] = set()
    while left := descendants(spare):
        waited = time.monotonic() - start
        if waited > grace_s + deadline_s:
            break
        if waited >= grace_s:
            for process in left:
                killed.add(process.pid)
                kill(process)
        time.sleep(0.01)
    return len(killed)
