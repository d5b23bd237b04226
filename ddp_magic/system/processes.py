"""Ends processes together with the one that started them, and those that are left over.

What each of ours does when the kernel dies, `ddp_magic.node` says.

A process is identified by its pid and start time, never by its name: `psutil.Process` checks both
before every signal.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.01
_LOOKS = 100  # for descendants, before children that are never seen alive are given up

T = TypeVar("T")


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def die_with_parent(parent_pid: int) -> None:
    """Have the operating system SIGKILL this process when its parent's forking thread ends.

    This works even while C code holds the interpreter lock and no thread of ours can run.

    Args:
        parent_pid: The parent at the fork. If it is gone already, this process ends now.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def continue_after_parent() -> None:
    """Have the operating system continue this process, if it is stopped, when its parent ends.

    A stopped process (SIGSTOP, a debugger) could not notice that, and would never end.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends (Linux)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def tie_forked_children() -> None:
    """Make every process that this one forks from its main thread die with it.

    Only from the main thread, because a child dies with the *thread* that forked it: a child of a
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


def is_stopped(pid: int) -> bool:
    """Return whether a process is stopped, by SIGSTOP or a debugger."""
    try:
        status = psutil.Process(pid).status()
    except (psutil.Error, ValueError):
        return False
    return status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


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


def started_with(variable: str, value: str) -> list[psutil.Process]:
    """Return the living processes that were started with this environment variable."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get(variable) == value
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):  # another user's, or just gone
            continue
    return found


def descendants(spare: Collection[int] = ()) -> list[psutil.Process]:
    """Return the living descendants of this process, and reap its dead children.

    Args:
        spare: Children to leave out, with their descendants; they are not reaped either.
    """
    if not spare:
        _reap_children()
        if not _has_children():  # the usual case; psutil reads all the machine's processes
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
    """Return how a process ended, in words."""
    return f"killed by {signal_name(-code)}" if code < 0 else f"exit code {code}"


def signal_name(number: int) -> str:
    """Return a signal's name; real-time signals have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _reap_children() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def wait_then_kill(
    remaining: Callable[[], Collection[T]],
    kill_all: Callable[[Collection[T]], object],
    grace_s: float,
    deadline_s: float,
) -> None:
    """Wait for processes to end, and kill those that have not ended after a grace period.

    psutil.wait_procs does not fit: it takes a fixed list, while what ends here may leave others
    behind, and it waits for zombies that their own parent has not reaped.

    Args:
        remaining: Returns the processes that have not ended.
        kill_all: Kills them; called until none remains.
        grace_s: Time in which they may end by themselves, s.
        deadline_s: When to stop trying, s after the grace. A process in uninterruptible sleep
            cannot be killed.
    """
    start = time.monotonic()
    while left := remaining():
        waited_s = time.monotonic() - start
        if waited_s > grace_s + deadline_s:
            return
        if waited_s >= grace_s:
            kill_all(left)
        time.sleep(POLL_S)


def sweep(grace_s: float, deadline_s: float = 3.0, spare: Collection[int] = ()) -> int:
    """End all descendants of this process.

    One whose parent ends while psutil reads the processes is in no list; it is found afterwards, as
    a child of this process, if that adopts orphans (`adopt_orphans`).

    Args:
        grace_s: Time in which they may end by themselves, s. multiprocessing's resource tracker
            needs it: it cleans up shared memory when its owner is gone.
        deadline_s: When to stop trying, s after the grace.
        spare: Children to leave alone, with their descendants.

    Returns:
        How many had to be killed.
    """
    killed: set[int] = set()

    def kill_all(left: Collection[psutil.Process]) -> None:
        for process in left:
            killed.add(process.pid)
            kill(process)

    def remaining() -> list[psutil.Process]:
        left = descendants(spare)
        looks = _LOOKS if not spare else 1
        while not left and looks and (spare or _has_children()):
            time.sleep(POLL_S)
            looks -= 1
            left = descendants(spare)
        return left

    wait_then_kill(remaining, kill_all, grace_s, deadline_s)
    return len(killed)
