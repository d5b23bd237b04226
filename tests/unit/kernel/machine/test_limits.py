"""How many ranks a machine can hold."""

from __future__ import annotations

import pytest

from ddp_magic.kernel.machine.limits import most_ranks, too_many


@pytest.mark.parametrize(
    ("nproc", "problem"),
    [
        (5000, ""),
        (5001, "5,001 ranks are too many for this machine, which has 20,000 MiB: use a smaller"),
    ],
)
def test_the_smallest_limit_counts(nproc: int, problem: str) -> None:
    found = too_many(nproc, {"20,000 MiB": 5000, "32,768 processes": 10_000})
    assert found.startswith(problem)
    assert bool(found) == bool(problem)


def test_this_machine_holds_more_than_it_runs_well() -> None:
    """No count is refused that could run."""
    assert min(most_ranks().values()) >= 64
