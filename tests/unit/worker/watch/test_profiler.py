"""The profile of one cell."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import torch
from torch.optim import optimizer as torch_optimizer

from ddp_magic.wire.profile import RankProfile, read
from ddp_magic.worker.watch.profiler import Steps, profiled


def _names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def _read(path: Path) -> RankProfile:
    found = read(path.open())
    assert found is not None
    return found


def test_without_a_file_nothing_runs() -> None:
    hooks = len(torch_optimizer._global_optimizer_post_hooks)
    with profiled(None, 0, "cpu"):
        assert "ddp_magic_profile" not in _names()
        assert len(torch_optimizer._global_optimizer_post_hooks) == hooks


def test_a_cell_is_measured_to_its_end(tmp_path: Path) -> None:
    """And nothing is left of it then."""
    with profiled(tmp_path / "p", 3, "cpu"):
        assert "ddp_magic_profile" in _names()
        time.sleep(0.3)
    assert "ddp_magic_profile" not in _names()
    found = _read(tmp_path / "p")
    assert (found.rank, found.complete) == (3, True)
    assert found.ended - found.began >= 0.3
    assert len(found.samples) >= 3


def test_steps_of_optimizers_are_noted(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    optimizer = torch.optim.SGD([weight])
    with profiled(tmp_path / "p", 0, "cpu"):
        for _ in range(3):
            optimizer.step()
    optimizer.step()
    assert len(_read(tmp_path / "p").steps) == 3


def test_two_optimizers_that_take_turns_make_one_step() -> None:
    steps = Steps()
    generator, discriminator = object(), object()
    for _ in range(3):
        steps.note(generator)
        steps.note(discriminator)
    assert len(steps.take()) == 3
    assert steps.take() == []


def test_an_optimizer_that_replaces_another_goes_on() -> None:
    """A loop over learning rates makes one after the other."""
    steps = Steps()
    for optimizer in (object(), object()):
        for _ in range(10):
            steps.note(optimizer)
    assert len(steps.take()) >= 19


def test_a_file_that_cannot_be_written_does_not_disturb_the_cell(tmp_path: Path) -> None:
    with profiled(tmp_path / "no" / "p", 0, "cpu"):
        time.sleep(0.1)
    assert not (tmp_path / "no").exists()
