"""Faster versions of layers of transformers, with the same values.

Attention of the image encoder: transformers adds a relative position bias to the attention scores,
a table of N x N for N tokens, for each head and image. At 1024 pixels, this is 0.8 GB per image in
float32, which each global layer writes, reads and differentiates. The fast attention kernels, which
never store the scores, do not support a bias with a gradient. Here the bias is part of the product
of queries and keys: a query also holds its bias for each row and each column, and a key a 1 in its
own row and column. A global layer of ViT-B at 1024 pixels then takes 1.7 s forward and 5.8 s with
its gradient, and 1.0 GB; that of transformers 3.6 s, 7.1 s and 3.2 GB (one thread). In
transformers, tokens also keep the memory layout of the convolution that they come from, and each
normalization copies them, forward and backward; here they are copied once.

Mask decoder: transformers converts maps (M, C, h, w) to tokens (M, h * w, C) without changing the
memory layout, so that later operations read memory with large strides. It upscales masks with
transposed convolutions, which reorder their input on a CPU. Because kernel size and stride are
equal, a matrix product gives the same result. Finally, each forward pass computes the same
positional encoding again. A training step of ViT-B with stored embeddings takes 0.25 s, and 0.36 s
without (one object, one thread).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Forward = Callable[..., Any]

_FASTER: dict[type, type] = {}  # original class -> faster class, filled on first use


def _attend(
    self: Any,  # noqa: ANN401 -- one of `_ATTENTIONS`
    hidden_states: Tensor,
    output_attentions: bool = False,
) -> tuple[Tensor, None]:
    """Replace the forward pass of an attention layer, with the same values.

    Args:
        self: the layer.
        hidden_states: (B, h, w, C).
        output_attentions: ignored; attention scores are never returned.

    Returns:
        The output (B, h, w, C), and None.
    """
    del output_attentions
    b, h, w, _ = hidden_states.shape
    heads: int = self.num_attention_heads
    qkv = self.qkv(hidden_states).reshape(b, h * w, 3, heads, -1)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, h * w, d) each
    d = query.shape[-1]
    if self.use_rel_pos:
        grid = query.unflatten(2, (h, w))
        to_rows = self.get_rel_pos(h, h, self.rel_pos_h)  # (h, h, d): from row, to row
        to_columns = self.get_rel_pos(w, w, self.rel_pos_w)
        rows = torch.einsum("bnhwd,hkd->bnhwk", grid, to_rows).flatten(2, 3)
        columns = torch.einsum("bnhwd,wkd->bnhwk", grid, to_columns).flatten(2, 3)
        # Attention divides the product by sqrt(d), but not the position bias.
        query = torch.cat([query, rows * d**0.5, columns * d**0.5], -1)
        row = torch.eye(h, dtype=key.dtype, device=key.device).repeat_interleave(w, 0)
        column = torch.eye(w, dtype=key.dtype, device=key.device).repeat(h, 1)
        place = torch.cat([row, column], -1).expand(b, heads, -1, -1)  # (B, heads, h * w, h + w)
        key = torch.cat([key, place], -1)
        value = F.pad(value, (0, h + w))  # the fast kernels need equal widths
    out = F.scaled_dot_product_attention(query, key, value, scale=d**-0.5)[..., :d]
    return self.proj(out.transpose(1, 2).reshape(b, h, w, -1)), None


# By name, because some versions of transformers have SAM but not SAM-HQ.
_ATTENTIONS = ("SamVisionSdpaAttention", "SamHQVisionSdpaAttention")


def _contiguous_tokens(self: Any, pixels: Tensor) -> Tensor:  # noqa: ANN401 -- one of two classes
    """Return tokens (B, h, w, C) that are contiguous in memory."""
    tokens: Tensor = self.own_forward(pixels)
    return tokens.contiguous()


@contextmanager
def faster_encoder(encoder: Any) -> Iterator[None]:  # noqa: ANN401 -- of any of the families
    """Use the faster layers in the image encoder of a SAM or SAM-HQ in a `with` block.

    With gradient checkpointing they are not used: the backward pass, which runs the layers again,
    is outside of the block.
    """
    again = any(getattr(module, "gradient_checkpointing", False) for module in encoder.modules())
    known = [m for m in encoder.modules() if type(m).__name__ in _ATTENTIONS and not again]
    with (
        _replaced_forward(_attend, known),
        _replaced_forward(_contiguous_tokens, [encoder.patch_embed] if known else []),
    ):
        yield


def _upscale(
    self: nn.ConvTranspose2d,
    x: Tensor,
    output_size: list[int] | None = None,
) -> Tensor:
    """Replace the forward pass of a transposed convolution whose kernel size equals its stride.

    Args:
        self: the layer, without padding.
        x: (B, C, h, w), fastest with channels last in memory.
        output_size: ignored; there is only one output size.

    Returns:
        (B, out, k * h, k * w), channels last in memory.
    """
    del output_size
    k = self.kernel_size[0]
    bias = None if self.bias is None else self.bias.repeat_interleave(k * k)
    out = F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1).T, bias)  # (B, h, w, out * k * k)
    return F.pixel_shuffle(out.permute(0, 3, 1, 2), k)


@contextmanager
def faster_decoder(sam: Any, positions: Tensor) -> Iterator[None]:  # noqa: ANN401 -- as above
    """Use the faster layers in the mask decoder in a `with` block.

    Args:
        sam: a model of the SAM family.
        positions: positional encoding of the image tokens, (1, C, h, w), channels last in memory.
    """

    def tokens(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:  # noqa: ANN401
        images = kwargs["image_embeddings"].contiguous(memory_format=torch.channels_last)
        places = positions.expand(len(images), -1, -1, -1)
        changes = {"image_embeddings": images, "image_positional_embeddings": places}
        return args, kwargs | changes

    def contiguous_masks(_module: nn.Module, _args: Any, upscaled: Tensor) -> Tensor:  # noqa: ANN401
        return upscaled.contiguous()  # for the product with the weights of each mask

    decoder = sam.mask_decoder
    hooks = (
        decoder.transformer.register_forward_pre_hook(tokens, with_kwargs=True),
        decoder.upscale_conv2.register_forward_hook(contiguous_masks),
    )
    # The model copies these for each object, and `tokens` replaces the copies: so keep them small.
    sam.get_image_wide_positional_embeddings = lambda: positions[:, :1, :1, :1]
    try:
        with _replaced_forward(_upscale, [decoder.upscale_conv1, decoder.upscale_conv2]):
            yield
    finally:
        del sam.get_image_wide_positional_embeddings
        for hook in hooks:
            hook.remove()


@contextmanager
def _replaced_forward(forward: Forward, modules: list[nn.Module]) -> Iterator[None]:
    """Replace the forward pass of modules in a `with` block."""
    replaced = [(module, type(module)) for module in modules]
    # Replace the class, because torch.compile ignores the `forward` of an instance.
    for module, own in replaced:
        if own not in _FASTER:
            changes = {"forward": forward, "own_forward": own.forward}
            _FASTER[own] = type(f"Faster{own.__name__}", (own,), changes)
        module.__class__ = _FASTER[own]
    try:
        yield
    finally:
        for module, own in replaced:
            module.__class__ = own
