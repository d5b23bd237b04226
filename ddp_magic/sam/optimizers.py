"""The optimizers of `train`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn, optim

from ddp_magic.sam.process_group import all_reduce_sum, rank_and_world

OPTIMIZERS = ("adamw", "muon")
QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: singular values converge near 1


def make_optimizer(
    name: str, model: nn.Module, lr: float, weight_decay: float = 0.0
) -> optim.Optimizer:
    """Create an optimizer for the trained parameters of `model`.

    Args:
        name: one of `OPTIMIZERS`.
        model: a model; its frozen parameters are not optimized.
        lr: learning rate.
        weight_decay: weight decay; each step multiplies weights by 1 - lr * weight_decay.
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
    """Muon for the matrices, and AdamW for all other parameters.

    The update of a matrix is the orthogonal matrix nearest to the momentum of its gradient, so that
    rare directions are learned as fast as common ones. From random weights, `tiny_sam()` reached a
    held-out Dice of .88, and .86 with AdamW (nuclei of the demo, one click, five epochs); and .94,
    and .92 with AdamW (synthetic cells, clicks and boxes, six epochs).

    torch.optim.Muon uses bfloat16 and processes one matrix at a time. On a CPU without bfloat16 it
    took thirteen times as long as this class, longer than forward and backward of `tiny_sam()`.

    Source:
        Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. The scale of
        the update, with which matrices and other parameters share a learning rate, is that of Liu
        et al., "Muon is scalable for LLM training", 2025.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        rest: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
    ) -> None:
        """Create the optimizer.

        Args:
            matrices: weights (out, in) of linear layers, or (out, in, h, w) of convolutions.
            rest: all other parameters, at least one.
            lr: learning rate of both.
            weight_decay: weight decay of both, as in AdamW.
            momentum: momentum of the matrices. Jordan uses 0.95, for thousands of steps. After 384
                steps on the nuclei of the demo, the loss was .170 to .175 with 0.9, and .183 to
                .184 with 0.95.
        """
        self.adamw = optim.AdamW(
            rest, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.95), fused=True
        )
        own = {"params": list(matrices), "momentum": momentum}
        defaults = {"lr": lr, "weight_decay": weight_decay}
        super().__init__([own, *self.adamw.param_groups], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Perform a step. Collective: the gradients must be the same on all ranks."""
        if closure is not None:
            raise NotImplementedError("Muon does not support a closure: call step() without one")
        group, *rest = self.param_groups
        # AdamW shares the state and the groups, so that saving and loading includes it.
        self.adamw.param_groups, self.adamw.state = rest, self.state
        self.adamw.step()
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}  # grouped by shape
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            update = parameter.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
            by_shape.setdefault(update.shape, []).append((parameter, update))
        stacks = [torch.stack([update for _, update in pairs]) for pairs in by_shape.values()]
        for pairs, directions in zip(by_shape.values(), _orthogonalize_all(stacks), strict=True):
            for (parameter, _), direction in zip(pairs, directions, strict=True):
                # The root mean square of the entries is 0.2, as in AdamW.
                length = 0.2 * max(direction.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction.view_as(parameter), alpha=-group["lr"] * length)


def _orthogonalize_all(stacks: list[Tensor]) -> list[Tensor]:
    """Orthogonalize stacks of matrices, each (n, a, b). Collective: each rank computes a part."""
    rank, world = rank_and_world()
    if world == 1 or not stacks:
        return [orthogonalize(stack) for stack in stacks]
    done = stacks[0].new_zeros(sum(map(Tensor.numel, stacks)))  # one all_reduce for all
    parts = torch.split(done, list(map(Tensor.numel, stacks)))
    results = [part.view_as(stack) for part, stack in zip(parts, stacks, strict=True)]
    for number, (own, stack) in enumerate(zip(results, stacks, strict=True)):
        mine = slice((rank + number) % world, None, world)  # spreads small stacks
        if len(stack[mine]):
            own[mine] = orthogonalize(stack[mine])
    all_reduce_sum(done)
    return results


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return matrices (n, a, b) with the same singular vectors and all singular values near 1.

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


def learning_rate(step: int, steps: int, peak: float, hold: float = 0.0) -> float:
    """Return the learning rate at `step`.

    It rises linearly during the first 5 % of the steps, stays at `peak` until the fraction `hold`
    of the steps, and then decays to 0 along a cosine.
    """
    warm = max(1, steps // 20)
    if step < warm:
        return peak * (step + 1) / warm
    start = max(warm, round(hold * steps))
    fallen = max(0, step - start) / max(1, steps - start)
    return peak * 0.5 * (1 + math.cos(math.pi * fallen))
