"""What unit tests use in place of processes: a worker group, a screen, a notebook's shell, events.

`FakeGroup` plays recorded events, so that whatever a run, a stop or a session does with them is
seen in milliseconds, without a process.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

from ddp_magic.display.question_box import Reply
from ddp_magic.display.record import RunRecord
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.commands import Answer, Command
from ddp_magic.wire.events import WorkerExited
from ddp_magic.wire.kernel_events import GroupEnded, Note, OutsideEnd, Rejoined, RunEvent, Stream
from ddp_magic.wire.states import Phase
from ddp_magic.wire.worker_events import (
    Error,
    Finished,
    Heartbeat,
    Idle,
    Interrupted,
    Question,
    WorkerHello,
    WorkerReady,
)

EARLY, LATE = 5.0, 1e11  # s since the epoch: before and after whatever the kernel does in a test
MAX_EMPTY_POLLS = 1000

# What one `poll` returns; a function in it is called when its turn comes.
Batch: TypeAlias = Sequence[RunEvent | Callable[[], object]]


def press_stop() -> None:
    """Press Stop, in a batch: the kernel's process gets SIGINT."""
    signal.raise_signal(signal.SIGINT)


class FakeGroup:
    """A worker group that plays recorded events and records its commands.

    Args:
        directory: In place of the group's own.
        batches: What each `poll` returns; then nothing happens any more.
        nproc: Number of ranks.
        kept: Whether it is a session's.
        started: Whether it serves another cell of a session.
        placed_after: Number of polls after which its agent runs.
        on: Batches that follow the first command of a name: `RunCell`, `interrupt`, `kill`, ...
        between: What happened since the last cell.
        late: What `drain` finds.
    """

    def __init__(
        self,
        directory: Path,
        *batches: Batch,
        nproc: int = 2,
        kept: bool = False,
        started: bool = False,
        placed_after: int = 0,
        on: Mapping[str, Sequence[Batch]] | None = None,
        between: Batch = (),
        late: Batch = (),
    ) -> None:
        self.directory = RunDirectory(directory)
        self.nproc = nproc
        self.kept = kept
        self.started = started
        self.ended = False
        self._polls_until_placed = placed_after
        self.where = ""
        self.pids: dict[int, int] = {}
        self.first_exit: WorkerExited | None = None
        self.outside: OutsideEnd | None = None
        self.commands: list[tuple[Any, ...]] = []
        self._batches = deque(batches)
        self._reactions = dict(on or {})
        self.between, self._late = between, late
        self._unseen: list[RunEvent] = []
        self._empty_polls = 0

    @property
    def placed(self) -> bool:
        self._polls_until_placed -= 1
        return self._polls_until_placed < 0

    @property
    def names(self) -> list[str]:
        """The commands' names, in order."""
        return [command[0] for command in self.commands]

    def start(self, _engine: object, env: object, sys_path: object, prelude: object) -> None:
        self.started = True
        self._record("start", env, sys_path, prelude)

    def send(self, command: Command, _fd: int | None = None) -> None:
        self._record(type(command).__name__, command)

    def answer(self, rank: int, answer: Answer) -> None:
        self._record("answer", rank, answer)

    def share(self, number: int, _segment: object) -> None:
        self._record("share", number)

    def interrupt(self, ranks: Iterable[int], *, keep: bool) -> None:
        self._record("interrupt", tuple(ranks), keep)

    def kill(self, ranks: tuple[int, ...] = ()) -> None:
        self._record("kill", ranks)

    def dump_stack(self, rank: int) -> None:
        self._record("dump_stack", rank)

    def renew_process_group(self) -> None:
        self._record("renew_process_group")

    def finish(self, timeout_s: float) -> bool:
        self._record("finish", timeout_s)
        while self._batches:
            self.poll(0)
        return self.ended

    def close(self) -> None:
        self._record("close")
        self.ended = True

    def _record(self, *command: Any) -> None:
        self.commands.append(command)
        self._batches.extend(self._reactions.pop(command[0], ()))

    def poll(self, _timeout_s: float) -> list[RunEvent]:
        if self._batches:
            return self._play(self._batches.popleft())
        self._empty_polls += 1
        assert self._empty_polls < MAX_EMPTY_POLLS, f"nothing follows {self.commands[-1:]}"
        return []

    def drain(self) -> list[RunEvent]:
        late, self._late = self._late, ()
        return self._play(late)

    def look(self) -> None:
        between, self.between = self.between, ()
        self._unseen += self._play(between)

    def rejoin(self) -> list[RunEvent]:
        self.look()
        events, self._unseen = self._unseen, []
        rejoined = [
            Rejoined(rank=rank, pid=100 + rank, device="cpu", log_bytes=0)
            for rank in range(self.nproc)
        ]
        return [*events, *rejoined]

    def _play(self, batch: Batch) -> list[RunEvent]:
        events: list[RunEvent] = []
        for event in batch:
            match event:
                case GroupEnded(outside=outside):
                    self.ended, self.outside = True, outside
                case WorkerHello(rank=rank, pid=pid):
                    self.pids[rank] = pid
                case WorkerExited():
                    self.first_exit = self.first_exit or event
                case _ if callable(event):
                    event()
                    continue
            events.append(event)
        return events


class FakeScreen:
    """Records what a run shows.

    Attributes:
        events: All events, in order.
        ended: The run's state when its end was shown; empty before.
    """

    def __init__(self) -> None:
        self.progress: dict[int, tuple[str, ...]] = {}
        self.wait_s = 0.0
        self.events: list[RunEvent] = []
        self.ended = ""

    def start(self, record: RunRecord) -> None:
        assert record.state.value == "PENDING"

    def take(self, event: RunEvent) -> None:
        self.events.append(event)

    def tick(self, record: RunRecord) -> None: ...

    def finish(self, record: RunRecord) -> None:
        self.ended = record.state.value

    @property
    def notes(self) -> list[str]:
        """The lines of ddp_magic's own."""
        return [event.text for event in self.events if isinstance(event, Note)]


class FakeShell:
    """A notebook's shell that records what is published.

    Attributes:
        published: (data, metadata, display id, update) of each display, in order.
        visible: (display id, text) of the displays that can be seen now, in order.
        cleared: The `wait` of each `clear_output`.
    """

    def __init__(self, *, notebook: bool = True) -> None:
        self.published: list[tuple[dict[str, Any], dict[str, Any], str, bool]] = []
        self.visible: list[tuple[str, str]] = []
        self.cleared: list[bool] = []
        self.display_pub = SimpleNamespace(publish=self._publish, clear_output=self._clear)
        self.execution_count: int | None = None
        if notebook:
            self.kernel = object()

    def _publish(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any],
        *,
        transient: dict[str, str],
        update: bool,
    ) -> None:
        name = transient["display_id"]
        self.published.append((data, metadata, name, update))
        shown = (name, str(data.get("text/plain", "")))
        if update:
            self.visible = [shown if old == name else (old, t) for old, t in self.visible]
        else:
            self.visible.append(shown)

    def _clear(self, wait: bool) -> None:
        self.cleared.append(wait)
        self.visible = []

    @property
    def displays(self) -> list[tuple[dict[str, Any], dict[str, Any], str, bool]]:
        """What ranks have displayed, without the table."""
        return [shown for shown in self.published if "ddp" in shown[1]]

    @property
    def tables(self) -> list[str]:
        """The states of the table, as text."""
        return [data["text/plain"] for data, meta, _, _ in self.published if "ddp" not in meta]


class FakeBox:
    """Where a person answers: what is given as `replies`, one for each question.

    Attributes:
        log: What happened, in order: the prompts (a password's after `*`), and "closed".
    """

    def __init__(self, *replies: Reply | None, problem: str = "") -> None:
        self.problem = problem
        self.log: list[str] = []
        self.replies = deque(replies)

    def open(self, prompt: str, *, password: bool) -> None:
        self.log.append("*" * password + prompt)

    def poll(self) -> Reply | None:
        return self.replies.popleft() if self.replies else None

    def close(self) -> None:
        self.log.append("closed")


# --- a rank's events --------------------------------------------------------------------------


def hello(rank: int) -> WorkerHello:
    return WorkerHello(rank=rank, pid=100 + rank, marker="M;")


def ready(rank: int, device: str = "cpu") -> WorkerReady:
    return WorkerReady(rank=rank, time=EARLY - 1, device=device)


def up(nproc: int = 2) -> list[RunEvent]:
    """The ranks are connected and ready."""
    return [*map(hello, range(nproc)), *map(ready, range(nproc))]


def heartbeat(
    rank: int, line: int | None = None, phase: Phase = Phase.RUNNING, **more: Any
) -> Heartbeat:
    fields = {"time": EARLY, "rss_mib": 100.0, **more}
    return Heartbeat(rank=rank, phase=phase, line=line, **fields)


def text(rank: int, written: str, log_bytes: int = 0) -> Stream:
    return Stream(rank=rank, text=written, log_bytes=log_bytes)


def error(rank: int, evalue: str = "boom", time: float = EARLY, **more: Any) -> Error:
    fields = {"ename": "ValueError", "traceback": ("Cell In[1], line 3",), "line": 3, **more}
    return Error(rank=rank, time=time, evalue=evalue, **fields)


def interrupted(rank: int, line: int = 3) -> list[RunEvent]:
    """The rank takes the interrupt, and its cell raises KeyboardInterrupt."""
    raised = error(rank, "", LATE, ename="KeyboardInterrupt", line=line)
    return [Interrupted(rank=rank, time=LATE), raised]


def question(rank: int, mark: int = 1, prompt: str = "name? ", **more: Any) -> Question:
    return Question(rank=rank, mark=mark, prompt=prompt, **more)


def finished(rank: int, code: int = 0, message: str = "") -> Finished:
    return Finished(rank=rank, time=EARLY, code=code, message=message)


def idle(rank: int, *, group: bool = True, cuda_error: str = "") -> Idle:
    return Idle(rank=rank, time=EARLY + 1, group=group, cuda_error=cuda_error)


def exited(
    rank: int, code: int = 0, time: float = EARLY + 1, *, by_agent: bool = False
) -> WorkerExited:
    return WorkerExited(rank=rank, time=time, code=code, by_agent=by_agent)


def done(rank: int) -> list[RunEvent]:
    """The rank has run its cell to the end, and its process ends."""
    return [finished(rank), exited(rank)]
