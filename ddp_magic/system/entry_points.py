"""Where each process of ddp_magic starts: names, so that no process imports another's code.

An engine starts the forkserver, torchrun with its keepers, or a driver of Ray in a new interpreter,
and a kernel starts a host so; an agent forks a worker from itself.
`tests/unit/system/test_entry_points.py` resolves every name.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORKSERVER = "ddp_magic.node.forkserver:main"
HOST = "ddp_magic.kernel.background.host:main"
TORCHRUN = "ddp_magic.node.torchrun:main"
KEEPER = "ddp_magic.node.torchrun:keep"
NODE_AGENT = "ddp_magic.node.node_agent:main"
RAY_DRIVER = "ddp_magic.engines.ray_driver:main"
RELAY = "ddp_magic.node.far_relay:main"
WORKER = "ddp_magic.worker.worker:main"
# The forkserver calls these, for every rank: once at its start, and after it has imported more.
WORKER_SHELL = "ddp_magic.worker.shell:preload"
WORKER_STATE = "ddp_magic.worker.fresh_state:prepare"
ALL = (
    *(FORKSERVER, HOST, TORCHRUN, KEEPER, NODE_AGENT, RAY_DRIVER, RELAY),
    *(WORKER, WORKER_SHELL, WORKER_STATE),
)

_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])
_LAST_WORDS_BYTES = 4000


def resolve(name: str) -> Callable[..., Any]:
    """Import the function that a name of this table refers to."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def command(name: str) -> list[str]:
    """Return the command that calls a function of this table in a new interpreter.

    The package is found where this process found it, whatever lies in the working directory.
    """
    module, _, function = name.partition(":")
    code = (
        f"import sys; sys.path.insert(0, {_PACKAGE_PARENT!r}); "
        f"from {module} import {function}; {function}()"
    )
    return [sys.executable, "-c", code]


def write_start(process: subprocess.Popen[bytes], start: dict[str, object]) -> None:
    """Write what a new process is to do to its stdin, as JSON."""
    assert process.stdin is not None  # noqa: S101 -- PIPE was given
    with process.stdin as stdin:
        try:
            stdin.write(json.dumps(start).encode())
        except BrokenPipeError:
            pass  # it died at once, which its exit shows


def last_words(log: Path) -> str:
    """Return the end of a log; empty if there is none."""
    try:
        return log.read_bytes()[-_LAST_WORDS_BYTES:].decode(errors="replace").strip()
    except OSError:  # it was never written, or has been removed
        return ""
