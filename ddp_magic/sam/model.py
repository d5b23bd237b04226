"""The tiny SAM, and the one forward of training, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    SamConfig,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from ddp_magic.sam.adapter import (
    Maps,
    Sam,
    as_arguments,
    embeddings_of,
    encode,
    geometry_of,
    mask_size_of,
)
from ddp_magic.sam.arrays import FOREGROUND, PAD
from ddp_magic.sam.auxiliary import PlaceInObject
from ddp_magic.sam.batches import PER_OBJECT, Geometry
from ddp_magic.sam.layers import faster_decoder
from ddp_magic.sam.process_group import unwrapped
from ddp_magic.sam.prompts import Prompts, first_prompts, kinds_of, next_click

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

ROOM = 2**31  # bytes, for objects that are worked on at once outside of training

Alike = tuple[tuple[int, int, int], Tensor]  # clicks, a box or none, a mask or none; whose, (m,)
Round = tuple[Tensor, Tensor]  # logits (M, C, s, s) and guesses of their IoU (M, C); C is 1 or 3


def tiny_sam(image_size: int = 64, patch_size: int = 8, width: int = 96, seed: int = 0) -> SamModel:
    """Build a SAM of 0.8 million parameters, with random weights that are the same on all ranks.

    The library's own defaults are for loading Meta's weights. From random weights they give a
    model that never learns to look at the prompt: the encoder starts at zero (initializer_range
    1e-10), positions are encoded by so high frequencies (scale width / 2) that neighboring pixels
    look unrelated, and what tells a click from a box or a click off the object, with a standard
    deviation of initializer_range, is lost beside its position, of 0.7. Here the first and the last
    are as Meta trained them, or near, and frequencies are half of Meta's (scale 0.5, not 1): in the
    demo's first epoch Dice came to .76, with Meta's to .53.

    Args:
        image_size: side of the square the model sees, in pixels, a multiple of `patch_size`.
        patch_size: side of a token, in pixels. Masks have 4 pixels a token.
        width: channels, a multiple of 8.
        seed: of the weights. The global random state is left alone.

    Returns:
        The model, on the CPU.
    """
    vision = SamVisionConfig(
        hidden_size=width,
        output_channels=width,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=patch_size,
        window_size=6,
        global_attn_indexes=[0, 1, 2],
        num_pos_feats=width // 2,
        initializer_range=0.08,
    )
    vision.scale = 0.5  # type: ignore[assignment]  # not in the call above: it would be overwritten
    prompt = SamPromptEncoderConfig(hidden_size=width, image_size=image_size, patch_size=patch_size)
    decoder = SamMaskDecoderConfig(
        hidden_size=width, mlp_dim=2 * width, num_attention_heads=4, iou_head_hidden_dim=width
    )
    config = SamConfig(
        vision_config=vision,
        prompt_encoder_config=prompt,
        mask_decoder_config=decoder,
        initializer_range=0.08,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sam = SamModel(config)
        positions = sam.shared_image_embedding
        # In transformers 4 the scale is half the width, whatever the configuration says.
        positions.positional_embedding.data *= vision.scale / positions.scale
        for module in sam.modules():
            if isinstance(module, nn.Embedding):  # the tokens of prompts, of masks and of IoU
                module.reset_parameters()  # to a standard deviation of 1
        return sam


class PromptedSam(nn.Module):
    """The one forward of a training step, which is what DDP needs.

    DDP starts averaging gradients in the backward pass of *its* forward: calling parts of the
    model past it, or it twice, fails or leaves the ranks with different weights.
    """

    def __init__(
        self,
        sam: nn.Module,
        amp: str = "fp32",
        rounds: int = 1,
        prompts: str | Mapping[str, float] = "points",
        *,
        multimask: bool | None = None,
    ) -> None:
        """Wrap a model, which stays the caller's.

        Args:
            sam: SamModel, SamHQModel, Sam2Model or Sam3TrackerModel, or DDP around one.
            amp: "fp32", "bf16" or "fp16": type of the image encoder's arithmetic. Prompts and
                decoder stay in float32, since bfloat16 would move a click by a pixel in 1024.
            rounds: the first prompt, then each time one more click where the mask is wrong.
            prompts: the first ones: "points", "boxes", "masks", "none", or shares of these.
            multimask: whether a single click, which may mean a part or a whole, gets three masks.
                None: as the model was trained, which `train` notes in its config; else three.

        Raises:
            ValueError: An unknown `amp` or kind of prompt.
            TypeError: Another model.
        """
        super().__init__()
        if amp not in DTYPES:
            raise ValueError(f'amp is "fp32", "bf16" or "fp16", not {amp!r}')
        self.sam: Sam = unwrapped(sam)
        self.geometry: Geometry = geometry_of(self.sam)
        self.amp, self.rounds = amp, rounds
        trained: bool = getattr(self.sam.config, "multimask_output", True)
        self.multimask = trained if multimask is None else multimask
        self.shares = kinds_of(prompts)
        self.mask_size = mask_size_of(self.sam)  # s, px
        self.sometimes: list[nn.Parameter] = []  # that only some kinds of prompts use
        self.auxiliary: PlaceInObject | None = None  # set for training
        self.told: Tensor | None = None  # what that one made of the last batch's images
        self._made: tuple[Any, Tensor] | None = None  # positions, and what they were made of

    def encode(self, pixels: Tensor) -> Maps:
        """Encode images (B, 3, S, S) in the arithmetic of `amp`."""
        with torch.autocast(pixels.device.type, DTYPES[self.amp], enabled=self.amp != "fp32"):
            return encode(self.sam, pixels)

    def forward(self, batch: dict[str, Any]) -> list[Round]:
        """Draw masks of each object; then, round by round, correct the best with one more click.

        All rounds are in this one forward, which is what DDP asks for, and share the encoding. In
        training mode a click is at a random wrong pixel, the same whenever `keys` is the same; in
        evaluation it is in the middle of what is wrong.

        Args:
            batch: what `prepare` made, of images or of their embeddings; with `prompts`, these
                are the first ones.

        Returns:
            For each round the masks' logits (M, C, s, s), and guesses of their IoU (M, C).
        """
        if len(batch["image_index"]) == 0:
            # A rank without objects still takes part in the backward pass, with zero gradients.
            return [(logits[:0], iou[:0]) for logits, iou in self(_one_object(batch))]
        # Prompts first: looking at them, the CPU would wait until a GPU has encoded the images.
        prompts = batch.get("prompts") or first_prompts(
            batch, self.shares, self.mask_size, self.geometry.image_size, random=self.training
        )
        alike = _alike(prompts)
        maps = self._maps(batch)
        if self.auxiliary is not None:
            self.told = self.auxiliary(embeddings_of(self.sam, maps))
        out = [self._decode(maps, batch["image_index"], prompts, alike)]
        if (
            self.sometimes
        ):  # so that each rank has a gradient, perhaps zero, for all that is trained
            nothing = torch.stack([parameter.sum() for parameter in self.sometimes]).sum() * 0
            out = [(logits + nothing, iou) for logits, iou in out]
        for number in range(1, self.rounds):
            logits = best_mask(*out[-1]).detach()  # (M, 1, s, s)
            keys = batch["keys"] * self.rounds + number if self.training else None
            side = self.geometry.image_size
            click = next_click(logits, batch["target"], batch["inside"], keys, side)
            prompts = prompts.clicked(*click, logits)
            out.append(self._decode(maps, batch["image_index"], prompts, _alike(prompts)))
        return out

    @torch.no_grad()
    def draw(self, batch: dict[str, Any]) -> list[Tensor]:
        """Draw masks without gradients, of some objects at a time: a picture may have thousands.

        Args:
            batch: as for `forward`.

        Returns:
            For each round the logits of each object's most trusted mask, (M, 1, s, s).
        """
        known = {"embeddings": self._maps(batch)}
        prompts, objects = batch.get("prompts"), len(batch["image_index"])
        pieces = []
        # Measured with a ViT-B's decoder: 58 MB an object, whose mask has 256 x 256 pixels.
        for rows in in_pieces(objects, 1024 * self.mask_size**2):
            own = {name: batch[name][rows] for name in PER_OBJECT if name in batch}
            own |= {"prompts": Prompts(*(each[rows] for each in prompts))} if prompts else {}
            pieces.append([best_mask(*out) for out in self(batch | own | known)])
        return [torch.cat(each) for each in zip(*pieces, strict=True)]

    def _maps(self, batch: dict[str, Any]) -> Sequence[Tensor]:
        """Encode a batch's images, or return in float32 what is stored of them."""
        stored = batch.get("embeddings")
        return self.encode(batch["pixel_values"]) if stored is None else [m.float() for m in stored]

    def _positions(self) -> Tensor:
        """Return the positions of the model's tokens, made anew if their weights have changed."""
        weights = self.sam.shared_image_embedding.positional_embedding
        state = (weights._version, weights.data_ptr(), weights.device)
        if self._made is None or self._made[0] != state or weights.requires_grad:
            self._made = state, self.sam.get_image_wide_positional_embeddings()
        return self._made[1]

    def _decode(
        self, maps: Sequence[Tensor], image_index: Tensor, prompts: Prompts, alike: list[Alike]
    ) -> Round:
        """Draw masks for prompts."""
        logits, iou, order = [], [], []
        for (k, box, mask), rows in alike:
            # Not maps[index]: on a CPU its gradient is summed by threads in no fixed order.
            own = tuple(each.index_select(0, image_index[rows]) for each in maps)
            with faster_decoder(self.sam, self._positions()):
                out = self.sam(
                    **as_arguments(self.sam, own),
                    input_points=prompts.points[rows, None, :k] if k else None,  # (m, 1, k, 2)
                    input_labels=prompts.labels[rows, None, :k] if k else None,  # (m, 1, k)
                    input_boxes=prompts.boxes[rows, None] if box else None,  # (m, 1, 4)
                    input_masks=prompts.masks[rows] if mask else None,
                    multimask_output=self.multimask and (k, box, mask) == (1, 0, 0),
                )
            logits.append(out.pred_masks[:, 0])  # (m, C, s, s)
            iou.append(out.iou_scores[:, 0])  # (m, C)
            order.append(rows)
        most = max(each.shape[1] for each in iou)  # one mask, repeated, is as good as three
        logits = [each.expand(-1, most, -1, -1) for each in logits]
        iou = [each.expand(-1, most) for each in iou]
        back = torch.argsort(torch.cat(order))
        return torch.cat(logits).index_select(0, back), torch.cat(iou).index_select(0, back)


def in_pieces(objects: int, each: int) -> list[slice]:
    """Deal out objects, each of which takes so many bytes, into pieces that there is room for."""
    step = max(1, ROOM // each)
    return [slice(start, start + step) for start in range(0, max(objects, 1), step)]


def _alike(prompts: Prompts) -> list[Alike]:
    """Find the objects that have the same number of clicks, and both a box or not, or a mask.

    SAM attends to padding clicks, so each number of clicks has its own pass: what an object gets
    does not depend on what else is in the batch.
    """
    clicks = (prompts.labels != PAD).sum(dim=1)  # (M,)
    boxed, masked = ~prompts.boxes.isnan().any(1), ~prompts.masks[:, 0, 0, 0].isnan()
    kinds, group = torch.unique(torch.stack([clicks, boxed, masked], 1), dim=0, return_inverse=True)
    return [((k, b, m), torch.where(group == i)[0]) for i, (k, b, m) in enumerate(kinds.tolist())]


def _one_object(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the same images with one object that is nowhere, and a click on it."""
    number = batch["image_index"].new_zeros(1)
    blank = batch["target"].new_zeros(1, *batch["target"].shape[1:])
    return batch | {
        "image_index": number,
        "points": blank.new_zeros(1, 1, 2),
        "labels": number[:, None] + FOREGROUND,
        "boxes": blank.new_full((1, 4), torch.nan),
        "keys": number,
        "target": blank,
        "inside": blank == 0,
        "prompts": None,
    }


def best_mask(logits: Tensor, iou: Tensor) -> Tensor:
    """Return of each object's masks (M, C, s, s) the most trusted one, (M, 1, s, s)."""
    return logits[torch.arange(len(iou), device=iou.device), iou.argmax(1)][:, None]


def at_original_size(logits: Tensor, size: tuple[int, int], geometry: Geometry) -> Tensor:
    """Undo the resizing and padding.

    Args:
        logits: (m, 1, s, s), as the model gives them.
        size: the image's own height and width, in pixels.
        geometry: of the model's square.

    Returns:
        Logits (m, H, W).
    """
    height, width = geometry.resized(size)
    side = geometry.image_size
    square = F.interpolate(logits.float(), (side, side), mode="bilinear", align_corners=False)
    crop = square[..., :height, :width]
    return F.interpolate(crop, size, mode="bilinear", align_corners=False)[:, 0]


def cost(size: tuple[int, int]) -> int:
    """Return how many bytes `at_original_size` and a score take for one object of an image."""
    return 16 * size[0] * size[1]


def masks_at(logits: Tensor, size: tuple[int, int], geometry: Geometry) -> Tensor:
    """Return masks (m, H, W), bool: `at_original_size`, of some objects at a time."""
    pieces = in_pieces(len(logits), cost(size))
    return torch.cat([at_original_size(logits[rows], size, geometry) > 0 for rows in pieces])
