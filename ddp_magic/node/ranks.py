"""The processes of the ranks on one node, as their agent holds them."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import NoReturn

from ddp_magic.system import entry_points, processes
from ddp_magic.system.tracebacks import without_ours
from ddp_magic.wire.specs import WorkerSettings

TERM_GRACE_S = 0.5  # between SIGTERM and SIGKILL, for ranks whose peer has failed
KILL_S = 5.0  # for the ranks to end after SIGKILL
POLL_S = 0.02
STACK_S = 0.03  # for the ranks to write where they are, before SIGTERM


class Ranks:
    """The processes of the ranks on this node.

    The main thread starts and polls them; the watcher thread may kill them. The lock ensures that
    no signal is sent to a pid that has been reaped.

    Args:
        on_exit: Called once for each rank that has ended, with its local rank, its exit code, and
            whether this object had sent it a signal.
    """

    def __init__(self, on_exit: Callable[[int, int, bool], None]) -> None:
        self._lock = threading.Lock()
        self._on_exit = on_exit
        self.pids: dict[int, int] = {}
        self.codes: dict[int, int] = {}
        # Stop was pressed: ranks that answered may finish saving, so the end of one rank no longer
        # ends the others.
        self.interrupted = False
        self.doomed = False  # the kernel has killed the run
        self._ended_here: set[int] = set()
        self._pidfds: dict[int, int] = {}

    @property
    def ending(self) -> bool:
        """Whether the run is being stopped: no other rank needs to start."""
        return self.doomed or self.interrupted

    def forget(self) -> None:
        """Forget the ranks of an attempt, which have all ended: others take their places."""
        with self._lock:
            self.pids.clear()
            self.codes.clear()
            self._ended_here.clear()

    def fork(self, local_rank: int, main: Callable[[], NoReturn]) -> None:
        """Fork a rank. It runs `main` and nothing else of this process."""
        agent_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become_rank(agent_pid, main)
        with self._lock:
            self.pids[local_rank] = pid
            try:
                self._pidfds[local_rank] = os.pidfd_open(pid)
            except (OSError, AttributeError):  # not Linux
                pass
            if self.doomed:
                self._ended_here.add(local_rank)
                os.kill(pid, signal.SIGKILL)

    def kill(self, local_ranks: tuple[int, ...]) -> None:
        """SIGKILL these ranks; if none is given, all of them, including those not yet forked."""
        self.doomed = self.doomed or not local_ranks
        self.signal(signal.SIGKILL, local_ranks)

    def poll(self) -> None:
        """Collect the exit codes of the ranks that have ended."""
        ended = []
        with self._lock:
            for local_rank, pid in self.pids.items():
                if local_rank in self.codes:
                    continue
                waited, status = os.waitpid(pid, os.WNOHANG)
                if waited:
                    self.codes[local_rank] = os.waitstatus_to_exitcode(status)
                    if local_rank in self._pidfds:
                        os.close(self._pidfds.pop(local_rank))
                    ended.append(local_rank)
        for local_rank in ended:
            by_us = local_rank in self._ended_here
            self._on_exit(local_rank, self.codes[local_rank], by_us)

    def wait(self, timeout_s: float) -> None:
        """Wait until a rank ends, at most `timeout_s` seconds.

        With pidfds, waiting for the idle ranks of a session costs nothing; without, this is a short
        sleep.
        """
        if len(self._pidfds) < len(self.alive()):
            time.sleep(min(timeout_s, POLL_S))
        elif self._pidfds:
            poll = select.poll()  # unlike `select`, also for descriptors from 1024 on
            for pidfd in self._pidfds.values():
                poll.register(pidfd, select.POLLIN)
            poll.poll(timeout_s * 1000)

    def alive(self) -> list[int]:
        """Return the local ranks that have not been reaped."""
        return [r for r in self.pids if r not in self.codes]

    def signal(self, sig: int, local_ranks: tuple[int, ...] = ()) -> None:
        """Send a signal to these ranks; if none is given, to all of them."""
        with self._lock:
            for local_rank, pid in self.pids.items():
                if local_rank not in self.codes and (not local_ranks or local_rank in local_ranks):
                    if sig != signal.SIGUSR1 and not self._has_ended(pid):
                        self._ended_here.add(local_rank)
                    os.kill(pid, sig)

    @staticmethod
    def _has_ended(pid: int) -> bool:
        """Return whether a child has ended and is still to be reaped."""
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def end(self, sig: int, grace_s: float) -> None:
        """Send a signal, and SIGKILL to those that have not ended `grace_s` seconds later."""
        self.poll()
        if self.alive():
            # Each rank first writes its stack (faulthandler, in C), which the kernel reads later.
            self.signal(signal.SIGUSR1)
            time.sleep(STACK_S)
        self.signal(sig)
        processes.wait_then_kill(
            self._polled_alive, lambda _: self.signal(signal.SIGKILL), grace_s, KILL_S
        )

    def _polled_alive(self) -> list[int]:
        self.poll()
        return self.alive()


def _become_rank(agent_pid: int, main: Callable[[], NoReturn]) -> NoReturn:
    """Turn this fork of the agent into a rank. None of the agent's code may run in it any more."""
    try:
        os.setsid()
        processes.die_with_parent(agent_pid)
        for sig in ("TERM", "HUP", "QUIT", "USR1", "USR2"):
            signal.signal(signal.Signals[f"SIG{sig}"], signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        main()
    except BaseException as error:  # noqa: BLE001 -- the agent's frames must never run on in a rank
        traceback.print_exception(without_ours(error))
    finally:
        sys.stderr.flush()
        os._exit(1)


def run_worker(settings: WorkerSettings, env: Mapping[str, str]) -> NoReturn:
    """Run the worker in this process, a rank.

    Args:
        settings: What the ranks have in common.
        env: The rank's own environment variables, such as RANK.
    """
    os.environ.update(env)
    entry_points.resolve(entry_points.WORKER)(settings)  # imports torch: never in the agent
    raise AssertionError("the worker has returned")
