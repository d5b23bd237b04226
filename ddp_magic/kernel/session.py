"""Sessions: ranks that are kept, so that later cells can use the variables of earlier ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ddp_magic.display.diagnosis import first_failure as diagnose
from ddp_magic.display.status import SessionStatus
from ddp_magic.errors import LaunchError
from ddp_magic.kernel.execution.run_code import CodeFiles
from ddp_magic.kernel.execution.run_options import Options, group_of
from ddp_magic.kernel.interrupts import deferred
from ddp_magic.kernel.values.needed_values import Held
from ddp_magic.kernel.worker_group.group import WorkerGroup
from ddp_magic.system.storage import process_storage

END_S = 30.0  # for the exit handlers of the ranks


@dataclass
class Session:
    """A worker group that is kept.

    Attributes:
        options: Options of its first cell: ranks, devices, process group.
        group: The worker group.
        held: The names that its ranks already have.
        code_files: The code of its cells, and of the functions that they have sent.
    """

    options: Options
    group: WorkerGroup
    held: Held = field(default_factory=Held)
    code_files: CodeFiles = field(default_factory=CodeFiles)

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
        where = " · ".join(filter(None, [self.options.devices, self.group.where]))
        return SessionStatus(self.name, where, self.group.pids)

    def alive(self) -> bool:
        """Return whether its ranks are running."""
        if self.group.started:
            with deferred():
                self.group.look()
        return not self.group.ended

    def why_it_ended(self) -> str:
        """Return what ended it: the cluster, or the end of a rank."""
        if self.group.outside is not None:
            return self.group.outside.text
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

    Several threads may use them: Python threads that call `run`, the subshells of a notebook. A
    session serves one of them at a time, which claims it by its name for its whole cell; everyone
    else is refused at once. To wait would be worse: Stop does not reach a thread that waits.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._claims: dict[str, object] = {}
        self._lock = threading.Lock()
        self._lost: dict[str, str] = {}  # why one ended by itself, until that is reported

    @contextmanager
    def claim(self, name: str | None) -> Iterator[None]:
        """Use, start or end the session of this name; no other thread can meanwhile.

        Args:
            name: Its name; None or empty for no session.

        Raises:
            LaunchError: Another thread uses it.
        """
        if not name:
            yield
            return
        claim = object()
        try:
            with self._lock:
                if name in self._claims:
                    raise LaunchError(
                        f"session {name} is in use by another thread or subshell: try again "
                        "when its cell has ended"
                    )
                self._claims[name] = claim
                self._look(name)
            yield
        finally:
            if self._claims.get(name) is claim:
                del self._claims[name]

    def _look(self, name: str) -> None:
        """Drop the session of this name if it has ended since it was last used."""
        session = self._sessions.get(name)
        if session is not None and not session.alive():
            self._lost[name] = session.why_it_ended()
            del self._sessions[name]

    def __iter__(self) -> Iterator[Session]:
        """Iterate over the sessions that are alive."""
        with self._lock:
            for name in list(self._sessions):
                if name not in self._claims:  # else the thread that uses it looks itself
                    self._look(name)
            return iter(list(self._sessions.values()))

    def get(self, name: str) -> Session | None:
        """Return the session of this name; None if there is none. For the thread that uses it."""
        session = self._sessions.get(name)
        return None if session is None or session.group.ended else session

    def take_loss(self, name: str) -> list[str]:
        """Return a note if the session of this name has ended by itself; only once."""
        why = self._lost.pop(name, "")
        if not why:
            return []
        return [
            f"session {name} had ended since its last cell: {why}; these are new ranks, without "
            "its variables"
        ]

    def add(self, session: Session) -> None:
        """Add a session."""
        self._sessions[session.name] = session

    def forget(self, name: str) -> None:
        """Drop a session that ended in a cell; the cell has reported it."""
        self._sessions.pop(name, None)

    def end(self, name: str) -> str:
        """End a session; return a message for the user.

        Raises:
            LaunchError: Another thread uses it.
        """
        with self.claim(name):
            session = self._sessions.pop(name, None)
            return f"session {name} has ended already" if session is None else session.end()

    def end_all(self) -> list[str]:
        """End all sessions that are not in use; return messages for the user."""
        messages = []
        for name in list(self._sessions):
            try:
                messages.append(self.end(name))
            except LaunchError as error:
                messages.append(str(error))
        return messages

    def close(self) -> list[str]:
        """End all sessions; those in use at once. Return messages for the user."""
        for name in list(self._claims):
            if (session := self._sessions.get(name)) is not None:
                session.group.kill()  # the thread that uses it sees its end
        return self.end_all()
