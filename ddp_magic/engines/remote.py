"""Agents on several nodes, as a worker group sees them: one thing that is placed, ends, is killed.

An engine of several nodes has only to start the far relay on each node (`node.far_relay`), which
starts the agent there; see `NodesEngine`.
"""

from __future__ import annotations

import difflib
import importlib
import shlex
import time
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from ddp_magic.engines import HERE, Choice, Job, Lost, NodesEngine
from ddp_magic.engines.near_relay import NearRelay
from ddp_magic.system.entry_points import RELAY, command, last_words
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.kernel_events import OutsideEnd
from ddp_magic.wire.relay_frames import NodeEnd
from ddp_magic.wire.specs import AgentSpec

GROUP = "ddp_magic.engines"  # entry points of other packages
OURS = {"slurm": "ddp_magic.engines.slurm", "ray": "ddp_magic.engines.ray"}
END_S = 10.0  # for the end of a job that is cancelled
FEW_NODES = 4  # so many are listed
QUIET_S = 8.0  # for a node to be silent, before that is said


def names() -> list[str]:
    """Return the names of all engines."""
    return [*HERE, *OURS, *(point.name for point in metadata.entry_points(group=GROUP))]


def find(name: str) -> NodesEngine:
    """Return an engine of several nodes.

    Raises:
        ValueError: There is none of this name, or its package cannot be imported.
    """
    if name in OURS:
        found: NodesEngine = importlib.import_module(OURS[name])
        return found
    points = {point.name: point for point in metadata.entry_points(group=GROUP)}
    if name not in points:
        near = difflib.get_close_matches(name.lower(), names(), n=1)
        *first, last = names()
        advice = f"did you mean {near[0]}?" if near else f"use {', '.join(first)} or {last}"
        raise ValueError(f"unknown engine {name!r}: {advice}")
    try:
        loaded: NodesEngine = points[name].load()
    except Exception as error:
        raise ValueError(
            f"engine {name!r} ({points[name].value}) cannot be loaded: {error!r}"
        ) from error
    return loaded


class Remote:
    """An engine of several nodes, as one that places agents.

    Args:
        name: Its name.
        arguments: The user's arguments for it, as one text.
    """

    def __init__(self, name: str, arguments: str) -> None:
        self._engine = find(name)
        self._arguments = shlex.split(arguments)

    def start(self, spec: AgentSpec, env: dict[str, str]) -> RemoteAgents:
        """Place an agent on each node; returns before they are up."""
        return RemoteAgents(self._engine, spec, env, self._arguments)


class RemoteAgents:
    """The agents of a run on several nodes, or about to be there."""

    def __init__(
        self, engine: NodesEngine, spec: AgentSpec, env: dict[str, str], arguments: Sequence[str]
    ) -> None:
        self._directory = RunDirectory(Path(spec.worker.directory))
        self._spec = spec
        self._told = False
        self.where = ""
        self._died: set[int] = set()
        choice: dict[str, Any] = {}
        if spec.min_nodes:
            choice["choice"] = Choice(spec.min_nodes, spec.without)
        launch = partial(
            engine.launch,
            command(RELAY),
            nnodes=spec.nnodes,
            nproc=spec.nproc,
            arguments=arguments,
            env=env,
            log=self._directory.log_agent,
            **choice,
        )
        self._relay = NearRelay(spec, dict(engine.START), launch)

    def fileno(self) -> int:
        """Return -1: its end is found by polling."""
        return -1

    def ended(self) -> bool:
        """Return whether everything has ended, and what it said has arrived."""
        self._relay.look()
        return self._relay.ended.is_set()

    def take_notes(self) -> list[str]:
        """Return where the agents run, and which ended without a report, each once."""
        notes = []
        nodes = self._relay.nodes
        if not self._told and nodes.hosts and len(nodes.hosts) == nodes.count:
            self._told = True
            hosts = ", ".join(nodes.hosts[node] for node in sorted(nodes.hosts))
            self.where = " on ".join(filter(None, [self._job_name(), hosts]))
            notes.append(self.where)
        for node, how in list(nodes.ended.items()):
            first = nodes.lost in ("", nodes.names.get(node))  # others end because of that one
            if how is NodeEnd.DIED and first and node not in self._died:
                self._died.add(node)
                host = nodes.name(node)
                notes.append(f"the agent on {host} ended without a report, and its ranks with it")
        return notes

    def _job_name(self) -> str:
        job: Job | None = self._relay.job
        return "" if job is None else job.name

    def kill(self) -> None:
        """End it; the ranks end with their agents."""
        self._relay.cancel()

    def close(self) -> None:
        """Release what is held; it has ended, or ends now."""
        if not self.ended():
            self._relay.cancel()
            self._relay.ended.wait(END_S)

    def granted(self) -> int:
        """Return how many nodes the cluster has given; 0 before the first is up."""
        return self._relay.nodes.count

    def lost(self) -> Lost | None:
        """Return the nodes whose loss has ended the job; None if it ended otherwise."""
        relay, job = self._relay, self._relay.job
        if job is None:
            return None
        nodes = relay.nodes
        if nodes.lost:
            how = OutsideEnd(text=nodes.lost_how, time=nodes.lost_at)
            return Lost((nodes.lost,), how)
        _, when = nodes.signaled or (0, relay.broke)
        if name := job.lost():
            text = f"{job.name or 'the job'} {job.fate()}"
            return Lost((name,), OutsideEnd(text=text, time=when))
        if relay.cancelled or job.fate() or not (left := nodes.without_an_end()):
            return None
        text = f"{', '.join(map(nodes.name, left))} {'were' if len(left) > 1 else 'was'} lost"
        return Lost(tuple(nodes.names[node] for node in left), OutsideEnd(text=text, time=when))

    def waits_for(self) -> str:
        """Return what it waits for: its turn in the queue, the nodes, one that is silent."""
        job, nodes = self._relay.job, self._relay.nodes
        up = [nodes.hosts[node] for node in sorted(nodes.hosts)]
        if job is not None and (words := job.waits_for()):
            return words
        if not up:
            return "waiting for the nodes"
        if len(up) < nodes.count:
            names = f": {', '.join(up)}" if len(up) <= FEW_NODES else ""
            return f"{len(up)} of {nodes.count} nodes {'are' if len(up) > 1 else 'is'} up{names}"
        return nodes.quiet_words(time.monotonic(), QUIET_S)

    def last_words(self) -> str:
        """Return the end of what the engine and the agents wrote."""
        return last_words(self._directory.agent_log)

    def outside_end(self) -> OutsideEnd | None:
        """Return how the cluster has ended the job; None if the kernel did, or nobody."""
        relay, job = self._relay, self._relay.job
        if relay.error:
            what = "the job could not be started" if job is None else "lost the nodes"
            return OutsideEnd(text=f"{what}: {relay.error}", time=relay.broke)
        if job is None or (relay.cancelled and relay.nodes.signaled is None):
            return None
        words = relay.nodes.outside_words()
        if relay.nodes.hosts and not words:
            return None
        if self._spec.without and not relay.nodes.hosts:
            least = f"{self._spec.min_nodes} node{'s' if self._spec.min_nodes > 1 else ''}"
            lost = ", ".join(self._spec.without)
            text = f"the run needs at least {least}, which it cannot have without {lost} (lost)"
            return OutsideEnd(text=text, time=relay.broke)
        if not (fate := job.fate() or words):
            return None
        _, when = relay.nodes.signaled or (0, relay.broke)
        return OutsideEnd(text=f"{job.name or 'the job'} {fate}", time=when)
