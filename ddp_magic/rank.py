"""What a kernel knows of one rank."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from ddp_magic import diagnose
from ddp_magic.diagnose import Failure
from ddp_magic.events import (
    Error,
    Event,
    Finished,
    Heartbeat,
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
        answered: Whether it has taken the interrupt.
        killed: Whether we killed it.
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
    ended: float | None = None
    error: Error | None = None
    finished: Finished | None = None
    answered: bool = False
    killed: bool = False
    stack: list[str] = field(default_factory=list)
    progress: str = ""

    def take(self, event: Event) -> None:
        """Take up what an event says of this rank."""
        match event:
            case WorkerHello(pid=pid):
                self.pid, self.phase = pid, "starting"
            case WorkerReady(device=device):
                self.device, self.phase = device, "running"
            case Heartbeat():
                self.heard = event.time
                self.rss_mib, self.device_mib = event.rss_mib, event.device_mib
                if self.phase != "ended":
                    self.phase = event.phase
                if event.phase == "running" and self.error is None:
                    self.line = event.line  # a rank on its way out keeps the line it failed in
            case Interrupted():
                self.answered = True
            case Error(line=line):
                self.error, self.line = event, line
            case Finished():
                self.finished = event
            case WorkerExited(code=code, time=ended):
                self.code, self.ended, self.phase = code, ended, "ended"
            case _:
                pass

    @property
    def failure(self) -> Failure | None:
        """How this rank failed, if it did."""
        if self.error is not None:
            return Failure(rank=self.rank, time=self.error.time, code=self.code, error=self.error)
        if self.finished is not None and self.finished.code:
            return Failure(
                rank=self.rank, time=self.finished.time, code=self.code, finished=self.finished
            )
        if self.code:
            return Failure(rank=self.rank, time=self.ended or time.time(), code=self.code)
        return None

    @property
    def where(self) -> str:
        """Its line, as the end of a phrase; empty where it is not known."""
        return "" if self.line is None else f" at line {self.line}"

    @property
    def left_early(self) -> bool:
        """Whether it ended well before the cell did (`os._exit(0)`)."""
        return self.code == 0 and self.finished is None and self.error is None

    def read_stack(self, directory: Path, cell_path: Path, label: str) -> None:
        """Take up what the rank wrote when it was last asked for its stack.

        Args:
            directory: The run directory.
            cell_path: The cell's file.
            label: What to call that file.
        """
        path = directory / f"rank{self.rank}.stacks"
        if path.exists():
            dump = path.read_text(errors="replace")
            self.stack = diagnose.stack(dump, str(cell_path), label)
            self.line = diagnose.cell_line(self.stack, label) or self.line
