"""How the kernel starts a process of ddp_magic, tells it what to do, and reads its last words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])
_LAST_WORDS_BYTES = 4000


def entry(module: str, function: str) -> list[str]:
    """Return the command that runs a function of ddp_magic in a new interpreter.

    The package is found where the kernel found it, whatever lies in the working directory.
    """
    code = (
        f"import sys; sys.path.insert(0, {_PACKAGE_PARENT!r}); "
        f"from ddp_magic.{module} import {function}; {function}()"
    )
    return [sys.executable, "-c", code]


def write_start(process: subprocess.Popen[bytes], start: dict[str, object]) -> None:
    """Tell a process that has just been started what it is to do."""
    assert process.stdin is not None  # noqa: S101 -- PIPE was given
    with process.stdin as stdin:
        try:
            stdin.write(json.dumps(start).encode())
        except BrokenPipeError:
            pass  # it died at once: whoever looks for its end finds it


def last_words(log: Path) -> str:
    """Return the end of a log."""
    try:
        return log.read_bytes()[-_LAST_WORDS_BYTES:].decode(errors="replace").strip()
    except OSError:  # it was never made, or has been removed
        return ""
