"""Engines: what gets one agent onto each node. How a rank starts there is the agent's affair.

General layout: `forkserver` (the preloaded process of this machine's kernel; the usual way) and
`torchrun` (plain `torch.distributed.run`).
"""

from __future__ import annotations

from typing import Protocol

from ddp_magic.wire.specs import AgentSpec


class PlacedAgent(Protocol):
    """An agent that an engine has placed, or is about to place.

    Attributes:
        notes: What is to be said of its start; whoever says it takes it away.
    """

    notes: list[str]

    def fileno(self) -> int:
        """Return a descriptor that is readable once it has ended; -1 if there is none (yet)."""

    def ended(self) -> bool:
        """Tell whether it has ended, or will never start."""

    def kill(self) -> None:
        """End it at once; its ranks die with it."""

    def close(self) -> None:
        """Let go of what is held for it; it has ended."""

    def waits_for(self) -> str:
        """Say in a few words what its start waits for; empty if for nothing."""

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
