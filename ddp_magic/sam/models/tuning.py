"""The parameters that are trained."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from ddp_magic.sam.arguments import check_choice, check_minimum
from ddp_magic.sam.models.adapter import encoder_parameters, freeze_positions, kind_of
from ddp_magic.sam.process_group import unwrapped

TUNES = ("full", "decoder", "lora")
ATTENTION = r"vision_encoder\..*\.(qkv|q_proj|k_proj|v_proj)"  # linear layers that LoRA adapts


def tune(model: nn.Module, what: str, rank: int = 4) -> nn.Module:
    """Choose the parameters that are trained.

    Args:
        model: a model of the SAM family; it is changed in place. Adapters that it has are merged
            into its weights.
        what: "full": all parameters but the positional encoding, which is fixed; "decoder": the
            mask decoder, so that each image needs to be encoded only once; "lora": the mask
            decoder, and low-rank updates of the attention of the encoder, by peft. The checkpoints
            of `train` contain the merged weights. To merge them into `model` too, call
            `tune(model, "full")` after training.
        rank: rank of the low-rank updates.

    Returns:
        The model.

    Raises:
        ValueError: `what` is invalid.
    """
    check_choice("what", what, TUNES)
    check_minimum(1, rank=rank)
    sam = unwrapped(model)
    kind_of(sam)
    _merge(sam)
    sam.requires_grad_(True)
    freeze_positions(sam)
    if what == "lora":
        from peft import LoraConfig, inject_adapter_in_model  # its import takes seconds

        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=ATTENTION)
        inject_adapter_in_model(config, sam)
    if what != "full":
        updates = {id(p) for name, p in sam.named_parameters() if ".lora_" in name}
        for parameter in [*encoder_parameters(sam), *sam.prompt_encoder.parameters()]:
            parameter.requires_grad_(id(parameter) in updates)
        sam.mask_decoder.requires_grad_(True)
        for parameter in encoder_parameters(sam):  # SAM 2 has some of them in the mask decoder
            parameter.requires_grad_(id(parameter) in updates)
    return model


def _merge(sam: Any) -> Any:  # noqa: ANN401 -- see adapter.Sam
    """Merge the adapters of peft into the weights of a model, and return it."""
    for name, layer in list(sam.named_modules()):
        if hasattr(layer, "get_base_layer") and hasattr(layer, "merge"):
            layer.merge()
            sam.set_submodule(name, layer.get_base_layer())
        elif hasattr(layer, "modules_to_save"):  # a copy that is trained instead of a module
            (adapter,) = layer.active_adapters
            sam.set_submodule(name, layer.modules_to_save[adapter])
    return sam


def plain_state(sam: nn.Module) -> dict[str, Tensor]:
    """Return a state dict with the adapters merged into the weights, for `from_pretrained`."""
    adapted = any(hasattr(each, "get_base_layer") for each in sam.modules())
    state: dict[str, Tensor] = (_merge(copy.deepcopy(sam)) if adapted else sam).state_dict()
    return state
