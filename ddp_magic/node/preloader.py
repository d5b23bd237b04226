"""What a forkserver imports: in which order, which libraries on trial, and what it reports."""

from __future__ import annotations

import copy
import gc
import importlib
import os
import signal
import sys
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable
from types import FrameType
from typing import Any

from ddp_magic.node import imports
from ddp_magic.node.trial import BEGINS_CUDA, Trial
from ddp_magic.system import libraries, processes
from ddp_magic.system.entry_points import WORKER, WORKER_SHELL, WORKER_STATE, resolve
from ddp_magic.system.readable import readable
from ddp_magic.wire.commands import Preload
from ddp_magic.wire.events import SOME_LIBRARY, Event, Importing, Preloaded

LOOK_S = 0.5  # how often it checks for its kernel during an import
AGENTS_GRACE_S = 1.0  # for the agents to end what they run, when the kernel is gone
MAX_PARTS = 3  # of one library are tried in vain, before the rest of it is left out
# What every agent and rank needs. The shell comes before the inline backend, which makes a rank's
# figures displays only if it finds a shell when it is imported.
BASE = (
    "torch",
    "ddp_magic.node.elastic",
    WORKER.partition(":")[0],
    WORKER_SHELL,
    "matplotlib_inline.backend_inline",
)
# What nearly every cell comes to need, when there is time: DDP's constructor imports the first.
SOON = ("torch._dynamo", "IPython.core.logger")


class ForkObstacleError(Exception):
    """This process must not be forked any more.

    Args:
        module: The library that is the reason; as in `events.ForkObstacle`.
        reason: What it did.
    """

    def __init__(self, module: str, reason: str) -> None:
        super().__init__(module, reason)
        self.module = module
        self.reason = reason


class Preloader:
    """Imports libraries, one at each `step`, and reports to the kernel.

    Every method that imports raises `ForkObstacleError` if the process cannot be forked afterwards.

    Args:
        report: Sends an event to the kernel.
        kernel: Pidfd of the kernel.
        trusted: Libraries that need no trial because an earlier forkserver has imported them
            without harm; None if none needs one, because no forkserver was lost to a library yet.
        left_out: Why a library is not imported, by name.
        wanted: What to import first, after the base.

    Attributes:
        trial: The import that is on trial.
        reported: Whether the kernel knows all that has been imported.
        of_hosts: Process ids of children that do not end with the kernel but with a host.
    """

    def __init__(
        self,
        report: Callable[[Event], object],
        kernel: int,
        trusted: Collection[str] | None,
        left_out: dict[str, str],
        wanted: Iterable[str] = SOON,
    ) -> None:
        self.trial: Trial | None = None
        self.reported = False
        self.of_hosts: set[int] = set()
        self._report = report
        self._kernel = kernel
        self._trusted = None if trusted is None else set(trusted)
        self._left_out = left_out
        self._wanted: deque[str] = deque(wanted)
        self._has_base = False
        self._number = 0  # of the last Preload
        self._failed: dict[str, str] = {}
        self._files: dict[str, list[Any]] = {}
        self._known: set[str] = set()
        self._good: list[str] = []  # what libraries that were left out import first
        self._environ = dict(os.environ)
        self._set_in_trials: dict[str, str] = {}

    def forked(self, report: Callable[[Event], object], kernel: int) -> Preloader:
        """Return what goes on in a fork of this process: nothing more is to be imported there.

        Args:
            report: Sends an event to the fork's kernel.
            kernel: Pidfd of that.
        """
        fork = copy.copy(self)
        fork.trial, fork.reported, fork.of_hosts = None, False, set()
        fork._report, fork._kernel = report, kernel
        fork._wanted, fork._number = deque(), 0
        return fork

    def want(self, command: Preload) -> None:
        """Import these libraries when there is nothing else to do."""
        sys.path[:] = command.sys_path
        self._wanted.extend(command.modules)
        self._number = command.number
        self.reported = False

    def import_base(self) -> None:
        """Import what every agent and rank needs, unless a process that forked this one has."""
        if self._has_base:
            return
        for name in BASE:
            self._import(name)
        if not imports.cuda_survives_fork():
            raise ForkObstacleError("", "torch has begun CUDA while it was imported")
        self._has_base = True

    def patience_s(self) -> float | None:
        """Return how long to wait for something else before the next `step`, s; None for ever."""
        if self.trial is not None:
            return self.trial.left_s
        return None if self.reported and not self._wanted else 0.0

    def step(self, fds: Iterable[int], spare: Collection[int]) -> None:
        """Do the next thing that is to be done.

        Args:
            fds: Descriptors of this process that a trial must not hold.
            spare: Children of this process that go on after a trial.
        """
        if self.trial is not None:
            if self.trial.over():
                processes.sweep(0.0, spare=spare)  # what the library has started
                self._judge(self.trial)
        elif self._wanted:
            self._import_or_try(self._wanted.popleft(), fds)
        elif not self.reported:
            self._report_all()

    def _import_or_try(self, module: str, fds: Iterable[int]) -> None:
        if self._is_left_out(module):
            return
        known = module in sys.modules or module in SOON
        if self._trusted is None or module in self._trusted or known:
            self._import(module)
            return
        self.reported = False
        self.trial = Trial(module, fds)

    def _judge(self, trial: Trial) -> None:
        """Import the library that was tried, or leave it out, except what it imports first."""
        self.trial = None
        if not trial.obstacle:
            self._import(trial.module)
            return
        self._left_out[trial.module] = trial.obstacle
        self._set_in_trials |= trial.environ
        top = trial.module.partition(".")[0]
        if sum(name.startswith(f"{top}.") for name in self._left_out) >= MAX_PARTS:
            self._left_out[top] = trial.obstacle
        good = [name for name in trial.importable() if name not in sys.modules]
        with self._importing(trial.module):
            obstacles = (imports.import_library(name)[1] for name in good)
            obstacle = next(filter(None, obstacles), "")
        self._note_files()
        if obstacle:
            raise ForkObstacleError(trial.module, obstacle)
        self._good += good

    def _is_left_out(self, module: str) -> bool:
        parts = module.split(".")
        return any(".".join(parts[: n + 1]) in self._left_out for n in range(len(parts)))

    def _import(self, name: str) -> None:
        module, _, function = name.partition(":")
        if module in sys.modules and not function:
            return
        self.reported = False
        with self._importing(module):
            if function:
                failed, obstacle = imports.import_library(module, _call(function))
            else:
                failed, obstacle = imports.import_library(module)
        self._note_files()
        if failed:
            self._failed[module] = failed
        if name in BASE and obstacle == imports.HANDLES_SIGNALS:
            return  # agents and ranks set their own handlers
        if obstacle and name in BASE:  # any other forkserver would meet it too
            raise ForkObstacleError("", f"at {module}, {obstacle}")
        if obstacle:
            raise ForkObstacleError(module, obstacle)

    def import_prelude(self, names: Iterable[str]) -> None:
        """Import the libraries of these names of the prelude, before the ranks that use them."""
        from ddp_magic import prelude

        for name in names:
            home = prelude.home(name)
            if name in vars(prelude) or self._is_left_out(home):
                continue
            self.reported = False
            if self._trusted is not None and home not in {*self._trusted, *sys.modules}:
                self._wanted.append(home)  # its trial would delay this start
                continue
            with self._importing(home):
                # A failure is the rank's to show, when its cell uses the name.
                _, obstacle = imports.import_library(name, lambda name: getattr(prelude, name))
            self._note_files()
            if obstacle:
                raise ForkObstacleError(home, obstacle)

    def _importing(self, module: str) -> _EndWithKernel:
        """Tell the kernel, which thus knows what to blame for the end of this process."""
        self._report(Importing(module=module))
        return _EndWithKernel(self._kernel, self.of_hosts)

    def _note_files(self) -> None:
        """Note the files of what has been imported, at once, so that a later upgrade shows."""
        new = {name: m for name, m in list(sys.modules.items()) if name not in self._known}
        self._known.update(new)
        self._files.update(libraries.files(new))

    def _report_all(self) -> None:
        """Report what has been imported, and keep its pages shared."""
        # Any library since the last report may have begun CUDA.
        if not imports.cuda_survives_fork():
            raise ForkObstacleError(SOME_LIBRARY if self._trusted is None else "", BEGINS_CUDA)
        resolve(WORKER_STATE)()
        freeze()
        self.reported = True
        self._report(
            Preloaded(
                files=self._files,
                number=self._number,
                failed=self._failed,
                environ={**self._set_in_trials, **self.set_by_imports()},
                left_out=self._left_out,
                good=tuple(self._good),
            )
        )

    def set_by_imports(self) -> dict[str, str]:
        """Return the environment variables that imports have set in this process."""
        return {n: v for n, v in os.environ.items() if self._environ.get(n) != v}


class _EndWithKernel:
    """Ends this process if its kernel ends during an import, when nothing else is noticed."""

    def __init__(self, kernel: int, spare: Collection[int]) -> None:
        self._kernel = kernel
        self._spare = spare

    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, self._look)
        signal.setitimer(signal.ITIMER_REAL, LOOK_S, LOOK_S)

    def _look(self, _signum: int, _frame: FrameType | None) -> None:
        if readable([self._kernel], 0):
            signal.setitimer(signal.ITIMER_REAL, 0)  # so that it does not interrupt what follows
            processes.sweep(AGENTS_GRACE_S, spare=self._spare)
            os._exit(1)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _call(function: str) -> Callable[[str], Any]:
    return lambda module: getattr(importlib.import_module(module), function)()


def freeze() -> None:
    """Keep what has been imported shared with the forks, and out of their exit."""
    # A fork would run the finalizers at its own end: hundreds of torch's, and perhaps one that
    # removes a temporary directory that all forks use. `_registry` is private; it is the same in
    # Python 3.10 to 3.13 (tests/unit/node/test_preloader.py).
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    gc.collect()
    gc.freeze()  # the collector does not touch the pages of what is frozen
