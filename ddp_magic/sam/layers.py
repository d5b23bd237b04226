"""What transformers and torch do too, done with fewer bytes: the same values, sooner.

The image encoder's attention: transformers adds to the scores of N tokens for N tokens how far
these are from each other in rows and columns, a table of N x N for each head and image: at 1024
pixels 0.8 GB an image in float32, written, read and differentiated in each global layer; and fast
kernels, which never write the scores down, take no table that learns. Here the same sum comes out
of the product of queries and keys itself: a query also carries what it adds to each row and to each
column, and a key a 1 in its own row and column. And its tokens keep the order of the convolution
that they come from, so that each normalization, forth and back, copies them first; here it is done
once.

The mask decoder takes maps (M, C, h, w) apart into tokens (M, h * w, C) without moving them, so
that each later addition and normalization would jump from channel to channel. It draws masks by
transposed convolutions, which on a CPU first put everything in another order; as none of their
squares overlap, a product of tokens and weights does the same. And each forward makes the positions
of all tokens anew, which are always the same.

Masks become larger by torch's bilinear interpolation, whose gradient is slow on a CPU and has no
fixed order on a GPU. Along each axis it is a product with a thin matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Forward = Callable[..., Any]

_FASTER: dict[type, type] = {}  # made when first met


def _attend(
    self: Any,  # noqa: ANN401 -- one of `_ATTENTIONS`
    hidden_states: Tensor,
    output_attentions: bool = False,
) -> tuple[Tensor, None]:
    """Do what the library's forward does, with the same values.

    Args:
        self: the layer.
        hidden_states: (B, h, w, C).
        output_attentions: whether to give the scores, which are not kept.

    Returns:
        The sum of values (B, h, w, C), and no scores.
    """
    del output_attentions
    b, h, w, _ = hidden_states.shape
    heads: int = self.num_attention_heads
    qkv = self.qkv(hidden_states).reshape(b, h * w, 3, heads, -1)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, h * w, d) each
    d = query.shape[-1]
    if self.use_rel_pos:
        grid = query.unflatten(2, (h, w))
        to_rows = _distances(self, self.rel_pos_h, h)  # (h, h, d): from row, to row
        to_columns = _distances(self, self.rel_pos_w, w)
        rows = torch.einsum("bnhwd,hkd->bnhwk", grid, to_rows).flatten(2, 3)
        columns = torch.einsum("bnhwd,wkd->bnhwk", grid, to_columns).flatten(2, 3)
        # The product is divided by the root of d, from which positions are exempt.
        query = torch.cat([query, rows * d**0.5, columns * d**0.5], -1)
        row = torch.eye(h, dtype=key.dtype, device=key.device).repeat_interleave(w, 0)
        column = torch.eye(w, dtype=key.dtype, device=key.device).repeat(h, 1)
        place = torch.cat([row, column], -1).expand(b, heads, -1, -1)  # (B, heads, h * w, h + w)
        key = torch.cat([key, place], -1)
        value = F.pad(value, (0, h + w))  # the fast kernels ask for one width
    out = F.scaled_dot_product_attention(query, key, value, scale=d**-0.5)[..., :d]
    return self.proj(out.transpose(1, 2).reshape(b, h, w, -1)), None


def _distances(layer: Any, table: Tensor, n: int) -> Tensor:  # noqa: ANN401
    """Return (n, n, d), `[i, j] = table[i - j + n - 1]`, of what is learned of each distance.

    The library looks each up, by numbers that it makes on the CPU: on a GPU the CPU waits twice a
    layer for all that was asked before. It is asked where another size needs an interpolation.
    """
    if len(table) != 2 * n - 1:
        looked_up: Tensor = layer.get_rel_pos(n, n, table)
        return looked_up
    return table.flip(0).unfold(0, n, 1).flip(0).transpose(1, 2)


# By name: not every transformers that has SAM has SAM-HQ.
_ATTENTIONS = ("SamVisionSdpaAttention", "SamHQVisionSdpaAttention")


def _in_order(self: Any, pixels: Tensor) -> Tensor:  # noqa: ANN401 -- one of two classes
    """Return tokens (B, h, w, C) that lie along memory in this order."""
    tokens: Tensor = self.own_forward(pixels)
    return tokens.contiguous()


@contextmanager
def faster_encoder(encoder: Any) -> Iterator[None]:  # noqa: ANN401 -- of any of the families
    """Let the image encoder of a SAM or SAM-HQ work in this way for a while."""
    known = [m for m in encoder.modules() if type(m).__name__ in _ATTENTIONS]
    with _doing(_attend, known), _doing(_in_order, [encoder.patch_embed] if known else []):
        yield


def _enlarge(
    self: nn.ConvTranspose2d,
    x: Tensor,
    output_size: list[int] | None = None,
) -> Tensor:
    """Do what a transposed convolution does whose kernel is as wide as its stride.

    Args:
        self: the layer, without padding.
        x: (B, C, h, w), along memory if channels are last there.
        output_size: as the layer's forward has it; here there is no choice.

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
    """Let a model draw masks in this way for a while.

    Args:
        sam: any of the families.
        positions: of its tokens, (1, C, h, w), as it makes them: channels are last in memory.
    """

    def tokens(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:  # noqa: ANN401
        images = kwargs["image_embeddings"].contiguous(memory_format=torch.channels_last)
        places = positions.expand(len(images), -1, -1, -1)
        news = {"image_embeddings": images, "image_positional_embeddings": places}
        return args, kwargs | news

    def picture(_module: nn.Module, _args: Any, upscaled: Tensor) -> Tensor:  # noqa: ANN401
        return upscaled.contiguous()  # as the product with each mask's own weights reads it

    decoder = sam.mask_decoder
    hooks = (
        decoder.transformer.register_forward_pre_hook(tokens, with_kwargs=True),
        decoder.upscale_conv2.register_forward_hook(picture),
    )
    # What it makes of these, a copy an object, is replaced above: so they are next to nothing.
    sam.get_image_wide_positional_embeddings = lambda: positions[:, :1, :1, :1]
    try:
        with _doing(_enlarge, [decoder.upscale_conv1, decoder.upscale_conv2]):
            yield
    finally:
        del sam.get_image_wide_positional_embeddings
        for hook in hooks:
            hook.remove()


def resized(logits: Tensor, size: int) -> Tensor:
    """Resize square masks as `F.interpolate(mode="bilinear")` does, with the same gradient.

    Args:
        logits: (M, C, s, s).
        size: the new side, in pixels.

    Returns:
        (M, C, size, size), float32.
    """
    logits = logits.float()
    if logits.shape[-1] == size:
        return logits
    lines = _lines(logits.shape[-1], size, logits.device)
    with torch.autocast(logits.device.type, enabled=False):  # as interpolation is exempt from it
        return lines @ logits @ lines.T


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)  # what is kept must serve training too
def _lines(side: int, size: int, device: torch.device) -> Tensor:
    """Return (size, side): which lines of an old mask make each of a new one, and how much."""
    old = torch.eye(side, device=device)[None, None]
    return F.interpolate(old, (size, side), mode="bilinear", align_corners=False)[0, 0]


@contextmanager
def _doing(forward: Forward, modules: list[nn.Module]) -> Iterator[None]:
    """Let modules have another forward for a while."""
    replaced = [(module, type(module)) for module in modules]
    for module, own in replaced:  # not their forward: torch.compile looks at classes
        if own not in _FASTER:
            news = {"forward": forward, "own_forward": own.forward}
            _FASTER[own] = type(f"Faster{own.__name__}", (own,), news)
        module.__class__ = _FASTER[own]
    try:
        yield
    finally:
        for module, own in replaced:
            module.__class__ = own
