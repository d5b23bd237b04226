"""How long a group waits for ranks and agents to end by themselves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Times in seconds; a test has its own.

    Attributes:
        lost_s: Between the end of a rank's connection and the news of its process's end.
        report_s: More for an agent to report that end.
        attempt_end_s: For the end of the ranks' connections and text, before they are restarted.
        agent_end_s: For the agents to end what the ranks left behind, and themselves.
    """

    lost_s: float = 2.0
    report_s: float = 3.0
    attempt_end_s: float = 3.0
    agent_end_s: float = 60.0


PATIENCE = Patience()
