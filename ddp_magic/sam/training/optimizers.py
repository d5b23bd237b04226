"""The learning rate, and an optimizer that torch does not have."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ddp_magic.sam.process_group import print0

adamw = partial(optim.AdamW, lr=3e-3, weight_decay=0.0, fused=True)  # the default of `train`

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: singular values converge near 1


def warmup_cosine(optimizer: optim.Optimizer, steps: int) -> LambdaLR:
    """Return a schedule that rises linearly for 5 % of the steps, and falls along a cosine to 0.

    `transformers` has others, such as `get_wsd_schedule`, which stays at the peak for a while.
    """
    warm = max(1, steps // 20)

    def factor(step: int) -> float:
        fallen = min(1.0, max(0, step - warm) / max(1, steps - warm))
        return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * fallen))

    return LambdaLR(optimizer, factor)


class Muon(optim.Optimizer):
    """Muon for matrices, and AdamW for all other parameters.

    The update of a matrix is the orthogonal matrix nearest to the momentum of its gradient, so that
    rare directions are learned as fast as common ones. From random weights, `tiny_sam()` reached a
    held-out Dice of .88, and .86 with AdamW (nuclei of the demo, one click, five epochs).

    torch.optim.Muon takes 2-D parameters only, one after the other, and in bfloat16. A step of
    `tiny_sam()` takes 76 ms with it and 31 ms here, beside 100 ms for forward and backward (one
    thread); on a CPU without bfloat16 it took thirteen times as long as here.

    Source:
        Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. The scale of
        the update, with which matrices and other parameters share a learning rate, is that of Liu
        et al., "Muon is scalable for LLM training", 2025.
    """

    def __init__(
        self, model: nn.Module, lr: float, weight_decay: float = 0.0, momentum: float = 0.9
    ) -> None:
        """Create the optimizer, for `train` as `optimizer=lambda _: Muon(model, lr=5e-3)`.

        Args:
            model: the model; frozen parameters are not optimized. Matrices are the weights of
                linear layers, (out, in), and of convolutions, (out, in, h, w), but not of
                transposed ones: with these, the loss of `tiny_sam()` on 32 images of cells after
                four epochs was .84 to .87; without, .76 to .78; with AdamW, .81 to .83.
            lr: learning rate.
            weight_decay: weight decay, as in AdamW.
            momentum: momentum of the matrices. Jordan uses 0.95, for thousands of steps. After 384
                steps on the nuclei of the demo, the loss was .170 to .175 with 0.9, and .183 to
                .184 with 0.95.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a model, not {type(model).__name__}: Muon(model, lr)")
        layers = (nn.Linear, nn.Conv2d)
        known = {id(layer.weight) for layer in model.modules() if isinstance(layer, layers)}
        trained = [p for p in model.parameters() if p.requires_grad]
        rest = [p for p in trained if id(p) not in known]
        self.adamw = optim.AdamW(
            rest or [torch.zeros(0)], lr, (0.9, 0.95), weight_decay=weight_decay, fused=True
        )
        own = {"params": [p for p in trained if id(p) in known], "momentum": momentum}
        defaults = {"lr": lr, "weight_decay": weight_decay}
        super().__init__([own, *self.adamw.param_groups], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Perform a step."""
        if closure is not None:
            raise NotImplementedError("Muon does not support a closure: call step() without one")
        # AdamW shares the state and the groups, so that saving and loading includes it.
        group, *self.adamw.param_groups = self.param_groups
        self.adamw.state = self.state
        self.adamw.step()
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}  # one product for each shape
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            update = parameter.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
            by_shape.setdefault(update.shape, []).append((parameter, update))
        for pairs in by_shape.values():
            directions = orthogonalize(torch.stack([update for _, update in pairs]))
            for (parameter, _), direction in zip(pairs, directions, strict=True):
                # The root mean square of the entries is 0.2, as in AdamW.
                length = 0.2 * max(direction.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction.view_as(parameter), alpha=-group["lr"] * length)


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


def optimizer_and_rate(
    optimizer: Callable[[list[nn.Parameter]], Any],
    schedule: Callable[[Any, int], Any],
    model: nn.Module,
    steps: int,
) -> tuple[optim.Optimizer, LRScheduler]:
    """Call the functions that a user gives to `train`, and check what they return.

    Raises:
        TypeError: It is something else, or cannot be stepped without a score or a closure.
        ValueError: The optimizer has other parameters, or the schedule another optimizer; or no
            parameter of the model is trained.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("all parameters of the model are frozen: tune(model, 'decoder')")
    opt = _checked("optimizer", optimizer(trained), optim.Optimizer)
    held = {id(p) for group in opt.param_groups for p in group["params"]}
    number = sum(id(p) in held for p in trained)
    if not number:
        raise ValueError(
            "optimizer returned one with none of the trained parameters, but those of another "
            "model: make it from its argument, such as lambda p: torch.optim.AdamW(p, lr=1e-4)"
        )
    if number < len(trained):
        print0(f"optimizer has {number} of {len(trained)} trained parameters; the others stay")
    if any(group["lr"] is None for group in opt.param_groups):
        raise ValueError(
            f"optimizer returned {type(opt).__name__} without a learning rate, which schedule "
            "changes: give it one, as in Adafactor(p, lr=1e-3, relative_step=False)"
        )
    rate = _checked("schedule", schedule(opt, steps), LRScheduler)
    if rate.optimizer is not opt:
        raise ValueError("schedule returned one of another optimizer: make it from its argument")
    return opt, rate


def _checked(name: str, made: Any, kind: type) -> Any:  # noqa: ANN401 -- of the user's function
    if not isinstance(made, kind):
        raise TypeError(f"{name} must return {kind.__name__} of torch, not {made!r}")
    for parameter in inspect.signature(made.step).parameters.values():  # type: ignore[attr-defined]
        if parameter.default is parameter.empty and parameter.kind.name.endswith("KEYWORD"):
            raise TypeError(
                f"{name} returned {type(made).__name__}, whose step() needs {parameter.name}: use "
                "one whose step() needs nothing"
            )
    return made
