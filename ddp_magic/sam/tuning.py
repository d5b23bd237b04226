"""The parameters that are trained, and their moving average."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ddp_magic.sam.adapter import encoder_parameters, positional_encoding
from ddp_magic.sam.arguments import check_choice

TUNES = ("full", "decoder", "lora")
ATTENTION = ("qkv", "q_proj", "k_proj", "v_proj")  # layers of the encoders that LoRA adapts


class LowRank(nn.Module):
    """A low-rank update of a weight, which is trained while the weight is frozen.

    Source:
        Hu et al., "LoRA: Low-rank adaptation of large language models", ICLR 2022.
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        """Initialize the update to zero: B is zero, and A is random, the same on all ranks."""
        super().__init__()
        out_size, in_size = weight.shape
        start = torch.randn(rank, in_size, generator=generator) / in_size**0.5
        self.a = nn.Parameter(start.to(weight))
        self.b = nn.Parameter(weight.new_zeros(out_size, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight, (out, in)."""
        return weight + self.b @ self.a


def choose_trained(sam: nn.Module, tune: str, lora_rank: int = 4) -> list[nn.Parameter]:
    """Freeze the parameters that are not trained.

    Args:
        sam: a model. Parameters that are already frozen stay frozen.
        tune: "full": train all parameters; "decoder": the mask decoder, so that embeddings can be
            stored; "lora": the mask decoder, and `LowRank` updates of the encoder's attention.
        lora_rank: rank of the updates.

    Returns:
        The parameters that were frozen here, for `restore`.

    Raises:
        ValueError: `tune` is invalid.
    """
    check_choice("tune", tune, TUNES)
    frozen = positional_encoding(sam)
    if tune != "full":
        part: Any = sam.prompt_encoder
        frozen += [*encoder_parameters(sam), *part.parameters()]
    frozen = [p for p in dict.fromkeys(frozen) if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    if tune == "lora":
        generator = torch.Generator().manual_seed(0)
        encoder: Any = sam.vision_encoder
        for name, module in list(encoder.named_modules()):
            if isinstance(module, nn.Linear) and name.rpartition(".")[2] in ATTENTION:
                low = LowRank(module.weight.detach(), lora_rank, generator)
                parametrize.register_parametrization(module, "weight", low)
    return frozen


def restore(sam: nn.Module, frozen: list[nn.Parameter]) -> None:
    """Undo `choose_trained`: merge LoRA into the weights, and unfreeze the parameters `frozen`."""
    for module in list(sam.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    for parameter in frozen:
        parameter.requires_grad_(True)


def plain_state(sam: nn.Module) -> dict[str, Tensor]:
    """Return a state dict with LoRA merged into the weights, for `from_pretrained`."""
    state: dict[str, Tensor] = {}
    for name, value in sam.state_dict().items():
        head, found, tail = name.partition(".parametrizations.weight.")
        if not found:
            state[name] = value
        elif tail == "original":
            module: Any = sam.get_submodule(head)
            state[f"{head}.weight"] = module.weight.detach()
    return state


class Averages:
    """The exponential moving average of the trained parameters."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        """Start from the current values.

        Args:
            parameters: the trained parameters.
            decay: decay of the average, such as 0.999; 0: no average.
        """
        self.parameters, self.decay, self.steps = parameters, decay, 0
        self.values = [p.detach().clone() for p in parameters] if decay else []

    @torch.no_grad()
    def update(self) -> None:
        """Update the average after a step. The decay is lower in the first steps."""
        self.steps += 1
        if self.decay:
            decay = min(self.decay, self.steps / (self.steps + 10))
            get_ema_multi_avg_fn(decay)(self.values, list(self.parameters), self.steps)  # type: ignore[no-untyped-call]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Replace the weights by their average in a `with` block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def adopt(self) -> None:
        """Replace the weights by their average."""
        for parameter, value in zip(self.parameters, self.values, strict=False):
            parameter.copy_(value)

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, value in zip(self.parameters, self.values, strict=False):
            now = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(now)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for `load_state_dict`."""
        return {"steps": self.steps, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state from `state_dict`."""
        self.steps = state["steps"]
        with torch.no_grad():
            for value, stored in zip(self.values, state["values"], strict=True):
                value.copy_(stored)
