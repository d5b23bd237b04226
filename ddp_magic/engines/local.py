"""The kernel's end of its forkserver, and the engine that has agents forked from it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

import psutil

from ddp_magic.engines import Engine, PlacedAgent
from ddp_magic.errors import ProtocolError
from ddp_magic.prelude import home
from ddp_magic.system import libraries, processes
from ddp_magic.system.entry_points import FORKSERVER, last_words, write_start
from ddp_magic.system.entry_points import command as entry_command
from ddp_magic.system.environment import early_differences, forkserver_environment, rank_environment
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

ANSWER_S = 120.0  # torch's import alone can take a minute, from a slow disk
CLOSE_S = 5.0
IMPORT_S = 30.0  # for a library, while an agent waits; then it is tried in a process of its own
MAX_DEATHS = 3  # in a row, before it is given up
MAX_CULPRITS = 4  # that have cost a forkserver, before nothing but torch is imported any more


@dataclass(frozen=True, kw_only=True)
class Preloading:
    """What `%ddp_status` says of a forkserver.

    Attributes:
        state: "ready", "starting", "importing transformers", "off: macOS ...".
        pid: None if it does not run.
        pss_mib: Its memory, shared pages counted by share, MiB.
        libraries: What it has imported, by top-level name.
        left_out: Why a library is not, by name.
    """

    state: str
    pid: int | None = None
    pss_mib: float = 0.0
    libraries: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)


class Forkserver:
    """A forkserver as its kernel sees it; an engine.

    It is started in the background, and anew when it has died or has become stale. Where there can
    be none, agents are placed by the fallback.

    Imports that end it or make it unfit do so once: the next one tries every library that is not
    trusted, without harm to itself (`trial`).

    Args:
        fallback: The engine for then.
        command: What starts the process.
    """

    def __init__(self, fallback: Engine, command: Sequence[str] = ()) -> None:
        """Begin without a process; `launch` starts one."""
        self._fallback = fallback
        self._command = command or entry_command(FORKSERVER)
        self._lock = threading.RLock()  # a cell may run in a thread of its own (a subshell)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._log = _anonymous_file()
        self._env: dict[str, str] = {}  # that of the ranks it is for
        self._notebooks: dict[str, str] = {}  # the kernel's, at the same time
        self._wanted: dict[str, None] = {}
        self._left_out: dict[str, str] = {}
        self._culprits: list[str] = []  # those that have cost a forkserver
        self._trusted: set[str] = set()
        self._unwatch: Callable[[], object] = lambda: None
        self._seen: set[str] = set()
        self._words: set[str] = set()  # of the notebook's cells
        self._undecided: list[ForkedAgent] = []
        self._reason = ""  # why there was a new one
        self._pending: list[ForkedAgent] = []
        self._notes: list[str] = []
        self._deaths = 0
        self._gave_up_in: dict[str, str] | None = None  # the environment in which it was given up
        self.off = unsupported()
        if self.off:
            self._note(f"nothing is preloaded on {self.off}; ranks are started by torchrun")
        self._forget()

    @property
    def used(self) -> bool:
        """Whether it has been told anything: to start, to import, to close."""
        return self._process is not None or bool(self._wanted) or bool(self.off)

    def _forget(self) -> None:
        self._ready = False
        self._asked = 0
        self._importing = ""
        self._imports_since = 0.0
        self._unfit: ForkObstacle | None = None
        self._files: dict[str, list[object]] = {}
        self._failed: dict[str, str] = {}
        self._set_by_imports: dict[str, str] = {}

    # --- the process --------------------------------------------------------------------------

    def launch(self, env: dict[str, str] | None = None) -> None:
        """Start it if it does not run. Returns at once.

        Args:
            env: The environment of the ranks it is for; None for those of the kernel as it is.
        """
        with self._lock:
            if self.off or self._channel is not None:
                return
            self._forget()
            self._notebooks = rank_environment(os.environ, None, 1)
            self._env = env if env is not None else self._notebooks
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=self._log,
                    stderr=self._log,
                    env=forkserver_environment(self._env),
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
                start = {
                    "channel": theirs.fileno(),
                    "kernel_pid": os.getpid(),
                    "sys_path": libraries.search_path(sys.path, _cwd()),
                    "trusted": sorted(self._trusted) if self._culprits else None,
                    "left_out": self._left_out,
                }
                write_start(self._process, start)
            self._channel = Channel(ours)
            self._watch(self._channel)
            self._want(self._wanted)

    def _watch(self, channel: Channel) -> None:
        """Hear it between the notebook's cells too: another one may have to be started."""
        try:
            loop = asyncio.get_running_loop()
            fd = channel.fileno()
            loop.add_reader(fd, self.look)
        except (RuntimeError, NotImplementedError):  # no loop, or one that hears no descriptors
            return
        # At once, before the number is another descriptor's: the loop is this thread's, or sleeps.
        self._unwatch = lambda: loop.is_closed() or loop.remove_reader(fd)

    def want(self, modules: Iterable[str]) -> None:
        """Let it import these libraries when it has nothing else to do."""
        with self._lock:
            new = [m for m in modules if m not in self._wanted]
            self._wanted.update(dict.fromkeys(new))
            self._want(new)

    def _want(self, modules: Iterable[str]) -> None:
        names = tuple(modules)
        if names and self._channel is not None and len(self._culprits) <= MAX_CULPRITS:
            self._ready = False
            self._asked += 1
            path = tuple(libraries.search_path(sys.path, _cwd()))
            self._channel.send(Preload(modules=names, number=self._asked, sys_path=path))

    def follow(self, modules: Mapping[str, ModuleType]) -> None:
        """Keep up with the notebook: its libraries, its environment, its packages.

        Args:
            modules: The kernel's `sys.modules`.
        """
        if self.off:
            return
        with self._lock:
            new = {n: m for n, m in list(modules.items()) if n not in self._seen}
            self._seen.update(new)
            self.want(libraries.libraries(new))
            self._drain()
            # While it imports there is time: a library that the notebook has just imported may
            # have set the variable, and will set it there too.
            if self._channel is not None and self._ready:
                now = rank_environment(os.environ, None, 1)
                if reason := self._changes(now, self._notebooks) or self._stale(sys.path):
                    self._retire(reason)
            self.launch()

    def begin_cell(self, modules: Mapping[str, ModuleType], text: str) -> None:
        """Note that what has been imported since the last cell is the kernel's own affair.

        To complete a name it imports jedi, and even what follows `import`.

        Args:
            modules: The kernel's `sys.modules`.
            text: The cell's.
        """
        with self._lock:
            self._seen.update(list(modules))
            self._words.update(re.findall(r"\w+", text))

    def close(self) -> None:
        """End it; agents that run go on to their end."""
        with self._lock:
            self._leave()
            self.off = "off"
            if self._process is not None:
                try:
                    self._process.wait(CLOSE_S)
                except subprocess.TimeoutExpired:  # it waits for an agent
                    pass

    def _leave(self) -> None:
        if self._channel is not None:
            self._unwatch()
            self._unwatch = lambda: None
            self._channel.close()
            self._channel = None

    def _retire(self, reason: str) -> None:
        self._leave()
        self._reason = reason

    def _changes(self, now: Mapping[str, str], then: Mapping[str, str]) -> str:
        """Say which variables its libraries may have read in another state."""
        names = self._changed(now, then)
        return f"{', '.join(names)} changed" if names else ""

    def _changed(self, now: Mapping[str, str], then: Mapping[str, str]) -> list[str]:
        ours = self._set_by_imports
        return [n for n in early_differences(now, then) if n not in ours or now.get(n) != ours[n]]

    def _may_be_a_librarys(self, env: Mapping[str, str]) -> bool:
        """Tell whether what has changed may prove to be set by what is being imported."""
        names = self._changed(env, self._env)
        return bool(names) and not self._ready and not self._words & set(names)

    def _stale(self, sys_path: Iterable[str]) -> str:
        """Say why this forkserver's libraries are not what a fresh interpreter would import."""
        if not self._ready:
            return ""
        if upgraded := libraries.changed(self._files):
            return f"{upgraded} was installed anew"
        # Not our own: we are where we are, also in front of what is installed (a checkout).
        held = {n: str(f[0]) for n, f in self._files.items() if "." not in n and n != "ddp_magic"}
        if hidden := libraries.shadowed(held, sys_path, _cwd()):
            return f"{hidden[0]} is now found in {hidden[1]}"
        return ""

    # --- what it says -------------------------------------------------------------------------

    def _drain(self) -> None:
        """Take what it has said, and notice its death."""
        while self._channel is not None and select.select([self._channel], [], [], 0)[0]:
            channel = self._channel
            try:
                messages = channel.receive()
            except ProtocolError:
                messages = None
            if messages is None:
                self._died()
                return
            for message in messages:
                match message:
                    case Importing(module=module):
                        self._trust()
                        self._importing, self._imports_since = module, time.monotonic()
                    case Preloaded():
                        self._trust()
                        self._deaths = 0
                        self._take_up(message)
                    case ForkObstacle():
                        self._unfit = message
                    case Forked(run_id=run_id, pid=pid):
                        self._forked(run_id, pid, channel.received_fds.pop(0))
                    case _:
                        pass

    def _trust(self) -> None:
        """Note that the last import has done no harm."""
        if self._importing:
            self._trusted.add(self._importing)
        self._importing = ""

    def _take_up(self, told: Preloaded) -> None:
        self._ready = told.number == self._asked  # else it has not heard all of it
        self._files, self._failed = told.files, told.failed
        self._set_by_imports = told.environ
        self._left_out |= told.left_out
        self._trusted -= told.left_out.keys()
        # Another forkserver, which does not try what is left out, has these from the first.
        self._trusted |= set(told.good)
        self._wanted |= dict.fromkeys(told.good)
        if self._ready:
            self._decide()

    def _decide(self) -> None:
        """Serve the agents that wait for it to be known who has set a variable."""
        agents, self._undecided = self._undecided, []
        for agent in [agent for agent in agents if agent in self._pending]:
            if reason := self._changes(agent.env, self._env):
                self._retire(reason)
                self._explain(agent)
                self.launch(agent.env)
                for pending in self._pending:
                    self._request(pending)
                return
            self._request(agent)

    def _forked(self, run_id: str, pid: int, pidfd: int) -> None:
        self._trust()
        for agent in self._pending:
            if agent.spec.run_id == run_id:
                self._pending.remove(agent)
                agent.forked(pid, pidfd)
                return
        os.close(pidfd)  # given up before: it finds nobody who listens

    def _died(self) -> None:
        """Find out why, and start another for the agents that wait."""
        self._leave()
        self._undecided = []
        if self._unfit is not None:
            culprit, words = self._unfit.module, self._unfit.reason
            if not culprit:
                self._give_up(f"the forkserver is of no use: {words}")
                return
            self._blame(culprit, words)
        else:
            self._deaths += 1
            code = self._process.wait(CLOSE_S) if self._process is not None else 0
            words = f"the forkserver died ({processes.exit_words(code)})"
            if self._deaths > MAX_DEATHS:
                self._give_up(f"{words} {self._deaths} times")
                return
            slow = "this start is slow, the next one is not"
            if self._deaths == 1:  # each further one of the same kind would say the same
                self._note(f"{words}: {slow if self._pending else 'another one has been started'}")
            # One that was killed is innocent, once.
            if self._importing and (self._deaths > 1 or code != -signal.SIGKILL):
                self._blame(self._importing, f"its import ended the process: {words}")
        if len(self._culprits) > MAX_CULPRITS + 1:  # although none was asked for
            self._give_up(f"the forkserver is of no use: {words}")
            return
        # Between two cells too: it has nothing to do then but to find out all there is to find.
        self.launch(self._pending[0].env if self._pending else None)
        for agent in self._pending:
            self._request(agent)

    def _blame(self, module: str, reason: str) -> None:
        """Have a library tried, with all that is not trusted; if that was of no avail, leave it."""
        if module in self._culprits:
            self._left_out[module] = reason  # tried, to no avail
        if module == SOME_LIBRARY:
            self._trusted.clear()
        else:
            self._wanted.setdefault(module)  # of what it imports, some may be of use
        self._trusted.discard(module)
        self._culprits.append(module)
        if len(self._culprits) > MAX_CULPRITS:
            words = "too many libraries have made it unfit: only torch is imported ahead"
            self._left_out["*"] = words

    def _give_up(self, words: str) -> None:
        self.off = f"{words}\n{self._last_words()}".strip()
        self._gave_up_in = self._env
        self._note(f"{words}: ranks are started by torchrun from now on")
        for agent in self._pending:
            agent.placed_by(self._fallback)
        self._pending = []

    def _note(self, text: str) -> None:
        """Say a line at the start that waits, or at the next one."""
        notes = self._pending[0].notes if self._pending else self._notes
        if text not in notes:
            notes.append(text)

    def _last_words(self) -> str:
        return last_words(Path(f"/proc/self/fd/{self._log.fileno()}"))

    # --- agents -------------------------------------------------------------------------------

    def start(self, spec: AgentSpec, env: dict[str, str]) -> PlacedAgent:
        """Have an agent forked; where that cannot be, let the fallback place it."""
        with self._lock:
            self._drain()
            self._try_again(env)
            undecided = False
            if self._channel is not None and not self.off:
                undecided = self._may_be_a_librarys(env)
                changes = "" if undecided else self._changes(env, self._env)
                if reason := changes or self._stale(spec.sys_path):
                    self._retire(reason)
                    undecided = False
            self.launch(env)
            agent = ForkedAgent(self, spec, env)
            agent.notes, self._notes = self._notes, []
            self._explain(agent)
            if self.off:
                agent.placed_by(self._fallback)
                return agent
            self._pending.append(agent)
            if undecided:
                self._undecided.append(agent)
            else:
                self._request(agent)
            return agent

    def _try_again(self, env: dict[str, str]) -> None:
        """Begin anew if it was given up in another environment, which may have been the reason."""
        if self._gave_up_in is not None and early_differences(env, self._gave_up_in):
            self.off, self._gave_up_in, self._deaths = "", None, 0
            self._culprits = []

    def _explain(self, agent: ForkedAgent) -> None:
        if self._reason and not self._ready:  # a start that is slow is explained
            agent.notes.append(f"{self._reason}: what is preloaded is imported anew")
        self._reason = ""

    def _request(self, agent: ForkedAgent) -> None:
        assert self._channel is not None  # noqa: S101 -- `launch` has just been called
        spec = agent.spec
        if len(self._culprits) > MAX_CULPRITS:
            spec = dataclasses.replace(spec, prelude=())
        env = agent.env
        self._channel.send(ForkAgent(spec=spec.to_json(), env=env, cwd=_cwd(), umask=_umask()))

    def look(self) -> None:
        """Take what the process has said since."""
        with self._lock:
            self._drain()
            self._give_up_on_import()

    def _give_up_on_import(self) -> None:
        """Kill it if an agent waits for a library's import that does not end."""
        if not self._pending or not self._importing or self._process is None:
            return
        preludes = {home(name) for agent in self._pending for name in agent.spec.prelude}
        asked_for = self._importing in self._wanted or self._importing in preludes
        if asked_for and time.monotonic() - self._imports_since > IMPORT_S:
            words = f"its import did not end within {IMPORT_S:g} s"
            self._note(
                f"{self._importing}: {words}; what is preloaded is imported anew, without it"
            )
            self._unfit = ForkObstacle(module=self._importing, reason=words)
            self._process.kill()

    def drop(self, agent: ForkedAgent) -> None:
        """Wait no longer for this agent."""
        with self._lock:
            if agent in self._pending:
                self._pending.remove(agent)

    def give_up_on(self, agent: ForkedAgent) -> None:
        """Kill a forkserver that does not answer."""
        with self._lock:
            if agent in self._pending and self._process is not None:
                self._process.kill()

    @property
    def importing(self) -> str:
        """What it imports just now, by top-level name."""
        name = self._importing
        return name.removeprefix("ddp_magic.").partition(".")[0] if self._pending else ""

    def describe(self) -> Preloading:
        """Say how it is."""
        with self._lock:
            self._drain()
            if self._process is None or self._channel is None:
                return Preloading(state=f"off: {self.off}" if self.off else "not started")
            tops = dict.fromkeys(name.partition(".")[0] for name in self._files)
            pid = self._process.pid
            try:
                pss_mib = psutil.Process(pid).memory_full_info().pss / 2**20
            except psutil.Error:
                pss_mib = 0.0
            state = f"importing {self._importing}" if self._importing else "starting"
            return Preloading(
                state="ready" if self._ready else state,
                pid=pid,
                pss_mib=pss_mib,
                libraries=tuple(sorted(tops, key=str.lower)),
                left_out={**self._failed, **self._left_out},
            )


class ForkedAgent:
    """An agent that the forkserver forks, or has forked.

    Attributes:
        spec: What it is to run.
        env: Its environment.
        notes: What is to be said of its start.
    """

    def __init__(self, server: Forkserver, spec: AgentSpec, env: dict[str, str]) -> None:
        """Wait to be forked."""
        self.spec = spec
        self.env = env
        self.notes: list[str] = []
        self._server = server
        self._asked = time.monotonic()
        self._pidfd = -1
        self._placed: PlacedAgent | None = None
        self._dropped = False

    def forked(self, pid: int, pidfd: int) -> None:
        """It runs, as this process."""
        del pid  # known by the descriptor, which is never another process's
        self._pidfd = pidfd
        if self._dropped:
            self.kill()

    def placed_by(self, engine: Engine) -> None:
        """Have it placed by another engine."""
        if not self._dropped:
            self._placed = engine.start(self.spec, self.env)

    def fileno(self) -> int:
        """Return the process's pidfd, once there is one."""
        return self._pidfd if self._placed is None else self._placed.fileno()

    def ended(self) -> bool:
        """Tell whether it has ended, or will never start."""
        if self._pidfd < 0:
            self._server.look()
        if self._placed is not None:
            return self._placed.ended()
        if self._pidfd < 0:
            if time.monotonic() - self._asked > ANSWER_S:
                self._asked = time.monotonic()
                self._server.give_up_on(self)
            return self._dropped
        return bool(select.select([self._pidfd], [], [], 0)[0])

    def kill(self) -> None:
        """End it at once; its ranks carry PDEATHSIG."""
        if self._placed is not None:
            self._placed.kill()
        elif self._pidfd < 0:
            self._dropped = True
            self._server.drop(self)
        else:
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def close(self) -> None:
        """Close the pidfd."""
        if self._placed is not None:
            self._placed.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
            self._dropped = True

    def waits_for(self) -> str:
        """Say what the forkserver imports before it can fork."""
        name = self._server.importing if self._pidfd < 0 else ""
        return f"importing {name}" if name else ""

    def last_words(self) -> str:
        """Return the end of its log."""
        return last_words(RunDirectory(Path(self.spec.worker.directory)).agent_log)


def _anonymous_file() -> BinaryIO:
    if hasattr(os, "memfd_create"):  # in memory: no disk can be full
        return os.fdopen(os.memfd_create("forkserver-log"), "w+b")
    return tempfile.TemporaryFile()


def unsupported() -> str:
    """Say why there can be no forkserver here; empty if there can."""
    if sys.platform != "linux":
        return f"{sys.platform}, where a fork is unsafe"
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError):
        return "a system without pidfd"
    return ""


def _cwd() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:  # it has been removed
        return ""


def _umask() -> int:
    with open("/proc/self/status") as status:  # noqa: PTH123 -- os.umask would change it to tell
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022
