"""What a kernel knows of one rank."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from ddp_magic.display import diagnose
from ddp_magic.display.diagnose import Failure
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.messages import (
    LOST_CONNECTION,
    ConnectionLost,
    Error,
    Event,
    Finished,
    Heartbeat,
    Idle,
    Interrupted,
    WorkerExited,
    WorkerHello,
    WorkerReady,
)


@dataclass
class Rank:
    """What is known of one rank.

    Attributes:
        phase: "waiting" (for its process), "starting", "running", "exiting" or "ended".
        line: The cell's line that it is in, or was in when it failed.
        heard: When it was last heard of, s since the epoch.
        lost: When it lost its connection while it lived, s since the epoch.
        answered: Whether it has taken the interrupt.
        killed: Whether we killed it.
        idle: Whether it is a session's, and has ended its cell.
        log: File with all its text.
        log_span: Where in the file the run's text begins and ends, bytes.
        stack: Its frames at the time of the kill, innermost first.
    """

    rank: int
    pid: int | None = None
    device: str = ""
    phase: str = "waiting"
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
    log: Path | None = None
    log_span: tuple[int, int | None] = (0, None)
    stack: list[str] = field(default_factory=list)
    progress: str = ""

    def take(self, event: Event) -> None:  # noqa: C901 -- one case for each event
        """Take up what an event says of this rank."""
        match event:
            case WorkerHello(pid=pid):
                self.pid, self.phase = pid, "starting"
            case WorkerReady(device=device):
                self.device, self.phase = device, "running"
            case Heartbeat():
                self.heard = event.time
                self.rss_mib, self.device_mib = event.rss_mib, event.device_mib
                if self.phase != "ended" and not self.idle and event.phase != "idle":
                    self.phase = event.phase  # one from before a session's cell came late
                if event.phase == "running" and self.error is None:
                    self.line = event.line  # a rank on its way out keeps the line it failed in
            case Interrupted():
                self.answered = True
            case Idle():
                self.idle, self.ended, self.phase = True, event.time, "idle"
            case Error(line=line):
                self.error, self.line = event, line
            case Finished():
                self.finished = event
            case ConnectionLost(time=lost):
                self.lost = lost
            case WorkerExited(code=code, time=ended, by_agent=by_agent):
                self.code, self.ended, self.phase = code, ended, "ended"
                self.by_agent = by_agent
            case _:
                pass

    @property
    def busy(self) -> bool:
        """Whether its cell has not ended."""
        return self.code is None and not self.idle

    @property
    def stdout(self) -> str:
        """All that it has written in this run, to stdout and stderr, in their order."""
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
        """Whether it has said that it ran its cell to the end, or left it with exit code 0."""
        if self.error is not None or self.busy:
            return False
        return self.left_early or (self.finished is not None and self.finished.code == 0)

    def read_stack(self, directory: RunDirectory, cell_path: str, label: str) -> None:
        """Take up what the rank wrote when it was last asked for its stack.

        Args:
            directory: The run directory.
            cell_path: What the cell calls itself.
            label: What to call that file.
        """
        path = directory.stacks(self.rank)
        if path.exists():
            dump = path.read_text(errors="replace")
            self.stack = diagnose.stack(dump, cell_path, label)
            self.line = diagnose.cell_line(self.stack, label) or self.line
