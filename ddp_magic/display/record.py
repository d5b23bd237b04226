"""What is known of one run, updated by events: what screens, tables and verdicts need. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ddp_magic.display.diagnosis.restarts import Restart
from ddp_magic.display.profiles.profile import Profile
from ddp_magic.display.rank import Rank
from ddp_magic.errors import DDPMagicError, RunInterrupted
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.events import WorkerExited
from ddp_magic.wire.kernel_events import Doing, GroupEnded, NodesGranted, Restarted, RunEvent
from ddp_magic.wire.states import State
from ddp_magic.wire.worker_events import CellNames, Imported


@dataclass(frozen=True, kw_only=True)
class Background:
    """What is known of a run that a host serves, beside what is known of every run.

    Attributes:
        detached: Whether it outlives its kernel (`--detach`); otherwise it ends with it (`--bg`).
        kernel: Process id of the kernel that started it.
        pull: The value of `--pull`; empty for none.
        call: Whether it is a call of `launch`.
        out: Name for the run in the notebook; empty for none.
        raises: Whether its failure fails the cell that waits for it.
    """

    detached: bool = False
    kernel: int = 0
    pull: str = ""
    call: bool = False
    out: str = ""
    raises: bool = True


@dataclass(kw_only=True)
class RunRecord:
    """What is known of one run.

    Attributes:
        id: Name of the run and of its directory.
        label: What the notebook calls the cell: `Cell In[3]`.
        cell_labels: The same for each file that its code is found in, a session's other cells too.
        log_directory: Where the logs of the ranks and of the agent are; a session's cells share it.
        journal: Where what is shown is kept; None for nowhere.
        devices: One line that says which devices the ranks run on.
        session: Name of the session; empty for a run with ranks of its own.
        background: How a host serves it; None for a run of the notebook's own process.
        show: Ranks whose output is shown; None for all.
        quiet: Whether only the output of the ranks is shown while all goes well.
        ranks: What is known of each rank, in the order of the ranks.
        fewest: If the cluster chooses the number of ranks, the fewest until it has; 0 if they are
            as many as `ranks`.
        state: PENDING, RUNNING, SUCCEEDED, FAILED or CANCELLED.
        error: Why the run did not succeed; None if it succeeded or is running.
        started: When it started, in seconds since the epoch.
        ended: When it ended, in seconds since the epoch; None while it is running.
        max_restarts: How often its ranks are restarted after a failure.
        restarts: The restarts so far.
        attempt_started: When the ranks were last started, in seconds since the epoch.
        where: On which nodes its ranks run, in words; empty for the kernel's own machine.
        doing: What the whole run is waiting for: `importing transformers`; empty for nothing.
        imported: Installed libraries that the cell imported.
        bound: All names that the cell bound on rank 0.
        stayed: Names of values that were not sent to the notebook and ended with the ranks.
        waits: A sentence for each wait of ranks for others that lasts at the moment.
        checked: Number of collectives that all ranks have called alike; None without `--check`.
        profile: Where the time of the ranks went; None if it was not measured.
        closing: Lines to show at the end.
        figure: A figure to show at the end, as PNG; None for none.
        group_end: How the group ended; None while it is running.
        progress: The ranks' progress bars, by rank; empty without a screen.
    """

    id: str
    label: str
    log_directory: RunDirectory
    journal: Path | None = None
    devices: str = ""
    session: str = ""
    background: Background | None = None
    show: frozenset[int] | None = None
    quiet: bool = False
    cell_labels: Mapping[str, str] = field(default_factory=dict)
    ranks: list[Rank]
    fewest: int = 0
    state: State = State.PENDING
    error: DDPMagicError | RunInterrupted | None = None
    started: float = field(default_factory=time.time)
    ended: float | None = None
    max_restarts: int = 0
    restarts: tuple[Restart, ...] = ()
    attempt_started: float = field(default_factory=time.time)
    where: str = ""
    doing: str = ""
    imported: tuple[str, ...] = ()
    bound: tuple[str, ...] = ()
    stayed: tuple[str, ...] = ()
    waits: tuple[str, ...] = ()
    checked: int | None = None
    profile: Profile | None = None
    closing: tuple[str, ...] = ()
    figure: bytes | None = None
    group_end: GroupEnded | None = None
    progress: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def take(self, event: RunEvent) -> None:
        """Update the state from an event."""
        if (rank := getattr(event, "rank", None)) is not None:
            self.ranks[rank].take(event)
        match event:
            case Doing(text=text):
                self.doing = text
            case NodesGranted(nproc=nproc):
                self._resize(nproc)
            case Imported(modules=modules):
                self.imported = modules
            case CellNames(names=names, values=values):
                self.bound, self.stayed = names, values
            case WorkerExited() if self._will_restart and not self.doing:  # else: "stopping"
                self.doing = "restarting"
            case Restarted():
                self.ranks[:] = [rank.restarted() for rank in self.ranks]
                self.attempt_started = time.time()
                self.doing, self.waits, self.bound, self.stayed = "starting", (), (), ()
            case GroupEnded():
                self.group_end = event
            case _:
                pass

    def _resize(self, nproc: int) -> None:
        """Have so many ranks from now on: those that were there, and new ones."""
        self.fewest = 0
        more = range(len(self.ranks), nproc)
        more_ranks = [Rank(rank=rank, log=self.log_directory.rank_log(rank)) for rank in more]
        self.ranks[:] = [*self.ranks[:nproc], *more_ranks]

    @property
    def _will_restart(self) -> bool:
        """Whether every rank has ended, at least one with a failure, and restarts are left."""
        codes = [rank.code for rank in self.ranks]
        return len(self.restarts) < self.max_restarts and None not in codes and any(codes)

    @property
    def logs(self) -> Path:
        """Directory of the logs of the ranks and of the agent."""
        return self.log_directory.path

    @property
    def swept(self) -> int:
        """Number of processes that the ranks left behind and the agent ended."""
        return self.group_end.swept if self.group_end else 0

    @property
    def elapsed_s(self) -> float:
        """Seconds from the start to the end, or until now."""
        return (self.ended or time.time()) - self.started


def error_lines(error: BaseException | None) -> list[str]:
    """Return what the `repr` of a run says of its error."""
    return [] if error is None else [f"  error: {type(error).__name__}: {error}"]


def value_lines(results: object, captured: Iterable[object]) -> list[str]:
    """Return what the `repr` of a run says of the values that came back and that were sent."""
    lines = []
    if results:
        names = results if isinstance(results, dict) else ["one per rank"]
        lines.append(f"  results: {', '.join(names)}")
    if sent := dict.fromkeys(map(str, captured)):
        lines.append(f"  captured: {', '.join(sent)}")
    return lines


class Screen(Protocol):
    """Where a run is shown while it goes on; see `screen`."""

    @property
    def progress(self) -> Mapping[int, tuple[str, ...]]:
        """The ranks' progress bars, by rank; kept up to date."""

    @property
    def wait_s(self) -> float:
        """Time until the next `tick` at the latest, in seconds."""

    def start(self, record: RunRecord) -> None:
        """Show that the run is about to start."""

    def take(self, event: RunEvent) -> None:
        """Show an event."""

    def tick(self, record: RunRecord) -> None:
        """Show what has changed; called many times a second."""

    def finish(self, record: RunRecord) -> None:
        """Show how the run ended."""
