"""What a verdict on a run is made from besides times, and the verdict itself. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """The collectives of the time that is judged.

    Attributes:
        per_step: How many a step has; None without steps.
        mean_bytes: Their mean size; None if there is no record of any.
        sharded: Whether they gather and scatter shards, as FSDP's.
    """

    per_step: float | None = None
    mean_bytes: float | None = None
    sharded: bool = False


@dataclass(frozen=True)
class Machine:
    """What the ranks run on.

    Attributes:
        processors: Number of processors.
        threads: Number of threads of each rank's operations.
    """

    processors: int
    threads: int = 1


@dataclass(frozen=True)
class Bottleneck:
    """What limits a run.

    Attributes:
        verdict: What it is, in a sentence.
        why: What that is concluded from.
        advice: The change to try next, and what it can save at most.
    """

    verdict: str
    why: str
    advice: str

    @property
    def lines(self) -> list[str]:
        """The three lines to show."""
        named = {"Verdict": self.verdict, "Why": self.why, "Next": self.advice}
        return [f"{name + ':':9}{text}" for name, text in named.items() if text]
