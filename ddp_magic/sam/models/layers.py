"""Faster attention in the image encoder of SAM and SAM-HQ, with the same values.

transformers adds a relative position bias to the attention scores, a table of N x N for N tokens,
for each head and image. At 1024 pixels, this is 0.8 GB per image in float32, which each global
layer writes, reads and differentiates. The fast attention kernels, which never store the scores, do
not support a bias with a gradient. Here the bias is part of the product of queries and keys: a
query also holds its bias for each row and each column, and a key a 1 in its own row and column. A
global layer of ViT-B at 1024 pixels takes 1.0 GB with its gradient, that of transformers 3.2 GB.
`tests.benchmarks.sam` compares training on a GPU with what accelerate and SamProcessor reach.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamVisionSdpaAttention
from transformers.models.sam_hq.modeling_sam_hq import SamHQVisionSdpaAttention


def _attend(
    self: Any,  # noqa: ANN401 -- one of two classes
    hidden_states: Tensor,
    output_attentions: bool = False,  # noqa: ARG001 -- as in transformers, they are never returned
) -> Any:  # noqa: ANN401 -- transformers says Tensor
    """Replace the forward pass: the output (B, h, w, C) for `hidden_states`, and None."""
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


class FastSamAttention(SamVisionSdpaAttention):
    """The attention of SAM."""

    forward = _attend


class FastSamHQAttention(SamHQVisionSdpaAttention):
    """The attention of SAM-HQ."""

    forward = _attend


FASTER = {
    SamVisionSdpaAttention: FastSamAttention,
    SamHQVisionSdpaAttention: FastSamHQAttention,
}


def use_faster(sam: nn.Module) -> None:
    """Replace the attention of a model in place; its parameters stay the same objects."""
    for module in sam.modules():
        if type(module) in FASTER:
            module.__class__ = FASTER[type(module)]
