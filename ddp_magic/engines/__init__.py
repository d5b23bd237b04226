"""Engines: how one agent gets onto each node. The agent then starts the ranks there.

`local` has agents forked from a preloaded process, the forkserver; it is the usual way. `torchrun`
starts plain `torch.distributed.run`, for `--cold` and where there can be no forkserver. `slurm`,
`ray` and engines of other packages start a relay on each of several nodes (`remote`, `near_relay`).

How a rank starts, from the cell to its first message::

    kernel                  forkserver               agent                   rank
    ------                  ----------               -----                   ----
    1 group.start
    2 local.start
          ──ForkAgent──▶  3 forkserver._fork
          ◀──Forked,pidfd──         ──fork──▶    4 become_agent
                                                 5 agent.serve
          ◀─────────────AgentHello────────────────
                                                 6 elastic.run
                                                 7 ranks.fork   ──fork──▶  8 worker.main
          ◀─────────────WorkerHello, pipe───────────────────────────────────
    9 members.welcome
          ──────────────RunCell───────────────────────────────────────────▶

1. `kernel/worker_group/group.py`, `WorkerGroup.start`: listens on the run's socket and asks an
   engine for an agent. It sends the cell's commands when a rank connects.
2. `engines/local.py`, `LocalEngine.start`: starts a forkserver if none runs, or if what it has
   imported is out of date (`engines/forkserver.py` is the handle of one such process,
   `engines/preload_record.py` what is known of imports), and sends it `ForkAgent`. Returns a
   `ForkedAgent` (`engines/forked_agent.py`), whose process follows.
3. `node/forkserver.py`, `Forkserver._fork`: imports what the cell's prelude needs
   (`node/preloader.py`), forks, and sends `Forked` with the agent's pidfd.
4. `node/become_agent.py`, `become_agent`: the fork takes over the kernel's environment, working
   directory and module path.
5. `node/agent.py`, `serve`: connects to the socket, sends `AgentHello`, and watches the kernel from
   a thread.
6. `node/elastic.py`, `run`: torch's own elastic agent makes the rendezvous, sets RANK and its like
   for each rank, and calls `fork_ranks` in place of its `start_processes`.
7. `node/ranks.py`, `Ranks.fork`: forks each rank, in a session of its own, which dies with the
   agent; `run_worker` there sets its variables.
8. `worker/worker.py`, `main`: connects to the socket, sends `WorkerHello` with the read end of its
   stdout and stderr, makes the process group, and waits for commands.
9. `kernel/worker_group/members.py`, `Members.welcome`: the rank is a member of the group.

After a failure torch's agent may restart the ranks (`--max-restarts`), from step 6. The first hello
of the new attempt makes the kernel read what the old ranks have left, and forget them
(`Connections._restart`).

In a range of nodes (`-N 1:2`) the ranks are also restarted if a node is lost, which ends the agents
of all: the group starts again at step 2, without that node (`Placement.place_again`).

On several nodes, step 2 is `engines/remote.py`, `Remote.start`: the engine (`engines/slurm.py` or
`engines/ray.py`) starts `node/far_relay.py`, `main`, on each node, and that `node/node_agent.py`,
which continues with step 5. The relay there is the kernel to agent and ranks, and
`engines/near_relay.py` is these to the kernel.

The host of a background run is the kernel of that run. Its forkserver is a fork of the notebook's
(`LocalEngine.lend` and `adopt`, `engines/forkserver_process.py`), so that it starts as fast.

With `--cold`, `engines/torchrun.py` starts torch's launcher (`node/torchrun.py`, `main`), which
starts a keeper for each rank (`keep`); that continues with step 5 for its one rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ddp_magic.wire.kernel_events import OutsideEnd
from ddp_magic.wire.specs import AgentSpec

HERE = ("local", "torchrun")  # engines of this machine


@dataclass(frozen=True)
class Lost:
    """The loss of nodes that has ended the agents of all.

    Attributes:
        nodes: What the cluster calls them.
        how: How they were lost.
    """

    nodes: tuple[str, ...]
    how: OutsideEnd


class PlacedAgent(Protocol):
    """An agent that an engine has placed, or is about to place: or one on each of several nodes.

    Attributes:
        where: In words, on which nodes; empty for this machine.
    """

    where: str

    def fileno(self) -> int:
        """Return a descriptor that is readable once it has ended; -1 if there is none (yet)."""

    def ended(self) -> bool:
        """Return whether it has ended, or will never start."""

    def take_notes(self) -> list[str]:
        """Return the messages on its start for the user, each once."""

    def kill(self) -> None:
        """End it at once; its ranks die with it."""

    def close(self) -> None:
        """Release what is held for it; it has ended."""

    def granted(self) -> int:
        """Return on how many nodes it runs; 0 while that is not known."""

    def lost(self) -> Lost | None:
        """Return the nodes whose loss has ended it; None if it ended otherwise."""

    def waits_for(self) -> str:
        """Return in a few words what its start waits for; empty if for nothing."""

    def last_words(self) -> str:
        """Return the end of what it wrote to its own stdout and stderr."""

    def outside_end(self) -> OutsideEnd | None:
        """Return how it was ended from outside, once it has ended; None if that is not known."""


class Engine(Protocol):
    """A way to place agents."""

    def start(self, spec: AgentSpec, env: dict[str, str]) -> PlacedAgent:
        """Place an agent; returns before it is up.

        Args:
            spec: What it is to run.
            env: The whole environment of the agent and its ranks.
        """


class Job(Protocol):
    """The relays that an engine of several nodes has started, one on each, or is about to.

    Attributes:
        stdin: Descriptor of a stream whose bytes every relay reads from its stdin.
        stdout: Descriptor of a stream with the lines that all relays write to their stdout; each
            line whole.
        name: What a person calls it: `Slurm job 15.0`; empty if that is not known.
    """

    stdin: int
    stdout: int
    name: str

    def waits_for(self) -> str:
        """Return in a few words what its start waits for; empty if for nothing."""

    def running(self, job: str) -> None:
        """Note that a relay runs, with the values of the engine's `job_variables` there."""

    def fate(self) -> str:
        """Return what the cluster did to it, as the rest of a sentence; empty if nothing.

        It is asked at the end: `was cancelled due to time limit`, `lost n2: node failure`.
        """

    def lost(self) -> str:
        """Return the node that the cluster has lost first, by its name there; empty if none."""

    def cancel(self) -> None:
        """End it. Returns at once; may be called twice, and from any thread."""

    def wait(self) -> int:
        """Wait for its end, and return an exit code."""


@dataclass(frozen=True)
class Choice:
    """The choice of an engine between numbers of nodes: it is to take as many as it can have.

    Attributes:
        least: The fewest that will do.
        without: Nodes that were lost, and are not to be used; an engine whose cluster notices that
            by itself need not heed them.
    """

    least: int
    without: tuple[str, ...] = ()


class NodesEngine(Protocol):
    """An engine of several nodes: it starts one command on each, and connects their streams.

    A package adds one by an entry point of the group `ddp_magic.engines`; a module with these
    names will do, as `engines.slurm`.

    Attributes:
        START: Names of variables on the nodes: `node_name_variable` (the node's name in the
            cluster), `toward` (an address on the nodes' network), `job_variables` (which
            identify the job), `node_count_variable` (how many nodes there are; without it, there
            can be no range, `-N 1:2`). Any may be empty.
    """

    START: Mapping[str, object]

    def problem(self) -> str:
        """Return why it cannot be used here; empty if it can."""

    def problem_of(self, arguments: Sequence[str]) -> str:
        """Return which of the user's arguments cannot be used; empty if all can."""

    def launch(
        self,
        agent: Sequence[str],
        *,
        nnodes: int,
        nproc: int,
        arguments: Sequence[str],
        env: Mapping[str, str],
        log: Callable[[bytes], None],
        choice: Choice | None = None,
    ) -> Job:
        """Start the command `agent` on each node; returns before that runs.

        The command is given one more argument: the name of an environment variable that has the
        number of the node there, from 0. The kernel's end ends what was started.

        Args:
            agent: The command.
            nnodes: Number of nodes.
            nproc: Number of ranks on each.
            arguments: The user's arguments for this engine.
            env: The environment of the agents and ranks.
            log: Is to be called with what the engine says.
            choice: Which other nodes will do; given only where some do.
        """
