"""Engines: how one agent gets onto each node. The agent then starts the ranks there.

`local` has agents forked from a preloaded process, the forkserver; it is the usual way. `torchrun`
starts plain `torch.distributed.run`, for `--cold` and where there can be no forkserver.

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
    9 connections._welcome
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
9. `kernel/worker_group/connections.py`, `Connections._welcome`: the rank is a member of the group.

After a failure torch's agent may restart the ranks (`--max-restarts`), from step 6. The first hello
of the new attempt makes the kernel read what the old ranks have left, and forget them
(`Connections._restart`).

With `--cold`, `engines/torchrun.py` starts torch's launcher (`node/torchrun.py`, `main`), which
starts a keeper for each rank (`keep`); that continues with step 5 for its one rank.
"""

from __future__ import annotations

from typing import Protocol

from ddp_magic.wire.specs import AgentSpec


class PlacedAgent(Protocol):
    """An agent that an engine has placed, or is about to place."""

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

    def waits_for(self) -> str:
        """Return in a few words what its start waits for; empty if for nothing."""

    def last_words(self) -> str:
        """Return the end of what it wrote to its own stdout and stderr."""


class Engine(Protocol):
    """A way to place agents."""

    def start(self, spec: AgentSpec, env: dict[str, str]) -> PlacedAgent:
        """Place an agent; returns before it is up.

        Args:
            spec: What it is to run.
            env: The whole environment of the agent and its ranks.
        """
