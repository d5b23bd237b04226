"""The files that `--trace` and `--write` name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from ddp_magic.kernel.options.option import OptionError


def trace_file(asked: SimpleNamespace) -> Path | None:
    """Return it, if it can be written; None if there is none.

    Raises:
        OptionError: It cannot.
    """
    return None if asked.trace is None else writable("trace", asked.trace)


def writable(option: str, name: str) -> Path:
    """Return the path of a file that an option names.

    Raises:
        OptionError: It cannot be written.
    """
    try:
        path = Path(name).expanduser().absolute()
        if path.exists() and not path.is_file():
            kind = "a directory" if path.is_dir() else "not a file"
            raise OptionError(option, f"{str(path)!r} is {kind}: use another name")
        if not path.parent.is_dir():
            problem = f"{str(path.parent)!r} is not a directory: create it, or use another file"
            raise OptionError(option, problem)
        existed = path.exists()
        path.open("ab").close()
        if not existed:
            path.unlink()
    except (OSError, RuntimeError) as error:  # no such user's home directory
        reason = getattr(error, "strerror", None) or str(error)
        problem = f"{name!r} cannot be written ({reason}): use another file"
        raise OptionError(option, problem) from None
    return path
