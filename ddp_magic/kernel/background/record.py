"""The state of a background run, for any notebook: from its journal and from its host."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

from ddp_magic.display.journal import past_run
from ddp_magic.display.journal.past_run import PastRun
from ddp_magic.display.record import Background
from ddp_magic.errors import DDPMagicError, RunInterrupted
from ddp_magic.kernel.background.host_process import HostProcess
from ddp_magic.kernel.values.capture import Value
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.memory import size_words
from ddp_magic.wire.states import State


class BackgroundRecord:
    """A background run (`--bg`, `--detach`) that a host serves.

    Args:
        directory: Of the run.
        background: How it is served.
        process: Its host, if this process has started it.
        label: What the notebook calls the cell.
        devices: A line that says which devices the ranks run on.
        captured: What the cell took along from the notebook.

    Attributes:
        id: Name of the run.
        results: Once it was waited for: what was brought back, by the notebook's name for it; of
            `launch`, the function's values, one a rank.
        error: Once it was waited for: why it did not succeed; None if it did.
    """

    def __init__(
        self,
        directory: RunDirectory,
        background: Background,
        *,
        process: subprocess.Popen[bytes] | None = None,
        label: str = "",
        devices: str = "",
        captured: tuple[Value, ...] = (),
    ) -> None:
        self.directory = directory
        self.background = background
        self.id = directory.id
        self.label = label
        self.devices = devices
        self.captured = captured
        self.results: Any = {}
        self.error: DDPMagicError | RunInterrupted | None = None
        self._host = HostProcess(directory, process)

    @property
    def past(self) -> PastRun | None:
        """What its journal says; None before it begins."""
        return past_run.read(self.directory.journal)

    def is_over(self) -> bool:
        """Return whether it has ended, well or not."""
        lives = self._host.lives()  # first: it writes the end, and then ends
        past = self.past
        return not lives or (past is not None and past.state is not None)

    @property
    def state(self) -> State:
        """PENDING, RUNNING, SUCCEEDED, FAILED or CANCELLED."""
        over, past = self.is_over(), self.past
        if past is not None and past.state is not None:
            return past.state
        if over:
            return State.CANCELLED if self._host.ended_here else State.FAILED
        return State.PENDING if past is None else State.RUNNING

    @property
    def outcome(self) -> str:
        """The closing line, or what there is in its place."""
        past = self.past
        if past is not None:
            return past.outcome
        if self._host.ended_here:
            return "ended with its kernel"
        return "its host process could not start" if self.is_over() else "starting"

    @property
    def logs(self) -> Path:
        """Directory of the logs of the ranks and of the agent."""
        return self.directory.path

    @property
    def elapsed_s(self) -> float:
        """Seconds from the start to the end, or until now."""
        past = self.past
        if past is None:
            return 0.0
        return (past.ended or time.time()) - past.started

    @property
    def title(self) -> str:
        """The run in one line."""
        past = self.past
        return past.title if past else f"run {self.id} · {self.label} · {self.outcome}"

    @property
    def is_ours(self) -> bool:
        """Whether this process has started it."""
        return self._host.is_ours

    def announcement(self) -> list[str]:
        """Return what a person must know of it: what it holds, how long, how to end it."""
        size = sum(value.nbytes for value in self.captured)
        values = f", {size_words(size)} of the notebook's values" if size else ""
        if not self.background.detached:
            return [
                f"run {self.id} goes on in the background, and ends with this kernel: "
                f"{self.devices}{values}",
                f"follow it: %ddp_wait {self.id} · end it: %ddp_stop {self.id}",
            ]
        return [
            f"run {self.id} is detached: it goes on without this notebook and its server",
            f"until its end it holds: {self.devices}{values}; %ddp_status shows its memory",
            f"follow it: %ddp_attach {self.id} in any notebook, `ddp-magic attach {self.id}` in a "
            "terminal",
            f"end it: %ddp_stop {self.id}, or `ddp-magic stop {self.id}`",
        ]

    def status(self) -> str:
        """Return what `%ddp_status` shows of it."""
        return self._ask("status")

    def stacks(self) -> str:
        """Return the stacks of its ranks; or a line that says why there are none."""
        return self._ask("stacks")

    def _ask(self, verb: str) -> str:
        try:
            return self._host.ask([verb, self.id])
        except TimeoutError as error:
            return f"{self.title}\nits host process does not answer: {error}"
        except (ConnectionError, ValueError):  # it starts, or has ended
            return self.title
