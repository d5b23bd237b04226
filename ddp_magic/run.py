"""Run: one cell on one worker group, from its start to what became of it."""

from __future__ import annotations

import enum
import os
import signal
import time
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ddp_magic import diagnose, storage
from ddp_magic.cell import Cell
from ddp_magic.diagnose import Failure
from ddp_magic.engines import Engine
from ddp_magic.environment import is_late, rank_environment
from ddp_magic.errors import (
    DDPMagicError,
    LaunchError,
    RunInterrupted,
    TimeLimitError,
    WorkerError,
    WorkerLostError,
)
from ddp_magic.events import Event, Exit, Imported, RunCell
from ddp_magic.group import WorkerGroup
from ddp_magic.prelude import OWN_NAMES
from ddp_magic.rank import Rank
from ddp_magic.stop import FINISH_S, Presses, Stop

POLL_S = 0.05
KEEP_RUNS = 200


class State(enum.Enum):
    """Of a run, in torchx's words."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a run is asked for; see `%%ddp --help` for each.

    Attributes:
        visible: Value for the ranks' CUDA_VISIBLE_DEVICES; None to leave it alone.
        devices: One line that says which devices the ranks run on.
        show: Ranks whose output is shown; None for all.
    """

    nproc: int
    device: str = "cpu"
    visible: str | None = None
    devices: str = ""
    backend: str | None = None
    timeout_s: float | None = None
    time_limit_s: float | None = None
    init_process_group: bool = True
    show: frozenset[int] | None = None
    seed: int | None = None
    argv: tuple[str, ...] = ()


class Screen(Protocol):
    """Where a run is shown while it goes on; see `ddp_magic.display`."""

    def start(self, run: Run) -> None:
        """The run is about to start."""

    def take(self, event: Event) -> None:
        """Show an event."""

    def say(self, text: str) -> None:
        """Show a line of ddp_magic's own."""

    def tick(self, run: Run) -> None:
        """Show what has changed; called at least every `POLL_S`."""

    def finish(self, run: Run) -> None:
        """The run is over."""


class Run:
    """One cell on one worker group.

    Attributes:
        id: Name of the run and of its directory.
        directory: Where the cell and every rank's whole output are.
        state: PENDING, RUNNING, SUCCEEDED, FAILED or CANCELLED.
        ranks: What is known of each rank.
        error: What ended the run, if it did not succeed.
        note: What it waits for, in a few words.
        imported: Installed libraries that the cell has imported.
    """

    def __init__(
        self,
        cell: Cell,
        options: Options,
        *,
        execution_count: int | None = None,
        prelude: Collection[str] = (),
        notebook: Collection[str] = (),
        notebook_shell: dict[str, str] | None = None,
    ) -> None:
        """Make the run's directory and write the cell into it; `execute` runs it.

        Args:
            cell: What to run.
            options: How.
            execution_count: The number in the notebook's `In[n]`.
            prelude: Names of the prelude that the cell reads.
            notebook: Names that the notebook defines, for hints in errors.
            notebook_shell: What the notebook's shell is set to; see `events.RunCell`.
        """
        self.directory: Path = storage.new_run_directory()
        self.id = self.directory.name
        self.cell_path = self.directory / "cell.py"
        self.cell_path.write_text(cell.source, encoding="utf-8")
        self._source = cell.source
        self._environment = cell.environment
        self._notebook = frozenset(notebook)
        self.label = f"Cell In[{execution_count}]" if execution_count else "Cell"
        self.options = options
        self.state = State.PENDING
        self.ranks = [Rank(rank=r) for r in range(options.nproc)]
        self.error: DDPMagicError | RunInterrupted | None = None
        self.started = time.time()
        self.ended: float | None = None
        self.note = ""
        self.imported: tuple[str, ...] = ()
        self.group = WorkerGroup(
            self.directory,
            nproc=options.nproc,
            device=options.device,
            backend=options.backend,
            timeout_s=options.timeout_s,
            init_process_group=options.init_process_group,
        )
        self._command = RunCell(
            path=str(self.cell_path),
            execution_count=execution_count,
            prelude=tuple(sorted(prelude)),
            argv=options.argv,
            seed=options.seed,
            shell=notebook_shell or {},
        )

    @property
    def elapsed_s(self) -> float:
        """Seconds from the start to the end, or to now."""
        return (self.ended or time.time()) - self.started

    def execute(self, screen: Screen, engine: Engine, sys_path: list[str]) -> None:
        """Run the cell to its end. What went wrong is then in `error`; nothing is raised.

        Args:
            screen: Where it is shown.
            engine: What places the agent.
            sys_path: The ranks' module search path.
        """
        # What the cell sets for libraries that are imported before it runs.
        early = {n: v for n, v in self._environment.items() if not is_late(n)}
        env = rank_environment(os.environ | early, self.options.visible, self.options.nproc)
        self.started = time.time()
        screen.start(self)
        with Presses() as presses:
            try:
                self.group.start(engine, env, sys_path, self._command.prelude)
                self.group.send(self._command)
                self.group.send(Exit())
                self.state = State.RUNNING
                self._follow(screen, presses)
            finally:
                self.group.close()
                self.ended = time.time()
                if self.state in (State.PENDING, State.RUNNING):  # an error of the kernel's own
                    self.state = State.FAILED
        screen.finish(self)
        storage.tidy(self.directory)
        storage.prune_now_and_then()

    def _follow(self, screen: Screen, presses: Presses) -> None:
        stop: Stop | None = None
        while not self.group.ended:
            for event in self.group.poll(POLL_S):
                if (rank := getattr(event, "rank", None)) is not None:
                    self.ranks[rank].take(event)
                if isinstance(event, Imported):
                    self.imported = event.modules
                screen.take(event)
            while self.group.notes:
                screen.say(self.group.notes.pop(0))
            self.note = "stopping" if stop is not None else self.group.waits_for()
            screen.tick(self)
            limit_s = self.options.time_limit_s
            if stop is None and presses.count:
                stop = self._stop(screen, "stopped", FINISH_S)
            elif stop is None and limit_s is not None and self.elapsed_s > limit_s:
                stop = self._stop(screen, "time limit", 0.0)
            if stop is not None:
                stop.step(presses.count)
        self.state, self.error = self._judge(stop)

    def _stop(self, screen: Screen, reason: str, finish_s: float) -> Stop:
        return Stop(
            self.group,
            self.ranks,
            say=screen.say,
            read_stack=self._read_stack,
            reason=reason,
            finish_s=finish_s,
        )

    def _judge(self, stop: Stop | None) -> tuple[State, DDPMagicError | RunInterrupted | None]:
        failures = [f for f in (rank.failure for rank in self.ranks) if f is not None]
        if stop is not None and stop.reason == "stopped":
            return State.CANCELLED, RunInterrupted(self._how_they_stopped())
        if stop is not None:
            message = f"the run outlasted its time limit of {self.options.time_limit_s:g} s; "
            return State.FAILED, TimeLimitError(message + self._how_they_stopped())
        agent_error = self.group.agent_error
        if failures and any(rank.pid is not None for rank in self.ranks):
            return State.FAILED, self._failed(failures)
        missing = [rank.rank for rank in self.ranks if rank.code is None]
        if agent_error or missing:
            return State.FAILED, self._not_launched(agent_error)
        return State.SUCCEEDED, None

    def _not_launched(self, agent_error: str) -> DDPMagicError:
        words = (agent_error or self.group.last_words()).splitlines()
        started = any(rank.pid is not None for rank in self.ranks)
        what = (
            "the agent died while the ranks were running (killed, or out of memory); "
            "the ranks died with it"
            if started
            else "the ranks could not be started"
        )
        log = self.directory / "agent.log"
        return LaunchError(f"{what}; the agent's own words are in {log}", details=words[-20:])

    def _failed(self, failures: list[Failure]) -> DDPMagicError:
        first = diagnose.first_failure(failures)
        others = [
            f"rank {rank.rank}: {self._fate(rank, first)}"
            for rank in self.ranks
            if rank.rank != first.rank
        ]
        message = diagnose.describe(first)
        if first.error is None:
            code = first.finished.code if first.finished else first.code or 0
            line = self.ranks[first.rank].line
            if line is not None:
                message += f"; it was last seen at line {line}"
            return WorkerLostError(message, rank=first.rank, code=code, details=others)
        head = f"rank {first.rank} of {len(self.ranks)} raised:"
        hints = diagnose.name_hints(
            first.error, self._source, self._notebook, OWN_NAMES & set(self._command.prelude)
        )
        lines = [head, *first.error.traceback, *others, *hints]
        return WorkerError(
            message,
            rank=first.rank,
            ename=first.error.ename,
            evalue=first.error.evalue,
            traceback=first.error.traceback,
            details=lines,
        )

    def _fate(self, rank: Rank, first: Failure) -> str:
        """Say in a few words what became of a rank that was not the first to fail."""
        failure = rank.failure
        if failure is not None and failure.error is None:
            self._read_stack(rank)
        where = rank.where
        if failure is None:
            return "finished" if rank.code == 0 else f"had not started{where}"
        if failure.lost_its_peer:
            return f"lost its connection to rank {first.rank}{where} ({failure.error.ename})"  # type: ignore[union-attr]
        if failure.error is not None:
            same = first.error is not None and failure.error.evalue == first.error.evalue
            text = "raised the same" if same else f"raised {failure.error.ename}"
            return text + where + ("" if same else f": {failure.error.evalue}")
        if failure.finished is None and failure.code in (-signal.SIGTERM, -signal.SIGKILL):
            return f"was stopped{where}"
        return diagnose.describe(failure).partition(" ")[2].partition(" ")[2]

    def _read_stack(self, rank: Rank) -> None:
        rank.read_stack(self.directory, self.cell_path, self.label)

    def _how_they_stopped(self) -> str:
        words = []
        for rank in self.ranks:
            where = rank.where
            if rank.killed and not rank.answered:
                words.append(f"rank {rank.rank} did not answer{where} and was killed")
            elif rank.killed:
                words.append(f"rank {rank.rank} was killed{where} while it cleaned up")
            elif rank.error is not None:
                words.append(f"rank {rank.rank} stopped{where}")
            elif rank.finished is not None:
                words.append(f"rank {rank.rank} finished")
            else:
                words.append(f"rank {rank.rank} was ended before the cell")
        return "; ".join(words)


class Runs:
    """The runs of this kernel, newest first."""

    def __init__(self) -> None:
        """Begin with none."""
        self._runs: deque[Run] = deque(maxlen=KEEP_RUNS)

    def add(self, run: Run) -> None:
        """Take up a new run."""
        self._runs.appendleft(run)

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._runs))

    def find(self, run_id: str) -> Run | None:
        """Return the run of that id (or the end of it), the newest one first."""
        return next((run for run in self._runs if run.id.endswith(run_id)), None)
