"""Muon, compared with the optimizers of torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn, optim

from ddp_magic.prelude import SamDataset, cells, tiny_sam, train
from ddp_magic.sam.optimizers import Muon, make_optimizer, orthogonalize


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
    steps = (
        Muon([ours], [nn.Parameter(torch.zeros(1))], **same),
        optim.Muon([theirs], **same, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(4):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        for each in steps:
            each.step()
    moved = (theirs - start).norm().item()
    assert (ours - theirs).norm().item() < 0.02 * moved
    assert moved == pytest.approx(0.01 * 0.2 * 4 * math.sqrt(start.numel()), rel=0.5)


def test_other_parameters_are_updated_by_adamw() -> None:
    """Biases, norms and embeddings equal AdamW, bit for bit; others without gradient stay."""
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4, 3), nn.LayerNorm(3))
    model[3].bias.requires_grad_(False)
    muon = make_optimizer("muon", model, lr=0.01, weight_decay=0.1)
    matrices, rest = (group["params"] for group in muon.param_groups)
    assert [id(p) for p in matrices] == [id(model[0].weight), id(model[2].weight)]
    assert [id(p) for p in rest] == [id(model[0].bias), id(model[2].bias), id(model[3].weight)]
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


def test_optimizers_by_name() -> None:
    """Both names work; another name is an error."""
    data = SamDataset(*cells(n=4))
    kinds = {name: type(make_optimizer(name, tiny_sam(), 1e-3)) for name in ("adamw", "muon")}
    assert kinds == {"adamw": optim.AdamW, "muon": Muon}
    with pytest.raises(ValueError, match="'sgd': use 'adamw' or 'muon'"):
        train(tiny_sam(), data, data, optimizer="sgd")


def test_muon_learns_in_fewer_steps() -> None:
    """From random weights, the loss after a few epochs is lower than with AdamW."""
    sets = SamDataset(*cells(n=32)), SamDataset(*cells(n=2, seed=1))
    options = {"epochs": 4, "batch_size": 4, "rounds": 1, "multimask": False}
    losses = {
        name: train(tiny_sam(), *sets, **options, lr=lr, optimizer=name)[-1]["train_loss"]
        for name, lr in (("adamw", 3e-3), ("muon", 5e-3))
    }
    assert losses["muon"] < losses["adamw"]
