"""Muon, compared with the optimizers of torch; and the learning rate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn, optim

from ddp_magic.prelude import SamDataset, cells, tiny_sam, train
from ddp_magic.sam.models.model import PromptedSam
from ddp_magic.sam.training.optimizers import Muon, orthogonalize, warmup_cosine


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 24, 8), (2, 8, 40)])
def test_singular_values_end_up_near_one(shape: tuple[int, int, int]) -> None:
    """Singular values become about 1; singular vectors stay the same."""
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    turned = orthogonalize(matrices)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    values = torch.diagonal(u.mT @ turned @ v.mT, dim1=1, dim2=2)  # the nearest would be all 1
    assert ((values > 0.6) & (values < 1.3)).all()
    assert torch.linalg.svdvals(turned).max() < 1.3
    assert (orthogonalize(torch.zeros(1, 3, 3)) == 0).all()


@pytest.mark.skipif(not hasattr(optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 64)])
def test_a_matrix_is_updated_as_by_muon_of_torch(shape: tuple[int, int]) -> None:
    """The result is close to torch.optim.Muon, which computes in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    same: dict[str, float] = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.8}
    layer = nn.Linear(*shape[::-1], bias=False)
    layer.weight = ours
    steps = (Muon(layer, **same), optim.Muon([theirs], **same, adjust_lr_fn="match_rms_adamw"))
    for _ in range(4):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        for each in steps:
            each.step()
    moved = (theirs - start).norm().item()
    assert (ours - theirs).norm().item() < 0.02 * moved
    assert moved == pytest.approx(0.01 * 0.2 * 4 * math.sqrt(start.numel()), rel=0.5)


def test_other_parameters_are_updated_by_adamw() -> None:
    """Biases and norms equal AdamW, bit for bit; matrices without gradient stay."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.Flatten(),
        nn.Linear(4, 3),
        nn.LayerNorm(3),
        nn.Unflatten(1, (3, 1, 1)),
        nn.ConvTranspose2d(3, 2, 2),
    )
    muon = Muon(model, lr=0.01, weight_decay=0.1)
    matrices, rest = (group["params"] for group in muon.param_groups)
    assert [id(p) for p in matrices] == [id(model[0].weight), id(model[2].weight)]
    assert id(model[5].weight) in {id(p) for p in rest}  # of a transposed convolution
    twins = [nn.Parameter(p.detach().clone()) for p in rest]
    adamw = optim.AdamW(twins, lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), fused=True)
    model(torch.randn(2, 2, 3, 3)).square().sum().backward()
    matrices[1].grad = None
    for parameter, twin in zip(rest, twins, strict=True):
        twin.grad = parameter.grad
    before = [p.detach().clone() for p in matrices]
    muon.step()
    adamw.step()
    assert all(torch.equal(p, twin) for p, twin in zip(rest, twins, strict=True))
    assert not torch.equal(matrices[0], before[0])
    assert torch.equal(matrices[1], before[1])


@pytest.mark.slow
def test_muon_learns_in_fewer_steps() -> None:
    """From random weights, the loss after a few epochs is lower than with AdamW."""
    sets = SamDataset(*cells(n=32)), SamDataset(*cells(n=2, seed=1))
    losses = []
    for muon in (False, True):
        model = PromptedSam(tiny_sam(), rounds=1, multimask=False)
        chosen = Muon(model, lr=5e-3) if muon else optim.AdamW(model.parameters(), lr=3e-3)
        history = train(model, *sets, epochs=4, batch_size=4, optimizer=lambda _, it=chosen: it)
        losses.append(history[-1]["train_loss"])
    assert losses[1] < losses[0]  # measured: .76 to .78, and .81 to .83


def rates() -> list[float]:
    """Return the learning rates of 100 steps."""
    optimizer = optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, found = warmup_cosine(optimizer, 100), []
    for _ in range(100):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_learning_rate_rises_and_falls() -> None:
    """It rises to the peak, then falls to nearly 0."""
    found = rates()
    assert found[0] == 0.2
    assert max(found) == found[4] == 1.0
    assert found[5:] == sorted(found[5:], reverse=True)
    assert 0 < found[-1] < 0.01
