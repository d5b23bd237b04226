"""The forkserver that a process uses, one after the other: started, out of date, dead, given up."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ddp_magic.engines.forkserver import Forkserver, current_rank_environment, open_log, unsupported
from ddp_magic.engines.forkserver_process import LentProcess, StartedProcess
from ddp_magic.engines.preload_record import Death, PreloadRecord
from ddp_magic.system.entry_points import last_words
from ddp_magic.system.environment import early_differences
from ddp_magic.wire.forkserver_status import ForkserverStatus

CLOSE_S = 5.0


class CurrentForkserver:
    """Knows whether there is one, and whether there may be another. Whoever has it holds a lock.

    Args:
        command: What starts a forkserver.
        on_report: Called when one has reported something, between cells too.

    Attributes:
        now: The one that runs; None if none does.
        record: What to preload, and what that has shown.
        off: Why there is to be none; empty if there may be one.
    """

    def __init__(self, command: Sequence[str], on_report: Callable[[], object]) -> None:
        self.now: Forkserver | None = None
        self.record = PreloadRecord()
        self.off = unsupported()
        self._command = command
        self._on_report = on_report
        self._log = open_log()
        self._started = False
        self._restart_reason = ""
        self._gave_up_in: dict[str, str] | None = None  # the environment in which it gave up

    @property
    def used(self) -> bool:
        """Whether anything has been asked for: to start one, to import, to close it."""
        return self._started or bool(self.record.wanted) or bool(self.off)

    def launch(self, env: dict[str, str] | None = None) -> None:
        """Start one if none runs and one may. Returns at once.

        Args:
            env: The environment of the ranks it is for; None for that of the kernel as it is.
        """
        if not self.off and self.now is None:
            self._started = True
            now = current_rank_environment() if env is None else env
            process = StartedProcess(self._command, now, self.record, self._log)
            self.now = Forkserver(process, env, self.record)
            self.now.watch(self._on_report)

    def adopt(self, fd: int) -> None:
        """Use one that was forked for this process, a host; this is the connection to it."""
        self._started = True
        self.now = Forkserver(LentProcess(fd), None, self.record)

    def lend(self, fd: int, host_pid: int, env: dict[str, str]) -> None:
        """Have it fork one for a host, unless it is out of date.

        Args:
            fd: Its end of the connection.
            host_pid: The host.
            env: The environment of the host's ranks.
        """
        if self.now is not None and not self.now.out_of_date(sys.path, env):
            self.now.lend(fd, host_pid)

    def want(self, modules: Iterable[str]) -> None:
        """Have these libraries imported when it has nothing else to do."""
        new = self.record.want(modules)
        if self.now is not None:
            self.now.preload(new)

    def retire_if_out_of_date(
        self, sys_path: Iterable[str], env: Mapping[str, str] | None = None
    ) -> None:
        """Close the one that runs if a fresh interpreter would import other libraries.

        Args:
            sys_path: The module search path of the ranks.
            env: Their environment; None if only what the notebook has changed counts.
        """
        if self.now is not None and (reason := self.now.out_of_date(sys_path, env)):
            self.now.close()
            self.now = None
            self._restart_reason = reason

    def take_slow_start(self) -> str:
        """Return why the next start is slow, once; empty if it is not."""
        ready = self.now is not None and self.now.ready
        reason, self._restart_reason = self._restart_reason, ""
        return f"{reason}: reimporting the preloaded libraries" if reason and not ready else ""

    def bury(self, dead: Forkserver) -> Death | None:
        """Find out why the one that ran has died.

        Returns:
            What that means; None if it was forked for this process, which starts its own then.
        """
        dead.close()
        self.now = None
        if dead.lent:
            return None
        if dead.obstacle is not None:
            return self.record.add_obstacle(dead.obstacle)
        return self.record.add_death(dead.importing, dead.wait(CLOSE_S) or 0)

    def give_up(self, reason: str, env: dict[str, str]) -> None:
        """Have no other one, for ranks of this environment."""
        log = Path(f"/proc/self/fd/{self._log.fileno()}")
        self.off = f"{reason}\n{last_words(log)}".strip()
        self._gave_up_in = env

    def try_again(self, env: dict[str, str]) -> None:
        """Allow another one if the environment, which may have been the reason, is another."""
        if self._gave_up_in is not None and early_differences(env, self._gave_up_in):
            self.off, self._gave_up_in = "", None
            self.record.forgive()

    def close(self, *, at_once: bool) -> None:
        """End the one that runs, and have no other one.

        Args:
            at_once: Also while it imports something. There are no agents.
        """
        forkserver, self.now = self.now, None
        self.off = "off"
        if forkserver is not None:
            if at_once:
                forkserver.kill()
            forkserver.close()
            forkserver.wait(CLOSE_S)

    def status(self) -> ForkserverStatus:
        """Return what `%ddp_status` shows."""
        if self.now is None:
            return ForkserverStatus(state=f"off: {self.off}" if self.off else "not started")
        return self.now.status()
