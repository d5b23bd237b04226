"""Turns a fork of the forkserver into an agent, with the kernel's environment and `sys.path`."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NoReturn

from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.commands import ForkAgent
from ddp_magic.wire.specs import AgentSpec


def become_agent(command: ForkAgent, spec: AgentSpec) -> NoReturn:
    """Turn this fork of the forkserver into an agent.

    Args:
        command: The state to take over.
        spec: What to run.
    """
    try:
        os.setsid()
        log = _open_log(RunDirectory(Path(spec.worker.directory)).agent_log)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        _take_state(command, spec)
        from ddp_magic.node import agent, elastic  # with torch, which is imported by now

        agent.serve(spec, elastic.run)
    except BaseException:  # noqa: BLE001 -- the forkserver's frames below must never run on here
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(1)


def _open_log(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    except OSError:  # a full disk: the log is lost, the ranks are not
        return os.open(os.devnull, os.O_WRONLY)


def _take_state(command: ForkAgent, spec: AgentSpec) -> None:
    os.environ.clear()
    os.environ.update(command.env)
    os.umask(command.umask)
    try:
        os.chdir(command.cwd)
    except OSError:  # the notebook's directory is gone, for the notebook too
        pass
    sys.path[:] = spec.sys_path
    importlib.invalidate_caches()
    time.tzset()
    tempfile.tempdir = None  # determined again, from TMPDIR
    gc.enable()
