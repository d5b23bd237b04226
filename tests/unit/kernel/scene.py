"""A real worker group whose agent and ranks are the test's own process."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ddp_magic.engines import Lost
from ddp_magic.kernel.worker_group.group import WorkerGroup
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.channel import connect
from ddp_magic.wire.events import AgentHello
from ddp_magic.wire.kernel_events import Note, RunEvent, Stream
from ddp_magic.wire.worker_events import Idle, WorkerHello

NPROC = 2
STEPS = 5  # from a connection to all that was sent over it


class FakeAgent:
    """An agent that has been placed and lives until it is killed."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.dead = False
        self.waiting = ""
        self.words = ""
        self.where = ""
        self.fd = -1
        self.nodes = 0
        self.loss: Lost | None = None

    def fileno(self) -> int:
        return self.fd

    def ended(self) -> bool:
        return self.dead

    def take_notes(self) -> list[str]:
        notes, self.notes = self.notes, []
        return notes

    def kill(self) -> None:
        self.dead = True

    def close(self) -> None:
        pass

    def granted(self) -> int:
        return self.nodes

    def lost(self) -> Lost | None:
        return self.loss

    def waits_for(self) -> str:
        return self.waiting

    def last_words(self) -> str:
        return self.words

    def outside_end(self) -> None: ...


class FakeEngine:
    """Places that agent."""

    def __init__(self) -> None:
        self.agent = FakeAgent()

    def start(self, *_: object) -> FakeAgent:
        return self.agent


class FakeRank:
    """A rank that is this process."""

    def __init__(self, path: Path, rank: int, attempt: int = 0, node: str = "") -> None:
        self.channel = connect(str(path))
        read_end, self.pipe = os.pipe()
        hello = WorkerHello(rank=rank, pid=os.getpid(), marker="M;", attempt=attempt, node=node)
        self.channel.send(hello, fd=read_end)
        os.close(read_end)

    def close(self) -> None:
        self.channel.close()
        os.close(self.pipe)


class Scene:
    """A group whose agent and ranks are connected.

    Attributes:
        notes: What was said to the user.
    """

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.notes: list[str] = []
        self.engine = FakeEngine()
        self.group = WorkerGroup(RunDirectory(directory), nproc=NPROC, device="cpu", **settings)
        self.group.start(self.engine, {}, [], ())
        self.path = directory / "socket"
        self.agent = connect(str(self.path))
        self.agent.send(AgentHello())
        self.poll()
        self.ranks = [FakeRank(self.path, rank) for rank in range(NPROC)]
        self.poll()
        assert sorted(self.group.pids) == [0, 1]

    def poll(self) -> list[RunEvent]:
        """Return what was sent; the notes among it go to `notes`."""
        events = []
        for _ in range(STEPS):
            events += self.group.poll(0)
        self.notes += notes_of(events)
        return [event for event in events if not isinstance(event, Note)]

    def stranger(self) -> socket.socket:
        raw = socket.socket(socket.AF_UNIX)
        raw.settimeout(10)
        raw.connect(str(self.path))
        return raw

    def is_unharmed(self) -> bool:
        """Whether both ranks' text, and what they say, still arrive."""
        for number, rank in enumerate(self.ranks):
            os.write(rank.pipe, b"text\n")
            rank.channel.send(Idle(rank=number, time=1.0))
        events = self.poll()
        texts = [event for event in events if isinstance(event, Stream)]
        idle = [event for event in events if isinstance(event, Idle)]
        return len(texts) == len(idle) == NPROC and not self.group.ended

    def close_ends(self) -> None:
        """End the agent and the ranks."""
        for rank in self.ranks:
            rank.close()
        self.ranks = []
        self.agent.close()
        self.engine.agent.dead = True

    def close(self) -> None:
        self.close_ends()
        self.group.close()


def notes_of(events: Iterable[RunEvent]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note)]
