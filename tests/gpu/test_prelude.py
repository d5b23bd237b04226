"""Fine-tuning on a GPU: each arithmetic learns, and scores are those of a CPU."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import optim
from torch.utils.data import DataLoader

import ddp_magic
from ddp_magic.prelude import (
    Muon,
    PromptedSam,
    SamDataset,
    cells,
    evaluate,
    predict,
    segment,
    tiny_sam,
    train,
    tune,
)
from tests.limits import LONG_S
from tests.sam.family import FAMILY, build

pytestmark = pytest.mark.gpu

Sets = tuple[SamDataset, SamDataset]


@pytest.fixture(scope="module")
def sets() -> Sets:
    """Drawn cells for training, and held out."""
    return SamDataset(*cells(n=64)), SamDataset(*cells(n=8, seed=1))


@pytest.mark.parametrize("amp", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("what", ["full", "decoder", "lora"])
def test_training_learns(sets: Sets, what: str, amp: str, tmp_path: Path) -> None:
    """The loss falls, the checkpoint is there, and a click gets a mask."""
    sam = tiny_sam()
    wrapper = PromptedSam(tune(sam, what), amp=amp)
    loader = DataLoader(sets[0], 8, shuffle=True, num_workers=1, pin_memory=True)
    history = train(wrapper, loader, sets[1], epochs=4, out_dir=tmp_path)
    assert next(sam.parameters()).is_cuda
    losses = [row["train_loss"] for row in history]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert (tmp_path / "best" / "config.json").exists()
    assert predict(sam, cells(n=1)[0][0], (20, 20)).shape == (64, 64)


def test_muon_learns(sets: Sets) -> None:
    """Its matrices are orthogonalized on the GPU."""
    model = PromptedSam(tiny_sam(), rounds=1)
    history = train(model, *sets, epochs=4, optimizer=lambda _: Muon(model, lr=5e-3))
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_scores_are_those_of_a_cpu(sets: Sets) -> None:
    """Float sums differ in their order: here and there a pixel of a mask does."""
    sam = tiny_sam()
    train(PromptedSam(sam, rounds=1), *sets, epochs=2, batch_size=8)
    there = evaluate(sam, sets[1])
    here = evaluate(sam.cpu(), sets[1])
    for name in ("dice", "iou", "accuracy"):
        assert abs(there[name] - here[name]) < 0.01


def test_resuming_goes_on(sets: Sets, tmp_path: Path) -> None:
    """Where a run was interrupted: its state comes back to the GPU, random numbers too."""
    sam = PromptedSam(tiny_sam(), rounds=1, amp="fp16")
    train(sam, *sets, epochs=2, batch_size=8, out_dir=tmp_path)
    torch.manual_seed(1)
    sam = PromptedSam(tiny_sam(), rounds=1, amp="fp16")
    history = train(sam, *sets, epochs=3, batch_size=8, out_dir=tmp_path, resume=True)
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert history[-1]["train_loss"] < history[0]["train_loss"]


@pytest.mark.parametrize("what", ["full", "decoder"])
@pytest.mark.parametrize("kind", FAMILY)
def test_each_family(sets: Sets, kind: str, what: str) -> None:
    """Every kind of prompt is trained in bfloat16, and the model finds objects by itself."""
    sam = build(kind)
    shares = {"points": 0.4, "boxes": 0.3, "masks": 0.3}
    wrapper = PromptedSam(tune(sam, what), shares, rounds=2, amp="bf16")
    (row,) = train(wrapper, *sets, epochs=1, batch_size=8)
    assert np.isfinite([row["train_loss"], row["dice"]]).all()
    assert segment(sam, cells(n=1)[0][0], points_per_side=4).shape == (64, 64)


@pytest.mark.timeout(3 * LONG_S)
def test_the_encoder_is_compiled(sets: Sets) -> None:
    """By inductor, with the same losses as without."""
    (plain,) = train(PromptedSam(tiny_sam(), rounds=1), *sets, epochs=1, batch_size=8)
    sam = tiny_sam()
    sam.vision_encoder.compile()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inductor's and triton's own
        (compiled,) = train(PromptedSam(sam, rounds=1), *sets, epochs=1, batch_size=8)
    assert abs(plain["train_loss"] - compiled["train_loss"]) < 0.02 * plain["train_loss"]


def _one_epoch(batch_size: int) -> tuple[list[float], str]:
    """Train on all ranks; return the epochs' losses and Dice, and the rank's device."""
    sets = SamDataset(*cells(n=32)), SamDataset(*cells(n=8, seed=1))
    sam = tiny_sam()
    wrapper = PromptedSam(sam, rounds=1)
    adamw = partial(optim.AdamW, lr=1e-3)
    history = train(wrapper, *sets, epochs=2, batch_size=batch_size, optimizer=adamw)
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
