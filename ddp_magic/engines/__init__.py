"""Engines: what gets one agent onto each node. How a rank starts there is the agent's affair.

An engine is a module with a function `start(spec, env) -> PlacedAgent`.
"""

from __future__ import annotations

from typing import Protocol


class PlacedAgent(Protocol):
    """An agent that an engine has placed."""

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs (as `subprocess.Popen.poll`)."""

    def kill(self) -> None:
        """End it at once; its ranks die with it."""

    def last_words(self) -> str:
        """Return the end of what it wrote to its own stdout and stderr."""
