"""The values that one run brings back to the notebook (`--pull`, and what `launch` returns)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ddp_magic.errors import PullError
from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.values.pull import KeptPulls, Pulls
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.kernel_events import PulledValues


@dataclass(frozen=True)
class BroughtBack:
    """What has come back once the run is over.

    Attributes:
        values: By their names in the notebook; None if they are not to be used.
        missing: The error of a run that succeeded otherwise, if not all has come.
        note: A line for the user; empty for none.
    """

    values: dict[str, Any] | None = None
    missing: PullError | None = None
    note: str = ""


class RunValues:
    """Takes what the ranks of a run send back.

    Args:
        options: Of the run.
        directory: Of the run; values that cannot be read are saved there.
        kept: Whether this process is a host, which keeps the values for a notebook.
    """

    def __init__(self, options: Options, directory: RunDirectory, *, kept: bool) -> None:
        self._options = options
        self._directory = directory
        self._kind = KeptPulls if kept else Pulls
        self._pulls = self._kind(options.pull, options.nproc, directory)

    @property
    def asked(self) -> bool:
        """Whether the run is to bring back anything."""
        return bool(self._options.pull)

    @property
    def paths(self) -> set[str]:
        """The names in the cell that were asked for."""
        return {pull.path for pull in self._options.pull}

    def begin_attempt(self, nproc: int) -> None:
        """Forget what the ranks have sent: restarted, they send it again.

        Args:
            nproc: Number of ranks, which may be another one.
        """
        self._pulls = self._kind(self._options.pull, nproc, self._directory)

    def take(self, event: PulledValues) -> None:
        """Read what a rank has sent."""
        self._pulls.take(event.results, event.fd)

    def finish(self, *, succeeded: bool) -> BroughtBack:
        """Return what has come back; of a run that failed only if all of it is there.

        Args:
            succeeded: Whether the run has, as far as it is known.
        """
        option = "" if self._options.call else self._options.spelled("pull")
        values, missing = self._pulls.finish(succeeded=succeeded, option=option)
        note = ""
        if values is not None and not succeeded:
            names = ", ".join(pull.label or pull.name for pull in self._options.pull)
            note = f"pulled, although the run did not succeed: {names}"
        return BroughtBack(values, missing, note)

    def forget(self) -> None:
        """Let go of the values: the run is kept for a long time."""
        self._pulls = Pulls((), 0, self._directory)
