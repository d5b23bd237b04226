"""What is known of one rank, event by event. Pure, but for `stdout`, which reads the log."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from ddp_magic.display.diagnose import Failure
from ddp_magic.wire.kernel_events import Killed, Rejoined, RunEvent, StackDumped
from ddp_magic.wire.messages import (
    LOST_CONNECTION,
    ConnectionLost,
    Error,
    Finished,
    Heartbeat,
    Idle,
    Interrupted,
    Stream,
    WorkerExited,
    WorkerHello,
    WorkerReady,
)
from ddp_magic.wire.states import Phase


@dataclass(kw_only=True)
class Rank:
    """What is known of one rank.

    Attributes:
        phase: What it is doing.
        line: The cell's line that it is in, or was in when it failed.
        heard: When it was last heard of, in seconds since the epoch.
        lost: When it lost its connection while it lived, in seconds since the epoch.
        answered: Whether it has taken the interrupt.
        killed: Whether the kernel killed it.
        idle: Whether it is a session's, and has ended its cell.
        has_group: Whether a session's rank still has its default process group after its cell.
        log: File with all its text.
        log_span: Where in the file the run's text begins and ends, in bytes.
        stack: Its frames when it was last asked for them, innermost first.
    """

    rank: int
    pid: int | None = None
    device: str = ""
    phase: Phase = Phase.WAITING
    line: int | None = None
    rss_mib: float = 0.0
    device_mib: float | None = None
    heard: float = 0.0
    code: int | None = None
    by_agent: bool = False
    ended: float | None = None
    lost: float | None = None
    error: Error | None = None
    finished: Finished | None = None
    answered: bool = False
    killed: bool = False
    idle: bool = False
    has_group: bool = True
    log: Path | None = None
    log_span: tuple[int, int | None] = (0, None)
    stack: tuple[str, ...] = ()

    def take(self, event: RunEvent) -> None:  # noqa: C901, PLR0912 -- one case for each event
        """Update what is known by an event of this rank."""
        match event:
            case WorkerHello(pid=pid):
                self.pid, self.phase = pid, Phase.STARTING
            case Rejoined(log_bytes=log_bytes):
                self.pid, self.device, self.phase = event.pid, event.device, Phase.RUNNING
                self.log_span = (log_bytes, log_bytes)
            case WorkerReady(device=device):
                self.device, self.phase = device, Phase.RUNNING
            case Heartbeat():
                self._take_heartbeat(event)
            case Stream(log_bytes=log_bytes):
                self.log_span = (self.log_span[0], log_bytes)
            case Interrupted():
                self.answered = True
            case Idle(group=has_group):
                self.idle, self.ended, self.phase = True, event.time, Phase.IDLE
                self.has_group = has_group
            case Error(line=line):
                self.error, self.line = event, line
            case Finished():
                self.finished = event
            case Killed():
                self.killed = True
            case StackDumped(frames=frames, line=line):
                self.stack, self.line = frames, line or self.line
            case ConnectionLost(time=lost):
                self.lost = lost
            case WorkerExited(code=code, time=ended, by_agent=by_agent):
                self.code, self.ended, self.phase = code, ended, Phase.ENDED
                self.by_agent = by_agent
            case _:
                pass

    def _take_heartbeat(self, event: Heartbeat) -> None:
        self.heard = event.time
        self.rss_mib, self.device_mib = event.rss_mib, event.device_mib
        # One from before a session's cell may come late.
        if self.phase is not Phase.ENDED and not self.idle and event.phase is not Phase.IDLE:
            self.phase = event.phase
        if event.phase is Phase.RUNNING and self.error is None:
            self.line = event.line  # a rank on its way out keeps the line it failed in

    @property
    def busy(self) -> bool:
        """Whether its cell has not ended."""
        return self.code is None and not self.idle

    @property
    def stdout(self) -> str:
        """All that it wrote in this run, to stdout and stderr, in order."""
        if self.log is None or not self.log.exists():
            return ""
        begin, end = self.log_span
        if end is not None and end < begin:  # the file was made again meanwhile
            begin = 0
        with self.log.open("rb") as file:
            file.seek(begin)
            return file.read(-1 if end is None else end - begin).decode(errors="replace")

    @property
    def exit(self) -> int | None:
        """Exit code; of a session's rank that of the cell; None while it is busy."""
        if self.code is not None or self.busy:
            return self.code
        failure = self.failure
        return 0 if failure is None else (failure.finished.code if failure.finished else 1)

    @property
    def failure(self) -> Failure | None:
        """How this rank failed, if it did."""
        if self.error is not None:
            return Failure(rank=self.rank, time=self.error.time, code=self.code, error=self.error)
        if self.lost is not None:
            return Failure(rank=self.rank, time=self.lost, code=LOST_CONNECTION)
        if self.finished is not None and self.finished.code:
            return Failure(
                rank=self.rank, time=self.finished.time, code=self.code, finished=self.finished
            )
        if self.code and not (self.finished is not None and self.by_agent):
            return Failure(
                rank=self.rank,
                time=self.ended or time.time(),
                code=self.code,
                ended_by_us=self.by_agent or self.killed,
            )
        return None

    @property
    def where(self) -> str:
        """Its line, as the end of a phrase; empty where it is not known."""
        return "" if self.line is None else f" at line {self.line}"

    @property
    def left_early(self) -> bool:
        """Whether it ended well before the cell did (`os._exit(0)`)."""
        return self.ran and self.code == 0 and self.finished is None and self.error is None

    @property
    def ran(self) -> bool:
        """Whether it has begun its cell, which begins when all ranks are ready."""
        return bool(self.device)

    @property
    def succeeded(self) -> bool:
        """Whether it said that it ran its cell to the end, or left it with exit code 0."""
        if self.error is not None or self.busy:
            return False
        return self.left_early or (self.finished is not None and self.finished.code == 0)
