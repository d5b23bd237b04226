"""The error of a background run, from the host's process to the notebook that waits for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from ddp_magic import errors
from ddp_magic.errors import DDPMagicError, RunInterrupted, WorkerError, WorkerLostError, of_class

_CLASSES: tuple[type[DDPMagicError | RunInterrupted], ...] = (
    errors.CaptureError,
    errors.LaunchError,
    WorkerError,
    WorkerLostError,
    errors.MismatchError,
    errors.TimeLimitError,
    errors.PullError,
    RunInterrupted,
    DDPMagicError,  # any other
)
_OWN = {
    WorkerError: ("rank", "ename", "evalue", "traceback", "classes"),
    WorkerLostError: ("rank", "code"),
}


def as_json(error: DDPMagicError | RunInterrupted) -> dict[str, Any]:
    """Return what `from_json` reads, of JSON's types."""
    kind = next(cls for cls in _CLASSES if isinstance(error, cls))
    fields: dict[str, Any] = {name: getattr(error, name) for name in _OWN.get(kind, ())}
    fields |= {"class": kind.__name__, "message": str(error), "details": error.details}
    return fields | {"shown": getattr(error, "shown", "")}


def from_json(
    fields: Mapping[str, Any], names: Mapping[str, object]
) -> DDPMagicError | RunInterrupted:
    """Return the error again.

    Args:
        fields: What `as_json` returned.
        names: The notebook's names, for exception classes of its own.
    """
    kind: Any = next(cls for cls in _CLASSES if cls.__name__ == fields["class"])
    own = {name: fields[name] for name in _OWN.get(kind, ())}
    if kind is WorkerError:
        kind = of_class(WorkerError, own["classes"], names)
        own["shown"] = fields["shown"]
    error = kind(fields["message"], details=fields["details"], **own)
    return cast("DDPMagicError | RunInterrupted", error)


def from_lines(lines: Sequence[str]) -> DDPMagicError | RunInterrupted:
    """Return an error of which only the lines that a person saw are left.

    Args:
        lines: The last one has the name of its class, and its message.
    """
    name, _, message = lines[-1].partition(": ")
    if name == "KeyboardInterrupt":
        return RunInterrupted(message, details=lines[:-1])
    plain = [cls for cls in _CLASSES if cls.__name__ == name and cls not in _OWN]
    kind: Any = plain[0] if plain else DDPMagicError
    error: DDPMagicError = kind(message if plain else lines[-1], details=lines[:-1])
    return error
