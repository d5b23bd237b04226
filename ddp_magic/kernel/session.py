"""Sessions: ranks that are kept, so that later cells can use the variables of earlier ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ddp_magic.display import diagnose
from ddp_magic.display.status import SessionStatus
from ddp_magic.kernel.group import WorkerGroup
from ddp_magic.kernel.interrupts import deferred
from ddp_magic.kernel.needed_values import Held
from ddp_magic.kernel.run_options import Options, group_of
from ddp_magic.system.storage import process_storage

END_S = 30.0  # for the exit handlers of the ranks


@dataclass
class Session:
    """A worker group that is kept.

    Attributes:
        options: Options of its first cell: ranks, devices, process group.
        group: The worker group.
        held: The names that its ranks already have.
        cell_files: File names of its cells in the ranks.
    """

    options: Options
    group: WorkerGroup
    held: Held = field(default_factory=Held)
    cell_files: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """The name given by the user."""
        return self.options.session

    @classmethod
    def of(cls, options: Options) -> Session:
        """Return a new session; its first run starts the ranks."""
        return cls(options, group_of(options, process_storage.new_run_directory()))

    def status(self) -> SessionStatus:
        """Return its entry in `%ddp_status`."""
        return SessionStatus(self.name, self.options.devices, self.group.pids)

    def alive(self) -> bool:
        """Return whether its ranks are running."""
        if self.group.started:
            with deferred():
                self.group.look()
        return not self.group.ended

    def why_it_ended(self) -> str:
        """Return which rank ended first, and how."""
        first = self.group.first_exit
        if first is None:
            return "its agent died"
        return f"rank {first.rank} {diagnose.describe_exit(first.code)}"

    def end(self) -> str:
        """End the ranks, by force if they do not end in time; return a message for the user."""
        ranks = f"{self.options.nproc} rank{'s' if self.options.nproc > 1 else ''}"
        in_time = True
        try:
            if self.group.started:
                in_time = self.group.finish(END_S)
        finally:  # Stop ends the wait
            with deferred():
                self.group.close()
        how = "ended" if in_time else f"did not end within {END_S:g} s and was killed"
        return f"session {self.name} ({ranks}) {how}"


class Sessions:
    """The sessions of this kernel.

    Attributes:
        lost: Why a session ended by itself, by its name, until that is reported.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self.lost: dict[str, str] = {}

    def __iter__(self) -> Iterator[Session]:
        """Iterate over the sessions that are alive."""
        for name, session in list(self._sessions.items()):
            if session.alive():
                yield session
            else:
                self.lost[name] = session.why_it_ended()
                del self._sessions[name]

    def get(self, name: str) -> Session | None:
        """Return the session of this name; None if there is none alive."""
        return next((session for session in self if session.name == name), None)

    def add(self, session: Session) -> None:
        """Add a session."""
        self._sessions[session.name] = session

    def end(self, name: str) -> str:
        """End a session; return a message for the user."""
        return self._sessions.pop(name).end()

    def end_all(self) -> list[str]:
        """End all sessions; return messages for the user."""
        return [self.end(name) for name in list(self._sessions)]
