"""What can go wrong, as a tree.

::

    DDPMagicError
      x CellSyntaxError   a cell is not Python
      x CaptureError      a value of the notebook cannot be sent to the ranks
      x LaunchError       no worker group came up, or it was lost (the agent died, a rank could not
                          join, a cluster ended its job), the notebook's process ran out of
                          descriptors, or the session is in use by another thread
      x WorkerError       the cell raised on a rank (the first one by time)
      x WorkerLostError   a rank ended without a traceback: a signal, an exit code
      x MismatchError     --check found a collective on which the ranks differ
      x TimeLimitError    the run exceeded its --time-limit
      x PullError         a value that was asked for did not come back
      x HostLostError     the process that served a background run ended before it
      x ProtocolError     a frame that cannot be read: too long, no JSON, unknown
    KeyboardInterrupt
      x RunInterrupted    Stop was pressed; what the ranks were doing is in the message

A wrong option is IPython's own `UsageError`. Errors are always raised, never printed; the ones
that end a cell show their own lines in the notebook (`_render_traceback_`, which IPython asks
for), never the frames of ddp_magic.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence


class DDPMagicError(Exception):
    """Root of everything ddp_magic raises."""

    def __init__(self, message: str, *, details: Sequence[str] = (), shown: str = "") -> None:
        """Keep the message and the lines that explain it.

        Args:
            message: What happened, on which rank, what to do.
            details: Further lines, shown above the message in the notebook.
            shown: The message in one line, for the notebook; empty for the message itself.
        """
        # Not super(): an error that is also of a rank's own class (`of_class`) has that above it.
        Exception.__init__(self, message)
        self.message = message
        self.details = tuple(details)
        self.shown = shown or message

    def __str__(self) -> str:
        return self.message

    def _render_traceback_(self) -> list[str]:
        """Lines that IPython shows instead of ddp_magic's own frames."""
        return [*self.details, f"{type(self).__name__}: {self.shown}"]


class CellSyntaxError(DDPMagicError):
    """A cell of `%%ddp` is not Python. No rank was started.

    Not a SyntaxError of Python's: IPython shows our frames with one. The notebook sees that name.
    """

    def __init__(self, error: SyntaxError, lines: Sequence[str]) -> None:
        """Keep what was wrong.

        Args:
            error: Python's own error.
            lines: As IPython shows it, with the notebook's line number.
        """
        # Without the file, whose name is IPython's.
        text = error.msg + (f" at line {error.lineno}" if error.lineno else "")
        super().__init__(text, details=lines)

    def _render_traceback_(self) -> list[str]:
        return list(self.details)


CellSyntaxError.__name__ = "SyntaxError"


def one_line(error: Exception) -> DDPMagicError:
    """Return an error of the same class and name that is shown without our frames."""
    theirs = type(error)
    made: DDPMagicError = type(theirs.__name__, (DDPMagicError, theirs), {})(str(error))
    return made


class CaptureError(DDPMagicError):
    """A value of the notebook cannot be sent to the ranks; none was started."""


class LaunchError(DDPMagicError):
    """No worker group came up, or it was lost; the agent's last words are in `details`."""


class WorkerError(DDPMagicError):
    """The cell raised on at least one rank.

    Where the rank's exception class is known here too, the error is of that class as well:
    `except torch.cuda.OutOfMemoryError` catches it.

    Attributes:
        rank: The first rank that failed, by time.
        ename: Name of its exception class.
        evalue: Text of its exception.
        traceback: IPython's formatted traceback, with the notebook's own line numbers.
        classes: Its exception class and those above it, as "module:name".
    """

    def __init__(  # noqa: PLR0913 -- each is a fact of its own
        self,
        message: str,
        *,
        rank: int,
        ename: str,
        evalue: str,
        traceback: Sequence[str],
        details: Sequence[str] = (),
        shown: str = "",
        classes: Sequence[str] = (),
    ) -> None:
        """Keep the failing rank's own words; see the class for the meaning of each."""
        super().__init__(message, details=details, shown=shown)
        self.rank = rank
        self.ename = ename
        self.evalue = evalue
        self.traceback = tuple(traceback)
        self.classes = tuple(classes)


def of_class(
    error: type[WorkerError], classes: Sequence[str], names: Mapping[str, object]
) -> type[WorkerError]:
    """Return an error class that is also of a rank's own, so that `except` finds it.

    Only classes that are imported here already count: somebody who writes `except x.Y` has x.

    Args:
        error: Ours.
        classes: The rank's class and those above it, as "module:name".
        names: The notebook's, for classes of its own.
    """
    for path in classes:
        module, _, name = path.partition(":")
        found = names.get(name) if module == "__main__" else _attribute(module, name)
        if not (isinstance(found, type) and issubclass(found, Exception)):
            continue
        if issubclass(found, SyntaxError):  # IPython would show it as the notebook's own cell's
            return error
        if combined := _combined(error, found):
            return combined
    return error


def _combined(error: type[WorkerError], theirs: type[Exception]) -> type[WorkerError] | None:
    try:
        combined = type(error.__name__, (error, theirs), {"__doc__": error.__doc__})
        combined("", rank=0, ename="", evalue="", traceback=())
    except Exception:  # noqa: BLE001 -- a class that cannot be combined, or made so
        return None
    return combined


def _attribute(module: str, name: str) -> object:
    found: object = sys.modules.get(module)
    for word in name.split("."):
        try:
            found = getattr(found, word, None)
        except Exception:  # noqa: BLE001 -- a module that imports on demand may raise anything
            return None
    return found


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


class MismatchError(DDPMagicError):
    """The ranks called different collectives, or with different arguments (`--check`)."""


class TimeLimitError(DDPMagicError):
    """The run exceeded `--time-limit`, and was ended."""


class PullError(DDPMagicError):
    """The cell succeeded, but a value asked for with --pull did not come back."""


class HostLostError(DDPMagicError):
    """The process that served a background run ended before the run did, and its ranks with it."""


class ProtocolError(DDPMagicError):
    """A frame that cannot be read. The connection it came over is closed."""


class RunInterrupted(KeyboardInterrupt):
    """Stop was pressed. The message says how each rank ended."""

    def __init__(self, message: str, *, details: Sequence[str] = ()) -> None:
        """Keep the message and the lines that explain it."""
        super().__init__(message)
        self.details = tuple(details)

    def _render_traceback_(self) -> list[str]:
        return [*self.details, f"KeyboardInterrupt: {self}"]
