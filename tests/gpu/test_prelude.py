"""Fine-tuning on a GPU: each arithmetic learns, and scores are those of a CPU."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import ddp_magic
from ddp_magic.prelude import SamDataset, cells, evaluate, predict, segment, tiny_sam, train
from tests.limits import LONG_S
from tests.sam.family import FAMILY, build

pytestmark = pytest.mark.gpu

Sets = tuple[SamDataset, SamDataset]


@pytest.fixture(scope="module")
def sets() -> Sets:
    """Drawn cells for training, and held out."""
    return SamDataset(*cells(n=64)), SamDataset(*cells(n=8, seed=1))


@pytest.mark.parametrize("amp", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("tune", ["full", "decoder", "lora"])
def test_training_learns(sets: Sets, tune: str, amp: str, tmp_path: Path) -> None:
    """The loss falls, the checkpoint is there, and a click gets a mask."""
    sam = tiny_sam()
    history = train(
        sam, *sets, epochs=4, batch_size=8, tune=tune, amp=amp, ema=0.9, workers=1, out_dir=tmp_path
    )
    assert next(sam.parameters()).is_cuda
    losses = [row["train_loss"] for row in history]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert (tmp_path / "best" / "config.json").exists()
    assert predict(sam, cells(n=1)[0][0], (20, 20)).shape == (64, 64)


def test_muon_learns(sets: Sets) -> None:
    """Its matrices are orthogonalized on the GPU."""
    history = train(tiny_sam(), *sets, epochs=4, batch_size=8, optimizer="muon", lr=5e-3, rounds=1)
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_scores_are_those_of_a_cpu(sets: Sets) -> None:
    """Float sums differ in their order: here and there a pixel of a mask does."""
    sam = tiny_sam()
    train(sam, *sets, epochs=2, batch_size=8, rounds=1)
    there = evaluate(sam, sets[1])
    here = evaluate(sam.cpu(), sets[1])
    for name in ("dice", "iou", "accuracy"):
        assert abs(there[name] - here[name]) < 0.01


def test_resuming_goes_on(sets: Sets, tmp_path: Path) -> None:
    """Where a run was interrupted: its state comes back to the GPU, random numbers too."""
    options = {"batch_size": 8, "rounds": 1, "ema": 0.9, "amp": "fp16"}
    train(tiny_sam(), *sets, epochs=2, out_dir=tmp_path, **options)
    torch.manual_seed(1)
    sam = tiny_sam()
    history = train(sam, *sets, epochs=3, out_dir=tmp_path, resume=True, **options)
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert history[-1]["train_loss"] < history[0]["train_loss"]


@pytest.mark.parametrize("tune", ["full", "decoder"])
@pytest.mark.parametrize("kind", FAMILY)
def test_each_family(sets: Sets, kind: str, tune: str) -> None:
    """Every kind of prompt is trained in bfloat16, and the model finds objects by itself."""
    sam = build(kind)
    shares = {"points": 0.4, "boxes": 0.3, "masks": 0.3}
    (row,) = train(
        sam, *sets, epochs=1, batch_size=8, rounds=2, prompts=shares, tune=tune, amp="bf16"
    )
    assert np.isfinite([row["train_loss"], row["dice"]]).all()
    assert segment(sam, cells(n=1)[0][0], points_per_side=4).shape == (64, 64)


@pytest.mark.timeout(3 * LONG_S)
def test_the_encoder_is_compiled(sets: Sets) -> None:
    """By inductor, with the same losses as without."""
    options = {"epochs": 1, "batch_size": 8, "rounds": 1}
    (plain,) = train(tiny_sam(), *sets, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inductor's and triton's own
        (compiled,) = train(tiny_sam(), *sets, compile=True, **options)
    assert abs(plain["train_loss"] - compiled["train_loss"]) < 0.02 * plain["train_loss"]


def _one_epoch(batch_size: int) -> tuple[list[float], str]:
    """Train on all ranks; return the epochs' losses and Dice, and the rank's device."""
    sets = SamDataset(*cells(n=32)), SamDataset(*cells(n=8, seed=1))
    sam = tiny_sam()
    history = train(sam, *sets, epochs=2, batch_size=batch_size, rounds=1, lr=1e-3)
    found = [row[name] for row in history for name in ("train_loss", "dice")]
    return found, str(next(sam.parameters()).device)


def test_two_ranks_equal_one() -> None:
    """Half the batch each, here on one GPU by gloo: the same but for the order of float sums."""
    runs = [
        ddp_magic.launch(_one_epoch, 16 // n, nproc_per_node=n, gpus="0", backend="gloo")
        for n in (1, 2)
    ]
    (one, device), (two, also) = runs[0].results[0], runs[1].results[0]
    assert device == also == "cuda:0"
    np.testing.assert_allclose(one, two, atol=0.02)
