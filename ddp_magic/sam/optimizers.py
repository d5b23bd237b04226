"""The optimizers that `train` knows by a word."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn, optim

from ddp_magic.sam.process_group import all_reduce_sum, rank_and_world

OPTIMIZERS = ("adamw", "muon")
QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: singular values end up near 1


def make_optimizer(
    name: str, model: nn.Module, lr: float, weight_decay: float = 0.0
) -> optim.Optimizer:
    """Make an optimizer of all that is trained in `model`.

    Args:
        name: one of `OPTIMIZERS`.
        model: what is frozen is left out.
        lr: learning rate.
        weight_decay: share of a weight that a step takes away, times `lr`.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if name == "adamw":
        return optim.AdamW(trained, lr=lr, weight_decay=weight_decay, fused=True)
    weights = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)
    }
    matrices = [p for p in trained if id(p) in weights]
    return Muon(matrices, [p for p in trained if id(p) not in weights], lr, weight_decay)


class Muon(optim.Optimizer):
    """Steps of equal length in all directions for matrices, AdamW's for everything else.

    The momentum of a matrix's gradient is replaced by the nearest orthogonal matrix, so that rare
    directions are learned as fast as common ones. `tiny_sam()`, from random weights, came to a
    held-out Dice of .88 where AdamW came to .86 (the demo's nuclei, one click, five epochs), and
    .94 where AdamW came to .92 (drawn cells, clicks and boxes, six epochs).

    torch.optim.Muon computes in bfloat16, and one matrix at a time: on a CPU without bfloat16 it
    took thirteen times as long as this one, longer than `tiny_sam()`'s forward and backward.

    Source:
        Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the length
        of a step, which lets matrices and the rest share a learning rate, is that of Liu et al.,
        "Muon is scalable for LLM training", 2025.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        rest: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
    ) -> None:
        """Begin without momentum.

        Args:
            matrices: weights (out, in) of linear layers, or (out, in, h, w) of convolutions.
            rest: all other parameters, at least one.
            lr: learning rate of both.
            weight_decay: of both, as AdamW's.
            momentum: of the matrices. Jordan has 0.95, for thousands of steps; in 384 on the demo's
                nuclei the loss ended at .170 to .175 with 0.9, at .183 and .184 with 0.95.
        """
        self.adamw = optim.AdamW(
            rest, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.95), fused=True
        )
        own = {"params": list(matrices), "momentum": momentum}
        defaults = {"lr": lr, "weight_decay": weight_decay}
        super().__init__([own, *self.adamw.param_groups], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take a step along the gradients, which are the same on all ranks. Collective."""
        if closure is not None:
            raise NotImplementedError("Muon takes no closure")
        group, *rest = self.param_groups
        # One state, one list of groups: what is saved, loaded and set here is AdamW's too.
        self.adamw.param_groups, self.adamw.state = rest, self.state
        self.adamw.step()
        alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}  # matrices of one shape, together
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            ahead = parameter.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
            alike.setdefault(ahead.shape, []).append((parameter, ahead))
        stacks = [torch.stack([ahead for _, ahead in pairs]) for pairs in alike.values()]
        for pairs, directions in zip(alike.values(), _orthogonalize_all(stacks), strict=True):
            for (parameter, _), direction in zip(pairs, directions, strict=True):
                # So that an entry's root mean square is 0.2, as with AdamW.
                length = 0.2 * max(direction.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction.view_as(parameter), alpha=-group["lr"] * length)


def _orthogonalize_all(stacks: list[Tensor]) -> list[Tensor]:
    """Orthogonalize stacks of matrices, each (n, a, b), of which each rank does its share."""
    rank, world = rank_and_world()
    if world == 1 or not stacks:
        return [orthogonalize(stack) for stack in stacks]
    done = stacks[0].new_zeros(sum(map(Tensor.numel, stacks)))  # one sum over the ranks for all
    parts = torch.split(done, list(map(Tensor.numel, stacks)))
    turned = [part.view_as(stack) for part, stack in zip(parts, stacks, strict=True)]
    for number, (own, stack) in enumerate(zip(turned, stacks, strict=True)):
        mine = slice((rank + number) % world, None, world)  # a stack of one is not always rank 0's
        if len(stack[mine]):
            own[mine] = orthogonalize(stack[mine])
    all_reduce_sum(done)
    return turned


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return matrices (n, a, b) with about the same directions and all singular values near 1.

    Source:
        The Newton-Schulz iteration with Jordan's coefficients, as in torch.optim.Muon.
    """
    a, b, c = QUINTIC
    x = matrices.float()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices)
