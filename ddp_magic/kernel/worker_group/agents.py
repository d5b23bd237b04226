"""The agents of a worker group: one, or one on each node; with torchrun, a keeper for each rank."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ddp_magic.engines import Engine, Lost, PlacedAgent
from ddp_magic.system import processes
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.channel import Channel
from ddp_magic.wire.commands import Command, Kill
from ddp_magic.wire.events import AgentDone
from ddp_magic.wire.kernel_events import Doing, GroupEnded, Note, RunEvent
from ddp_magic.wire.specs import AgentSpec

KILL_PATIENCE_S = 2.0  # for the agent to carry out a Kill, before the kernel does it itself


class Agents:
    """What an engine has placed, from its start to its end, and what it could not clean up.

    Args:
        connections: Those of the agents, kept up to date.
        directory: The group's.

    Attributes:
        killed: Whether the whole group was told to end.
    """

    def __init__(self, connections: Sequence[Channel], directory: RunDirectory) -> None:
        self.killed = False
        self._connections = connections
        self._directory = directory
        self._placed: PlacedAgent | None = None
        self._engine: Engine
        self._spec: AgentSpec
        self._env: dict[str, str]
        self._started = 0.0
        self._waits_for = ""
        self._reports: list[AgentDone] = []  # of this attempt
        self._swept = 0  # in earlier attempts
        self._deadline: float | None = None

    def start(self, engine: Engine, spec: AgentSpec, env: dict[str, str]) -> None:
        """Place the agent, or one on each node. Returns before they are up."""
        self._started = time.time() - 1.0  # a process's own time is rounded to ticks
        self._engine, self._spec, self._env = engine, spec, env
        self._placed = engine.start(spec, env)

    def place_again(self, attempt: int, without: Sequence[str]) -> None:
        """Place others, after the end of those that were there.

        Args:
            attempt: How often the ranks have been restarted then.
            without: Nodes that were lost.
        """
        self.close()
        self.begin_attempt()
        self.killed, self._deadline = False, None
        without = (*self._spec.without, *without)
        self._spec = replace(self._spec, attempt=attempt, without=without)
        self._placed = self._engine.start(self._spec, self._env)

    @property
    def started(self) -> bool:
        """Whether `start` has been called."""
        return self._placed is not None

    @property
    def where(self) -> str:
        """On which nodes they run, in words; empty for this machine."""
        return "" if self._placed is None else self._placed.where

    @property
    def placed(self) -> bool:
        """Whether one runs."""
        return self.fileno() >= 0 or (self.started and bool(self._connections))

    def granted(self) -> int:
        """Return on how many nodes they are; 0 while that is not known."""
        return 0 if self._placed is None else self._placed.granted()

    def lost(self) -> Lost | None:
        """Return the nodes whose loss has ended them; None if they ended otherwise."""
        return None if self._placed is None else self._placed.lost()

    def fileno(self) -> int:
        """Return a descriptor that is readable once they have ended; -1 if there is none."""
        return -1 if self._placed is None else self._placed.fileno()

    def news(self, *, stopped: bool = False) -> list[RunEvent]:
        """Return what a user should know of them, each once.

        Args:
            stopped: Whether the kernel ends them: then it is no news that they end.
        """
        if self._placed is None:
            return []
        notes = self._placed.take_notes()
        events: list[RunEvent] = [] if stopped else [Note(text=text) for text in notes]
        if (waits_for := self._placed.waits_for()) != self._waits_for:
            self._waits_for = waits_for
            events.append(Doing(text=waits_for))
        return events

    # --- commands -----------------------------------------------------------------------------

    def send(self, command: Command) -> None:
        """Send a command to each of them."""
        for channel in self._connections:
            channel.send(command)

    def kill_ranks(self) -> None:
        """Let them kill all ranks that are left."""
        self.send(Kill())

    def kill(self, ranks: tuple[int, ...]) -> None:
        """Let them kill some ranks, or the whole group where none is named, and end with it."""
        self.send(Kill(ranks=ranks))
        if not self._connections:
            self.end()  # none has connected: there are no ranks to care for
        if not ranks:
            self.killed = True
            self.expect_end(KILL_PATIENCE_S)

    def expect_end(self, patience_s: float) -> None:
        """Kill them if they have not ended by themselves in so many seconds."""
        deadline = time.monotonic() + patience_s
        self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)

    def end(self) -> None:
        """Kill them; their ranks die with them."""
        if self._placed is not None:
            self._placed.kill()

    # --- the end ------------------------------------------------------------------------------

    def ended(self) -> bool:
        """Return whether all have ended. Those that were expected to, and have not, are killed."""
        if self._placed is None or self._placed.ended():
            return True
        if self._deadline is not None and time.monotonic() > self._deadline:
            self._deadline = None
            self.end()
        return False

    def take_report(self, report: AgentDone) -> None:
        """Take what one says at its end."""
        self._reports.append(report)

    def begin_attempt(self) -> None:
        """Forget the reports of an attempt: the ranks are restarted."""
        self._swept += sum(report.swept for report in self._reports)
        self._reports = []

    @property
    def died(self) -> bool:
        """Whether one, or a keeper of torchrun's, has not reported its end."""
        return len(self._reports) < max(1, len(self._connections))

    def end_event(self) -> GroupEnded:
        """Return how they ended."""
        errors = [report.error for report in self._reports if report.error]
        return GroupEnded(
            agent_died=self.died,
            agent_error=errors[0] if errors else "",
            agent_words="" if self._placed is None else self._placed.last_words(),
            swept=self._swept + sum(report.swept for report in self._reports),
            outside=None if self._placed is None else self._placed.outside_end(),
        )

    def sweep(self, pids: Iterable[int]) -> None:
        """End what the ranks had started, after an agent that was killed before it could.

        What has left their sessions is the forkserver's to end; if that was killed too, it is found
        by the variable that torch sets for each rank.

        Args:
            pids: The ranks' process ids.
        """
        for process in (
            *processes.session_members(pids),
            *processes.started_with("TORCHELASTIC_RUN_ID", self._directory.id),
        ):
            # A session's number is free again only when its last member is gone; one that was
            # there before this group is somebody else's.
            if process.create_time() >= self._started:
                processes.kill(process)

    def close(self) -> None:
        """Release what is held for them; they have ended."""
        if self._placed is not None:
            self._placed.close()
