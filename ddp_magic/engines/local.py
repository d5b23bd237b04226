"""The engine of this machine: it has agents forked from a preloaded process, its forkserver."""

from __future__ import annotations

import dataclasses
import re
import socket
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType

from ddp_magic.engines import Engine, PlacedAgent
from ddp_magic.engines.current_forkserver import CurrentForkserver
from ddp_magic.engines.forked_agent import ForkedAgent
from ddp_magic.engines.forkserver import Forkserver
from ddp_magic.engines.waiting_agents import WaitingAgents
from ddp_magic.prelude import home
from ddp_magic.system import libraries
from ddp_magic.system.entry_points import FORKSERVER
from ddp_magic.system.entry_points import command as entry_command
from ddp_magic.wire.events import Forked, ForkObstacle, Preloaded
from ddp_magic.wire.forkserver_status import ForkserverStatus
from ddp_magic.wire.specs import AgentSpec

IMPORT_S = 30.0  # for a library while an agent waits; then a process of its own tries it
STOPPED_S = 2.0  # for a forkserver; a profiler or a debugger stops it for a moment


class LocalEngine:
    """Has agents forked from this machine's forkserver.

    It starts one in the background, and another when that has died or what it has imported is out
    of date (`current_forkserver`). If there can be none, the fallback places the agents.

    Args:
        fallback: The engine that places agents without a forkserver.
        command: What starts a forkserver.
    """

    def __init__(self, fallback: Engine, command: Sequence[str] = ()) -> None:
        self._fallback = fallback
        self._lock = threading.RLock()  # a cell may run in a thread of its own (a subshell)
        # One that dies between two cells is replaced at once.
        self._current = CurrentForkserver(command or entry_command(FORKSERVER), self.look)
        self._seen: set[str] = set()  # modules of the notebook's process
        self._cell_words: set[str] = set()  # of all cells
        self._waiting = WaitingAgents()
        if self.off:
            self._waiting.note(f"nothing is preloaded on {self.off}; torchrun starts the ranks")

    @property
    def used(self) -> bool:
        """Whether it has been asked for anything: to start, to import, to close."""
        return self._current.used

    @property
    def off(self) -> str:
        """Why there is to be no forkserver; empty if there may be one."""
        return self._current.off

    # --- the forkserver -----------------------------------------------------------------------

    def launch(self, env: dict[str, str] | None = None) -> None:
        """Start a forkserver if none runs. Returns at once.

        Args:
            env: The environment of the ranks it is for; None for that of the kernel as it is.
        """
        with self._lock:
            self._current.launch(env)

    def lend(self, end: socket.socket, host_pid: int, env: dict[str, str]) -> None:
        """Have a forkserver forked for a host that has just been started, if there is one.

        Args:
            end: The end of a pair of sockets whose other one the host has; it is closed here.
            host_pid: The host.
            env: The environment of its ranks.
        """
        with self._lock, end:
            if not self.off:
                self._drain()
                self._current.lend(end.fileno(), host_pid, env)

    def adopt(self, fd: int) -> None:
        """Use the forkserver that the notebook's has forked for this process, a host.

        Args:
            fd: The connection to it. It ends at once if none could be forked; then this engine
                starts one.
        """
        with self._lock:
            self._current.adopt(fd)

    def want(self, modules: Iterable[str]) -> None:
        """Have these libraries imported when the forkserver has nothing else to do."""
        with self._lock:
            self._current.want(modules)

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
            # Not while it imports: a library that the notebook has just imported may have set the
            # variable, and will set it in the forkserver too.
            # Nor while it forks: nobody would hear of the agent's end without its pidfd.
            forkserver = self._current.now
            if forkserver is not None and forkserver.ready and not self._waiting:
                self._current.retire_if_out_of_date(sys.path)
            self.launch()

    def begin_cell(self, modules: Mapping[str, ModuleType], text: str) -> None:
        """Ignore what has been imported since the last cell, as TAB imports jedi and more.

        Args:
            modules: The kernel's `sys.modules`.
            text: The cell.
        """
        with self._lock:
            self._seen.update(list(modules))
            self._cell_words.update(re.findall(r"\w+", text))

    def close(self, *, at_once: bool = False) -> None:
        """End the forkserver; agents that run go on to their end.

        Args:
            at_once: Also while it imports something. There are no agents.
        """
        with self._lock:
            self._current.close(at_once=at_once)

    # --- its reports --------------------------------------------------------------------------

    def look(self) -> None:
        """Take what the forkserver has reported."""
        with self._lock:
            self._drain()
            self._kill_on_endless_import()
            self._kill_if_stopped()

    def _drain(self) -> None:
        while (forkserver := self._current.now) is not None:
            reports = forkserver.receive()
            if reports is None:
                self._replace_dead(forkserver)
            if not reports:
                return
            for event, fd in reports:
                match event:
                    case Preloaded():
                        if forkserver.ready:
                            self._decide(forkserver)
                    case Forked(run_id=run_id):
                        self._waiting.forked(run_id, fd)
                        if forkserver.ready:
                            self._decide(forkserver)
                    case _:
                        pass

    def _decide(self, forkserver: Forkserver) -> None:
        """Fork the agents that waited until it was known whether the forkserver is good for them.

        Those that can be forked come first; when they have been, another forkserver takes the rest.
        """
        if not (agents := self._waiting.take_undecided()):
            return  # or it has yet to fork others, and is asked again then
        late = [a for a in agents if forkserver.out_of_date(a.spec.sys_path, a.env)]
        for agent in agents:
            if agent not in late:
                self._request(agent)
        if agents == late:
            self._current.retire_if_out_of_date(agents[0].spec.sys_path, agents[0].env)
            self._explain_slow_start(agents[0])
            self._start_for_waiting()
        else:
            self._waiting.leave_undecided(late)

    def _replace_dead(self, forkserver: Forkserver) -> None:
        """Find out why it died, and start another one."""
        death = self._current.bury(forkserver)
        self._waiting.leave_undecided([])
        if death is not None and death.final:
            self._give_up(death.reason, forkserver.env)
            return
        if death is not None and death.first:
            slow = "this start is slow, the next one is not"
            self._waiting.note(
                f"{death.reason}: {slow if self._waiting else 'another one was started'}"
            )
        self._start_for_waiting()  # also between two cells: it learns what it can preload

    def _start_for_waiting(self) -> None:
        agents = list(self._waiting)
        self.launch(agents[0].env if agents else None)
        for agent in agents:
            self._request(agent)

    def _give_up(self, reason: str, env: dict[str, str]) -> None:
        self._current.give_up(reason, env)
        self._waiting.note(f"{reason}: torchrun starts the ranks from now on")
        self._waiting.place_with(self._fallback)

    # --- agents -------------------------------------------------------------------------------

    def start(self, spec: AgentSpec, env: dict[str, str]) -> PlacedAgent:
        """Have an agent forked; without a forkserver, let the fallback place it."""
        with self._lock:
            self._drain()
            self._current.try_again(env)
            undecided = False
            if (forkserver := self._current.now) is not None and not self.off:
                undecided = forkserver.may_set_what_differs(env, self._cell_words)
                if self._waiting:  # other threads' agents, which it has yet to fork
                    undecided = undecided or bool(forkserver.out_of_date(spec.sys_path, env))
                elif not undecided:
                    self._current.retire_if_out_of_date(spec.sys_path, env)
            self.launch(env)
            agent = ForkedAgent(self, spec, env)
            self._waiting.take_notes(agent)
            self._explain_slow_start(agent)
            if self.off:
                agent.place_with(self._fallback)
                return agent
            self._waiting.add(agent, undecided=undecided)
            if not undecided:
                self._request(agent)
            return agent

    def _explain_slow_start(self, agent: ForkedAgent) -> None:
        if reason := self._current.take_slow_start():
            agent.note(reason)

    def _request(self, agent: ForkedAgent) -> None:
        spec = agent.spec
        if self._current.record.only_torch:
            spec = dataclasses.replace(spec, prelude=())
        if self._current.now is not None:
            self._current.now.fork_agent(spec, agent.env)

    def _kill_on_endless_import(self) -> None:
        """Kill the forkserver if an agent waits for a library's import that does not end."""
        forkserver = self._current.now
        if forkserver is None or not self._waiting or forkserver.importing_for_s < IMPORT_S:
            return
        if (module := forkserver.importing) == "":  # the notebook's is busy, and has not forked it
            forkserver.kill()
            return
        preludes = {home(name) for agent in self._waiting for name in agent.spec.prelude}
        if module in {*self._current.record.wanted, *preludes}:
            reason = f"its import did not end within {IMPORT_S:g} s"
            self._waiting.note(f"{module}: {reason}; reimporting the other preloaded libraries")
            forkserver.kill(ForkObstacle(module=module, reason=reason))

    def _kill_if_stopped(self) -> None:
        """Kill the forkserver if an agent waits for it and it is stopped: another one starts."""
        forkserver = self._current.now
        if forkserver is not None and self._waiting and forkserver.stopped_for_s > STOPPED_S:
            self._waiting.note("the forkserver was stopped (SIGSTOP), and is replaced")
            forkserver.kill()

    def drop(self, agent: ForkedAgent) -> None:
        """Stop waiting for this agent."""
        with self._lock:
            self._waiting.remove(agent)

    def give_up_on(self, agent: ForkedAgent) -> None:
        """Kill a forkserver that does not answer."""
        with self._lock:
            if agent in self._waiting and self._current.now is not None:
                self._current.now.kill()

    @property
    def importing(self) -> str:
        """The library that the forkserver imports while an agent waits, by top-level name."""
        module = self._current.now.importing if self._current.now and self._waiting else ""
        return module.removeprefix("ddp_magic.").partition(".")[0]

    def describe(self) -> ForkserverStatus:
        """Return what `%ddp_status` shows."""
        with self._lock:
            self._drain()
            return self._current.status()
