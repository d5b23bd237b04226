"""What a rank takes anew."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from ddp_magic.worker import fresh_state


@pytest.fixture(autouse=True)
def _generators() -> Iterator[None]:
    """Restore the state of the three generators."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])


def _draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(1))


@pytest.mark.parametrize("value", [0, -1, 2**40])
def test_a_seed_seeds_all_generators(value: int) -> None:
    """NumPy's takes 32 bits only."""
    fresh_state.seed(value)
    first = _draw()
    fresh_state.seed(value)
    assert _draw() == first
    assert all(a != b for a, b in zip(_draw(), first, strict=True))


def test_without_a_seed_nothing_is_seeded() -> None:
    fresh_state.seed(3)
    first = _draw()
    fresh_state.seed(3)
    fresh_state.seed(None)
    assert _draw() == first
