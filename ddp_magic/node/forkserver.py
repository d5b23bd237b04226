"""The preloaded process: it has torch and the notebook's libraries imported, and forks agents.

One for each kernel. It has one thread and opens no device, so that a fork of it is as good as a
fresh interpreter that has just imported the same; it ends with its kernel. Its agents do not
depend on it once they are forked.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from ddp_magic.node import imports
from ddp_magic.node.trial import BEGINS_CUDA, Trial
from ddp_magic.system import libraries, processes
from ddp_magic.system.entry_points import WORKER, WORKER_SHELL
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.channel import Channel
from ddp_magic.wire.messages import (
    SOME_LIBRARY,
    ForkAgent,
    Forked,
    ForkObstacle,
    Importing,
    Preload,
    Preloaded,
)
from ddp_magic.wire.specs import AgentSpec

LOOK_S = 0.5  # how often it looks for its kernel while it imports
AGENTS_GRACE_S = 1.0  # for the agents to end what they run, when the kernel is gone
# What every agent and rank needs. The shell comes before the drawing: a figure of a rank becomes a
# display only if the inline backend finds a shell when it is imported.
BASE = (
    "torch",
    "ddp_magic.node.elastic",
    WORKER.partition(":")[0],
    WORKER_SHELL,
    "matplotlib_inline.backend_inline",
)
MAX_PARTS = 3  # of one library are tried in vain, before the rest of it is left out

# What nearly every cell comes to need, when there is time: DDP's constructor imports the first.
SOON = ("torch._dynamo", "IPython.core.logger")


class Forkserver:
    """The main loop: answers the kernel, imports when there is nothing else to do, reaps.

    Args:
        channel: To the kernel.
        kernel_pid: Its pid, which is the parent's.
        trusted: Libraries that an earlier forkserver has imported without harm, where another one
            has come to an end by an import: the rest are tried first. None to try none.
        left_out: Why a library is not to be imported, by name.
    """

    def __init__(
        self,
        channel: Channel,
        kernel_pid: int,
        trusted: Collection[str] | None,
        left_out: dict[str, str],
    ) -> None:
        """Begin with nothing imported."""
        self._trusted = None if trusted is None else set(trusted)
        self._left_out = left_out
        self._trial: Trial | None = None
        self._good: list[str] = []
        self._set_in_trials: dict[str, str] = {}
        self._channel = channel
        self._kernel_pid = kernel_pid
        self._kernel = os.pidfd_open(kernel_pid)
        self._agents: dict[int, int] = {}  # pidfd -> pid
        self._wanted: deque[str] = deque(SOON)
        self._failed: dict[str, str] = {}
        self._files: dict[str, list[Any]] = {}
        self._known: set[str] = set()
        self._told = False
        self._number = 0
        self._environ = dict(os.environ)

    def serve(self) -> NoReturn:
        """Import the base, then serve until the kernel is gone."""
        for name in BASE:
            self._import(name)
        if not imports.cuda_survives_fork():
            self._unfit("", "torch has begun CUDA while it was imported")
        while True:
            ready = self._select([self._channel], self._patience_s())
            if self._channel in ready:
                self._obey()
            elif self._trial is not None:
                if self._trial.over():
                    self._judge(self._trial)
            elif self._wanted:
                self._take_up(self._wanted.popleft())
            elif not self._told:
                self._tell()

    def _patience_s(self) -> float | None:
        if self._trial is not None:
            return self._trial.left_s
        return None if self._told and not self._wanted else 0.0

    def _select(self, more: list[Channel], timeout_s: float | None) -> list[Any]:
        """Wait; take care of agents that have ended; end with the kernel."""
        waited_for: list[Any] = [*more, self._kernel, *self._agents]
        if self._trial is not None:
            waited_for += [self._trial, self._trial.pidfd]
        ready = select.select(waited_for, [], [], timeout_s)[0]
        if self._kernel in ready:
            processes.sweep(AGENTS_GRACE_S)
            os._exit(0)
        for pidfd in [fd for fd in self._agents if fd in ready]:
            self._reap(pidfd)
        return ready

    def _retire(self) -> NoReturn:
        """Fork no more, and end after the last agent."""
        self._channel.close()
        if self._trial is not None:
            self._trial.close()
            self._trial = None
        while self._agents:
            self._select([], None)
        os._exit(0)

    # --- imports ------------------------------------------------------------------------------

    def _take_up(self, module: str) -> None:
        """Import a library, or try it first."""
        if self._is_left_out(module):
            return
        known = module in sys.modules or module in SOON
        if self._trusted is None or module in self._trusted or known:
            self._import(module)
            return
        self._told = False
        self._trial = Trial(module, [self._kernel, *self._agents])

    def _judge(self, trial: Trial) -> None:
        """Import what has been tried; or leave it to the ranks, but for what it imports first."""
        self._trial = None
        processes.sweep(0.0, spare=self._agents.values())  # what the library has started
        if not trial.unfit:
            self._import(trial.module)
            return
        self._left_out[trial.module] = trial.unfit
        self._set_in_trials |= trial.environ
        top = trial.module.partition(".")[0]
        if sum(name.startswith(f"{top}.") for name in self._left_out) >= MAX_PARTS:
            self._left_out[top] = trial.unfit
        good = [name for name in trial.importable() if name not in sys.modules]
        self._channel.send(Importing(module=trial.module))
        with _LookingForParent(self._kernel_pid):
            for name in good:
                if unfit := imports.import_library(name)[1]:
                    self._unfit(trial.module, unfit)
        self._good += good
        self._note_files()

    def _is_left_out(self, module: str) -> bool:
        parts = module.split(".")
        return any(".".join(parts[: n + 1]) in self._left_out for n in range(len(parts)))

    def _import(self, name: str) -> None:
        module, _, function = name.partition(":")
        if module in sys.modules and not function:
            return
        self._told = False
        self._channel.send(Importing(module=module))
        with _LookingForParent(self._kernel_pid):
            if function:
                failed, unfit = imports.import_library(module, _call(function))
            else:
                failed, unfit = imports.import_library(module)
        self._note_files()
        if failed:
            self._failed[module] = failed
        if name in BASE and unfit == imports.HANDLES_SIGNALS:
            unfit = ""  # agents and ranks set what they need anew
        if unfit and name in BASE:  # another forkserver would import it too
            self._unfit("", f"at {module}, {unfit}")
        if unfit:
            self._unfit(module, unfit)

    def _note_files(self) -> None:
        """Note the files of what has been imported, at once: a later upgrade must show."""
        new = {name: m for name, m in list(sys.modules.items()) if name not in self._known}
        self._known.update(new)
        self._files.update(libraries.files(new))

    def _unfit(self, module: str, reason: str) -> NoReturn:
        self._channel.send(ForkObstacle(module=module, reason=reason))
        self._retire()

    def _import_prelude(self, names: tuple[str, ...]) -> None:
        from ddp_magic import prelude

        for name in names:
            home = prelude.home(name)
            if name in vars(prelude) or self._is_left_out(home):
                continue
            if self._trusted is not None and home not in {*self._trusted, *sys.modules}:
                self._wanted.append(home)  # its trial takes a while, and this start does not
                self._told = False
                continue
            self._channel.send(Importing(module=home))
            with _LookingForParent(self._kernel_pid):
                # A failure is the rank's to show, when its cell uses the name.
                _, unfit = imports.import_library(name, lambda name: getattr(prelude, name))
            self._note_files()
            if unfit:
                self._unfit(home, unfit)
            self._told = False

    def _tell(self) -> None:
        """Report what is there now, and keep its pages shared."""
        # A CUDA context may have been begun by any of those since the last time.
        if not imports.cuda_survives_fork():
            some = SOME_LIBRARY if self._trusted is None else ""
            self._unfit(some, BEGINS_CUDA)
        _freeze()
        self._told = True
        self._channel.send(
            Preloaded(
                files=self._files,
                number=self._number,
                failed=self._failed,
                environ={**self._set_in_trials, **self._set_by_imports()},
                left_out=self._left_out,
                good=tuple(self._good),
            )
        )

    def _set_by_imports(self) -> dict[str, str]:
        return {n: v for n, v in os.environ.items() if self._environ.get(n) != v}

    # --- commands -----------------------------------------------------------------------------

    def _obey(self) -> None:
        commands = self._channel.receive()
        if commands is None:
            self._retire()
        for command in commands:
            match command:
                case Preload(modules=modules, number=number, sys_path=sys_path):
                    sys.path[:] = sys_path
                    self._wanted.extend(modules)
                    self._number = number
                    self._told = False
                case ForkAgent():
                    self._fork(command)
                case _:
                    pass

    def _fork(self, command: ForkAgent) -> None:
        spec = AgentSpec.from_json(command.spec)
        self._import_prelude(spec.prelude)
        if not self._told:
            _freeze()
        pid = os.fork()
        if pid == 0:
            trial = () if self._trial is None else (self._trial.fileno(), self._trial.pidfd)
            for fd in (self._kernel, *self._agents, *trial):
                os.close(fd)
            # As if the cell's imports had set them; what the notebook says comes first.
            env = {**self._set_by_imports(), **command.env}
            _become_agent(dataclasses.replace(command, env=env), spec)
        pidfd = os.pidfd_open(pid)
        self._agents[pidfd] = pid
        self._channel.send(Forked(run_id=spec.run_id), fd=pidfd)

    def _reap(self, pidfd: int) -> None:
        os.waitpid(self._agents.pop(pidfd), 0)
        os.close(pidfd)
        # What an agent leaves that was killed itself comes to us.
        trial = [] if self._trial is None else [self._trial.pid]
        processes.sweep(0.0, spare=[*self._agents.values(), *trial])


class _LookingForParent:
    """Ends this process if its kernel ends during an import, in which nothing else is heard."""

    def __init__(self, kernel_pid: int) -> None:
        self._kernel_pid = kernel_pid

    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, self._look)
        signal.setitimer(signal.ITIMER_REAL, LOOK_S, LOOK_S)

    def _look(self, _signum: int, _frame: FrameType | None) -> None:
        if os.getppid() != self._kernel_pid:
            signal.setitimer(signal.ITIMER_REAL, 0)  # or this would begin again in the midst of it
            processes.sweep(AGENTS_GRACE_S)
            os._exit(1)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _call(function: str) -> Callable[[str], Any]:
    return lambda module: getattr(importlib.import_module(module), function)()


def _freeze() -> None:
    """Make what is there everybody's: shared, and nobody's to clean up."""
    # A fork would run them at its own end: hundreds of torch's, and perhaps one that removes a
    # temporary directory that all forks use.
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    gc.collect()
    gc.freeze()  # the collector does not touch the pages of what is frozen: they stay shared


def _become_agent(command: ForkAgent, spec: AgentSpec) -> NoReturn:
    """Turn this fork of the forkserver into an agent, in the kernel's present state."""
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
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(1)


def _open_log(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    except OSError:  # a full disk: its words are lost, its ranks are not
        return os.open(os.devnull, os.O_WRONLY)


def _take_state(command: ForkAgent, spec: AgentSpec) -> None:
    os.environ.clear()
    os.environ.update(command.env)
    os.umask(command.umask)
    try:
        os.chdir(command.cwd)
    except OSError:  # the notebook's directory is gone: so it is for the notebook
        pass
    sys.path[:] = spec.sys_path
    importlib.invalidate_caches()
    time.tzset()
    tempfile.tempdir = None  # found anew, from TMPDIR
    gc.enable()


def main() -> NoReturn:
    """Serve the kernel, which starts this by `python -c`; what it has to say first is on stdin."""
    start = json.loads(sys.stdin.read())
    sys.path[:] = start["sys_path"]
    sys.argv[:] = [""]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A kernel that ignores it would hand that on, and nobody could wait for a child.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    processes.adopt_orphans()
    # Collections would touch, and so copy, the pages that agents and ranks share with us.
    gc.disable()
    channel = Channel(socket.socket(fileno=start["channel"]))
    Forkserver(channel, start["kernel_pid"], start["trusted"], start["left_out"]).serve()
