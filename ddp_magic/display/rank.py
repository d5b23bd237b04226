"""What is known of one rank, updated by events. Pure, except `stdout`, which reads the log."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ddp_magic.display.diagnosis.first_failure import Failure, line_words
from ddp_magic.wire.events import WorkerExited
from ddp_magic.wire.kernel_events import (
    ConnectionLost,
    Killed,
    QuestionClosed,
    Rejoined,
    RunEvent,
    StackDumped,
    Stream,
)
from ddp_magic.wire.states import Phase
from ddp_magic.wire.worker_events import (
    LOST_CONNECTION,
    Collectives,
    DebuggerQuit,
    Error,
    Finished,
    Heartbeat,
    Idle,
    Interrupted,
    Question,
    WorkerHello,
    WorkerReady,
)

CPU_S = 1.5  # for so long its processor time counts
LAST_BYTES = 4000  # of its output that say why it aborted


@dataclass(kw_only=True)
class Rank:
    """What is known of one rank.

    Attributes:
        node: Name of its node; empty for the kernel's own machine.
        phase: What it is doing.
        line: The line of the cell that it is in, or was in when it failed.
        cell: What a person calls the cell of that line; empty for the one that runs.
        call: What that line has called.
        inner: The innermost line of the user's, if it is in another cell or in a module.
        still_s: For how long its main thread had been at one place at the last heartbeat, s.
        cpu: Share of a processor that its main thread has used lately.
        collectives: What it last reported of its process groups; None if it never has.
        enqueued: Number of the last collective that it has called, by group.
        completed: Number of the last one that has completed, by group.
        heard: Time of its last heartbeat, in seconds since the epoch.
        began: When its cell was sent, in seconds since the epoch.
        lost: When it lost its connection while its process ran, in seconds since the epoch.
        answered: Whether it answered the interrupt.
        killed: Whether the kernel killed it.
        idle: Whether it belongs to a session and has ended its cell.
        has_group: Whether a session's rank still has its default process group after its cell.
        cuda_error: Why a session's rank can no longer use CUDA; empty if it can.
        takes_usr1: Whether the user's code handles SIGUSR1, which asks a rank for its stacks.
        exit_wait: What its exit waits for; empty if it does not exit.
        question: What it waits for an answer to; None if it does not.
        held: Its error, while it is in the debugger (`--debug`).
        quit: Whether its debugger was quit, which ends the run.
        log: File with all its text.
        log_span: Where in the file the run's text begins and ends, in bytes.
        stack: The frames of its last stack dump, innermost first.
    """

    rank: int
    pid: int | None = None
    node: str = ""
    device: str = ""
    phase: Phase = Phase.WAITING
    line: int | None = None
    cell: str = ""
    call: str = ""
    inner: str = ""
    still_s: float = 0.0
    cpu: float = 0.0
    collectives: Collectives | None = None
    rss_mib: float = 0.0
    device_mib: float | None = None
    heard: float = 0.0
    began: float = 0.0
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
    cuda_error: str = ""
    takes_usr1: bool = False
    exit_wait: str = ""
    question: Question | None = None
    held: Error | None = None
    quit: bool = False
    log: Path | None = None
    log_span: tuple[int, int | None] = (0, None)
    stack: tuple[str, ...] = ()
    enqueued: Mapping[str, int] = field(default_factory=dict)
    completed: Mapping[str, int] = field(default_factory=dict)
    _cpu_s: float = 0.0

    def take(self, event: RunEvent) -> None:  # noqa: C901, PLR0912, PLR0915 -- one case for each event
        """Update the state from an event of this rank."""
        match event:
            case WorkerHello(pid=pid, node=node):
                self.pid, self.node, self.phase = pid, node, Phase.STARTING
            case Rejoined(log_bytes=log_bytes):
                self.pid, self.device, self.phase = event.pid, event.device, Phase.RUNNING
                self.log_span, self.node = (log_bytes, log_bytes), event.node
            case WorkerReady(device=device):
                self.device, self.phase = device, Phase.RUNNING
            case Collectives():
                self.collectives = event
            case Heartbeat():
                self._take_heartbeat(event)
            case Stream(log_bytes=log_bytes):
                self.log_span = (self.log_span[0], log_bytes)
            case Interrupted():
                self.answered = True
            case Idle(group=has_group, cuda_error=cuda_error):
                self.idle, self.ended, self.phase = True, event.time, Phase.IDLE
                self.has_group, self.cuda_error = has_group, cuda_error
            case Error(line=line, cell=cell, held=True):
                self.held, self.line, self.cell = event, line, cell
            case Error(line=line, cell=cell):
                self.error, self.line, self.cell = event, line, cell
            case Question():
                self.question = event
            case QuestionClosed(number=number):
                if self.question is not None and self.question.mark == number:
                    self.question = None
            case DebuggerQuit():
                self.quit = True
            case Finished():
                self.finished = event
            case Killed():
                self.killed = True
            case StackDumped(frames=frames, line=line, cell=cell):
                self.stack = frames
                if line is not None and (line, cell) != (self.line, self.cell):
                    self.line, self.cell, self.call, self.inner = line, cell, "", ""
            case ConnectionLost(time=lost):
                self.lost = lost
            case WorkerExited(code=code, time=ended, by_agent=by_agent):
                self.code, self.ended, self.phase = code, ended, Phase.ENDED
                self.by_agent = by_agent
                if self.error is None and self.held is not None:
                    # It was ended in the debugger: another rank's error ended the run.
                    self.error = replace(self.held, time=max(self.held.time, ended), held=False)
            case _:
                pass

    def _take_heartbeat(self, event: Heartbeat) -> None:
        if event.time > self.heard > 0.0:
            seconds = event.time - self.heard
            share = max(0.0, event.cpu_s - self._cpu_s) / seconds
            # One that computes on a busy machine has no processor for moments.
            self.cpu += min(1.0, seconds / CPU_S) * (share - self.cpu)
        self.heard, self._cpu_s = event.time, event.cpu_s
        self.enqueued, self.completed = event.enqueued, event.completed
        self.rss_mib, self.device_mib = event.rss_mib, event.device_mib
        self.takes_usr1, self.exit_wait = event.takes_usr1, event.exit_wait
        # A heartbeat sent before a session's cell may arrive late.
        if self.phase is not Phase.ENDED and not self.idle and event.phase is not Phase.IDLE:
            self.phase = event.phase
        if event.phase is Phase.RUNNING and self.error is None and self.held is None:
            self.cell = event.cell
            self.line = event.line  # a rank that exits keeps the line it failed in
            self.call, self.inner, self.still_s = event.call, event.inner, event.still_s

    def restarted(self) -> Rank:
        """Return the same rank at the beginning of another attempt."""
        return Rank(rank=self.rank, log=self.log, log_span=self.log_span)

    @property
    def busy(self) -> bool:
        """Whether it is still running its cell."""
        return self.code is None and not self.idle

    @property
    def stdout(self) -> str:
        """Everything it wrote to stdout and stderr in this run, in order."""
        return self._read()

    def _read(self, last_bytes: int | None = None) -> str:
        """Return what it wrote in this run, or only the last bytes of it."""
        if self.log is None or not self.log.exists():
            return ""
        begin, end = self.log_span
        if end is not None and end < begin:  # the file was created again meanwhile
            begin = 0
        with self.log.open("rb") as file:
            if last_bytes is not None:
                size = file.seek(0, 2)
                begin = max(begin, (size if end is None else min(size, end)) - last_bytes)
            file.seek(begin)
            return file.read(-1 if end is None else end - begin).decode(errors="replace")

    @property
    def exit(self) -> int | None:
        """Exit code; for a rank of a session, that of the cell; None while it is busy."""
        if self.code is not None or self.busy:
            return self.code
        failure = self.failure
        return 0 if failure is None else (failure.finished.code if failure.finished else 1)

    @property
    def failure(self) -> Failure | None:
        """How this rank failed; None if it did not."""
        if self.error is not None:
            return Failure(
                rank=self.rank,
                time=self.error.time,
                code=self.code,
                error=self.error,
                node=self.node,
            )
        if self.lost is not None:
            return Failure(rank=self.rank, time=self.lost, code=LOST_CONNECTION, node=self.node)
        if self.finished is not None and self.finished.code:
            return Failure(
                rank=self.rank,
                time=self.finished.time,
                code=self.code,
                finished=self.finished,
                node=self.node,
            )
        if self.code and not (self.finished is not None and self.by_agent):
            return Failure(
                rank=self.rank,
                time=self.ended or time.time(),
                code=self.code,
                ended_by_us=self.by_agent or self.killed,
                node=self.node,
                last_words=self._last_words() if self.code == -signal.SIGABRT else "",
            )
        return None

    def _last_words(self) -> str:
        """Return the end of what it wrote in this run."""
        try:
            return self._read(LAST_BYTES)
        except OSError:
            return ""

    def silent_s(self, now: float) -> float:
        """Return for how long a running rank has sent no heartbeat, in seconds.

        The first one is due a moment after its cell has begun.

        Args:
            now: Seconds since the epoch.
        """
        last = max(self.heard, self.began)
        return now - last if last else 0.0

    @property
    def where(self) -> str:
        """Its place as a phrase, ` at line 3`; empty if unknown."""
        return f" at {self.place}" if self.line is not None else ""

    @property
    def place(self) -> str:
        """Where it is: `line 3`, or `Cell In[5], line 3` of another cell; empty if unknown."""
        return "" if self.line is None else line_words(self.line, self.cell)

    @property
    def full_place(self) -> str:
        """Its place, and the innermost line below it: `line 3, which calls a.py, line 7`."""
        inner = "" if self.error is not None else self.inner
        return ", which calls ".join(filter(None, [self.place, inner]))

    @property
    def left_early(self) -> bool:
        """Whether it exited with code 0 before the end of the cell (`os._exit(0)`)."""
        return self.ran and self.code == 0 and self.finished is None and self.error is None

    @property
    def ran(self) -> bool:
        """Whether it was ready for the cell."""
        return bool(self.device)

    @property
    def succeeded(self) -> bool:
        """Whether it reported the end of its cell, or exited from it with code 0."""
        if self.error is not None or self.busy:
            return False
        return self.left_early or (self.finished is not None and self.finished.code == 0)
