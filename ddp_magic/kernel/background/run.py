"""A background run, followed by a notebook to its end: its output, then its results."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Mapping, Sequence
from contextvars import copy_context

from ddp_magic.display.journal import kept_errors
from ddp_magic.display.journal.follow import Follower
from ddp_magic.display.journal.past_run import PastRun
from ddp_magic.display.outputs import Outputs
from ddp_magic.display.record import error_lines, value_lines
from ddp_magic.errors import (
    DDPMagicError,
    PullError,
    RunInterrupted,
)
from ddp_magic.kernel.background.host_process import CLOSE_S
from ddp_magic.kernel.background.record import BackgroundRecord
from ddp_magic.kernel.execution import call
from ddp_magic.kernel.values import pull
from ddp_magic.kernel.values.pull import Pulls
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.states import State

POLL_S = 0.05  # between two looks at what is new in the journal
LOOK_S = 0.3  # at how it ended
STOP_S = 40.0  # for a run to end: its ranks have 30 s to finish


class BackgroundRun(BackgroundRecord):
    """A run in the background, which a notebook can follow, wait for and stop.

    Attributes:
        collected: Whether its results and its error have been taken.
    """

    collected = False
    _thread: threading.Thread | None = None
    _awaited = False  # by `wait`
    _is_in_terminal = False
    _is_deaf = False  # its host did not answer when it was to stop

    @classmethod
    def of(cls, run: PastRun) -> BackgroundRun:
        """Return a run that another kernel has started, from its journal."""
        assert run.background is not None  # noqa: S101 -- the caller has looked
        directory = RunDirectory(run.path.parent)
        return cls(directory, run.background, label=run.label, devices=run.devices)

    def __repr__(self) -> str:
        lines = [f"Run {self.id}: {self.state.value} · {self.outcome}"]
        lines += [*error_lines(self.error), *value_lines(self.results, self.captured)]
        return "\n".join([*lines, f"  logs: {self.directory}"])

    # --- followed to its end ------------------------------------------------------------------

    def show_from_now_on(self, out: Outputs, says: Sequence[str] = ()) -> None:
        """Show it, in a thread of its own, in the cell that runs now.

        Args:
            out: The outputs of the cell.
            says: Lines to show at once.
        """
        if says:
            out.write("".join(f"{line}\n" for line in says))
        self._is_in_terminal = not out.shows_displays
        # In the context of this cell: ipykernel finds the cell of a thread's text in it.
        target = copy_context().run
        name = f"ddp_magic_{self.id}"
        self._thread = threading.Thread(
            target=target, args=(self._show, out), name=name, daemon=True
        )
        self._thread.start()

    def _show(self, out: Outputs) -> None:
        self.follow(out)
        self._host.reap()
        if self._awaited:
            return  # it is raised there
        if (error := self.failure({})) is not None:
            out.write("".join(f"{line}\n" for line in error._render_traceback_()))

    def follow(self, out: Outputs) -> None:
        """Show it from its beginning to its end; in a terminal, what it has not shown there yet."""
        if self._is_in_terminal and self._thread is not threading.current_thread():
            self._wait_for_thread()
            return
        follower = Follower(self.directory, out)
        try:
            while not follower.step():
                if not self._host.lives():
                    follower.step()  # what it wrote before it ended
                    break
                time.sleep(POLL_S)
        except KeyboardInterrupt:  # it goes on, but its table here would never change again
            follower.finish(self.outcome)
            raise
        past = self.past
        with_clock = past is not None and out.shows_displays
        follower.finish(past.last_line if past and with_clock else self.outcome)

    def wait(self) -> BackgroundRun:
        """Wait for its end, and take its results.

        Returns:
            The run itself.

        Raises:
            DDPMagicError: It failed; see `ddp_magic.errors`.
            RunInterrupted: It was stopped.
        """
        self._wait_for_thread()
        while not self.is_over():
            time.sleep(LOOK_S)
        self._collect({})
        if self.error is not None and self.background.raises:
            raise self.error
        return self

    def _wait_for_thread(self) -> None:
        self._awaited = True
        try:
            while self._thread is not None and self._thread.is_alive():
                time.sleep(POLL_S)  # Stop does not end a join
        except KeyboardInterrupt:
            self._awaited = False
            raise

    def with_results(self, names: Mapping[str, object]) -> BackgroundRun:
        """Return a copy of it with its results and its error; it has ended.

        This one, which its notebook remembers, holds no results: they may be large.

        Args:
            names: The notebook's, for exception classes of its own.
        """
        self.collected = True
        taken = copy.copy(self)
        taken._collect(names)
        return taken

    def _collect(self, names: Mapping[str, object]) -> None:
        self.collected = True
        self.error = self.failure(names)
        past = self.past
        if past is None or past.state is None or not self.background.pull:
            return
        asked = (call.PULL,) if self.background.call else pull.parse(self.background.pull)
        pulls = Pulls(asked, past.ranks, self.directory)
        pull.fetch(pulls, past.ranks, self.directory)
        # What the host could not keep is its run's error already; the rest is there.
        succeeded = self.error is None or isinstance(self.error, PullError)
        values, missing = pulls.finish(succeeded=succeeded)
        if self.error is None:
            self.error = missing
        if values is not None:
            self.results = call.results(values) if self.background.call else values

    def failure(self, names: Mapping[str, object]) -> DDPMagicError | RunInterrupted | None:
        """Return why it did not succeed; None if it did. It has ended.

        Args:
            names: The notebook's, for exception classes of its own.
        """
        past = self.past
        if past is None or past.state is None:
            return self._host.loss(started=past is not None)
        if past.state is State.SUCCEEDED:
            return None
        if raised := past.raised:
            return kept_errors.from_json(raised, names)
        return kept_errors.from_lines(past.error or (past.outcome,))  # of a full disk's journal

    # --- ended --------------------------------------------------------------------------------

    def stop(self) -> str:
        """Stop it, and wait for its end; return a message for the user.

        If the wait is interrupted, its ranks are killed.
        """
        if self.is_over():
            return f"run {self.id} has ended already: {self.outcome}"
        try:
            self._ask_to_stop()
            self._wait_for_end(STOP_S)
        except KeyboardInterrupt:
            self._ask_to_stop()
            raise
        except TimeoutError:
            return self._stop_deaf()
        if not self.is_over():
            return f"run {self.id} was asked to stop and has not ended: stop it again to kill it"
        return f"run {self.id} ended: {self.outcome}"

    def _ask_to_stop(self) -> None:
        deadline = time.monotonic() + STOP_S
        while not self.is_over() and time.monotonic() < deadline:
            try:
                self._host.ask(["stop", self.id])
            except ConnectionError:  # it is starting
                time.sleep(POLL_S)
            except ValueError:  # it has ended meanwhile
                return
            else:
                return

    def _stop_deaf(self) -> str:
        """End a run whose host does not answer, because someone has stopped it; the second time."""
        if not self._is_deaf:
            self._is_deaf = True
            return f"the host process of run {self.id} does not answer: stop it again to kill it"
        self._host.kill()
        self._wait_for_end(STOP_S)
        return f"run {self.id} ended: its host process did not answer, and was killed"

    def _wait_for_end(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self.is_over() and time.monotonic() < deadline:
            time.sleep(LOOK_S)

    def end_with_kernel(self) -> None:
        """Ask its host to end at once, if it is to end with this process."""
        if not self.background.detached:
            self._host.end()

    def close(self) -> None:
        """Wait for what `end_with_kernel` asked for."""
        if not self.is_ours or self.background.detached:
            return
        self._host.close()
        if self._thread is not None:
            self._thread.join(CLOSE_S)
