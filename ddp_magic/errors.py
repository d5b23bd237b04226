"""What can go wrong, as a tree.

::

    DDPMagicError
      x LaunchError       no worker group came up: the agent died, a rank could not join
      x WorkerError       the cell raised on a rank (the first one by time)
      x WorkerLostError   a rank ended without a traceback: a signal, an exit code
      x TimeLimitError    the run outlasted its --time-limit
      x ProtocolError     a frame that cannot be read: too long, no JSON, unknown
    KeyboardInterrupt
      x RunInterrupted    Stop was pressed; what the ranks were doing is in the message

A wrong option is IPython's own `UsageError`. Errors are always raised, never printed; the ones
that end a cell show their own lines in the notebook (`_render_traceback_`, which IPython asks
for), never the frames of ddp_magic.
"""

from __future__ import annotations

from collections.abc import Sequence


class DDPMagicError(Exception):
    """Root of everything ddp_magic raises."""

    def __init__(self, message: str, *, details: Sequence[str] = ()) -> None:
        """Keep the message and the lines that explain it.

        Args:
            message: One line: what happened, on which rank, what to do.
            details: Further lines, shown above the message in the notebook.
        """
        super().__init__(message)
        self.details = tuple(details)

    def _render_traceback_(self) -> list[str]:
        """Lines that IPython shows instead of ddp_magic's own frames."""
        return [*self.details, f"{type(self).__name__}: {self}"]


class LaunchError(DDPMagicError):
    """No worker group came up; the agent's last words are in `details`."""


class WorkerError(DDPMagicError):
    """The cell raised on at least one rank.

    Attributes:
        rank: The first rank that failed, by time.
        ename: Name of its exception class.
        evalue: Text of its exception.
        traceback: IPython's formatted traceback, with the notebook's own line numbers.
    """

    def __init__(
        self,
        message: str,
        *,
        rank: int,
        ename: str,
        evalue: str,
        traceback: Sequence[str],
        details: Sequence[str] = (),
    ) -> None:
        """Keep the failing rank's own words; see the class for the meaning of each."""
        super().__init__(message, details=details)
        self.rank = rank
        self.ename = ename
        self.evalue = evalue
        self.traceback = tuple(traceback)


class WorkerLostError(DDPMagicError):
    """A rank ended without a traceback.

    Attributes:
        rank: The first rank lost, by time.
        code: Its exit code; the negative number of the signal that killed it.
    """

    def __init__(self, message: str, *, rank: int, code: int, details: Sequence[str] = ()) -> None:
        """Keep which rank was lost and with which code."""
        super().__init__(message, details=details)
        self.rank = rank
        self.code = code


class TimeLimitError(DDPMagicError):
    """The run outlasted `--time-limit`, and was ended."""


class ProtocolError(DDPMagicError):
    """A frame that cannot be read. The connection it came over is closed."""


class RunInterrupted(KeyboardInterrupt):
    """Stop was pressed. The message says how each rank ended."""

    def _render_traceback_(self) -> list[str]:
        return [f"KeyboardInterrupt: {self}"]
