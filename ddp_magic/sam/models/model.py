"""The forward pass that training, evaluation and prediction share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddp_magic.sam.arguments import check_choice, check_flags, check_minimum
from ddp_magic.sam.arrays.items import FOREGROUND, PAD
from ddp_magic.sam.data.batches import ADDED, PER_OBJECT, Geometry
from ddp_magic.sam.models.adapter import (
    Maps,
    Sam,
    as_arguments,
    embeddings_of,
    encode,
    freeze_positions,
    geometry_of,
    mask_size_of,
)
from ddp_magic.sam.models.instances import InstanceDecoder
from ddp_magic.sam.models.layers import use_faster
from ddp_magic.sam.models.postprocessing import best_mask
from ddp_magic.sam.models.prompts import Prompts, first_prompts, kinds_of, most_common, next_click
from ddp_magic.sam.process_group import unwrapped

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


# Number of clicks, of boxes, of masks; indices of the objects that have these, (m,).
Group = tuple[tuple[int, int, int], Tensor]
Round = tuple[Tensor, Tensor]  # logits (M, C, s, s) and predicted IoU (M, C); C is 1 or 3


class PromptedSam(nn.Module):
    """A model with all prompt rounds of a training step in a single forward pass.

    DDP averages gradients in the backward pass of its own forward. Calling parts of the model
    without it, or calling it twice, fails or leaves the ranks with different weights.

    Attributes:
        memory_bytes: what the objects that are predicted at once outside of training may need.
    """

    memory_bytes = 2**31

    def __init__(
        self,
        sam: nn.Module,
        prompts: str | Mapping[str, float] = "points",
        rounds: int = 3,
        *,
        multimask: bool | None = None,
        amp: str = "fp32",
        auxiliary: InstanceDecoder | None = None,
    ) -> None:
        """Wrap a model, without copying it.

        Args:
            sam: a SamModel, SamHQModel, Sam2Model or Sam3TrackerModel; or DDP, a PeftModel or a
                PromptedSam around one.
            prompts: the first prompt of an object. "points": the clicks and boxes of the data set,
                or a click on the object if there are none; "boxes": a box around it; "masks": a
                rough mask; "none": no prompt; or a mixture, such as {"points": 0.5, "boxes": 0.5}.
            rounds: number of prompts per object: the first one, then one click per round where the
                predicted mask is wrong. A model trained with 1 gets worse with further clicks. It
                may change from step to step, but not above this number.
            multimask: whether to predict three masks for a single click, of which only the best one
                is trained. None: as in the config of the model, where `train` stores it, or three
                masks. After training with False, use `segment` instead of the mask-generation
                pipeline of transformers, which always uses three masks.
            amp: dtype of the image encoder: "fp32", "bf16" or "fp16". Prompt encoder and decoder
                use float32, because bfloat16 would move a click by one pixel in 1024.
            auxiliary: a decoder that finds the objects for `segment`, trained together with the
                prompts (`instance_decoder`). It also helps an encoder with random weights to
                separate touching objects. The masks must contain every object of an image; do not
                use it for overlapping objects.

        Raises:
            ValueError: `amp`, `prompts` or `rounds` is invalid, or weights are not float32.
            TypeError: `sam` is not of the SAM family.
        """
        super().__init__()
        check_choice("amp", amp, list(DTYPES))
        check_minimum(1, rounds=rounds)
        self.sam: Sam = unwrapped(sam)
        self.geometry: Geometry = geometry_of(self.sam)
        kinds = {p.dtype for p in self.sam.parameters()}
        if kinds - {torch.float32}:
            raise ValueError(
                f"the model has weights of {', '.join(map(str, kinds))}: call model.float(); amp "
                "chooses the dtype of the image encoder"
            )
        use_faster(self.sam)
        freeze_positions(self.sam)
        self.amp, self.rounds = amp, rounds
        stored = getattr(self.sam.config, "multimask_output", True)
        self.multimask: bool = stored if multimask is None else multimask
        check_flags(multimask=self.multimask)
        if not isinstance(auxiliary, (nn.Module, type(None))):
            raise TypeError(f"auxiliary must be an instance_decoder(model), not {auxiliary!r}")
        self.shares = kinds_of(prompts)
        self.mask_size = mask_size_of(self.sam)  # s, px
        self.auxiliary = auxiliary
        self.auxiliary_output: Tensor | None = None  # of the last batch

    def encode(self, pixels: Tensor) -> Maps:
        """Encode images (B, 3, S, S) with the dtype of `amp`."""
        with torch.autocast(pixels.device.type, DTYPES[self.amp], enabled=self.amp != "fp32"):
            return encode(self.sam, pixels)

    def forward(self, batch: dict[str, Any]) -> list[Round]:
        """Predict the masks of each object, round by round with one more click.

        All rounds share the image embeddings. In training mode, a click is at a random pixel where
        the mask is wrong, determined by `keys`; in evaluation mode, it is in the middle of the
        largest wrong region.

        Args:
            batch: a batch from `prepare`, of images or embeddings. `prompts`, if present, are the
                first prompts.

        Returns:
            For each round, logits (M, C, s, s) and predicted IoU (M, C).
        """
        if len(batch["image_index"]) == 0:
            # A rank without objects must still take part in the backward pass.
            return [(logits[:0], iou[:0]) for logits, iou in self(_one_object(batch))]
        # Prompts first: reading them later would wait until the GPU has encoded the images.
        prompts = batch.get("prompts") or first_prompts(
            batch, self.shares, self.mask_size, self.geometry.image_size, random=self.training
        )
        groups = _group_by_prompts(prompts)
        maps = self._maps(batch)
        out = [self._decode(maps, batch["image_index"], prompts, groups)]
        if self.auxiliary is not None:
            self.auxiliary_output = self.auxiliary(embeddings_of(self.sam, maps))
            # DDP looks for the parameters that are used in what this function returns.
            out = [(logits + 0 * self.auxiliary_output.sum(), iou) for logits, iou in out]
        for number in range(1, self.rounds):
            logits = best_mask(*out[-1]).detach()  # (M, 1, s, s)
            keys = batch["keys"] * self.rounds + number if self.training else None
            side = self.geometry.image_size
            click = next_click(logits, batch["target"], batch["inside"], keys, side)
            prompts = prompts.clicked(*click, logits)
            out.append(
                self._decode(maps, batch["image_index"], prompts, _group_by_prompts(prompts))
            )
        return out

    @torch.no_grad()
    def predict_logits(self, batch: dict[str, Any]) -> list[Tensor]:
        """Predict masks without gradients, in chunks of objects that fit into memory.

        Returns:
            For each round, the logits (M, 1, s, s) of the mask with the highest predicted IoU.
        """
        known = {"embeddings": self._maps(batch)}
        prompts, objects = batch.get("prompts"), len(batch["image_index"])
        pieces = []
        # Measured with the decoder of ViT-B: 58 MB per object with a mask of 256 x 256 pixels.
        step = max(1, self.memory_bytes // (1024 * self.mask_size**2))
        for start in range(0, max(objects, 1), step):
            rows = slice(start, start + step)
            own = {name: batch[name][rows] for name in (*PER_OBJECT, *ADDED) if name in batch}
            own |= {"prompts": Prompts(*(each[rows] for each in prompts))} if prompts else {}
            pieces.append([best_mask(*out) for out in self(batch | own | known)])
        return [torch.cat(each) for each in zip(*pieces, strict=True)]

    def _maps(self, batch: dict[str, Any]) -> Sequence[Tensor]:
        """Return the embeddings of a batch, encoded now or stored, in float32."""
        stored = batch.get("embeddings")
        return self.encode(batch["pixel_values"]) if stored is None else [m.float() for m in stored]

    def _decode(
        self, maps: Sequence[Tensor], image_index: Tensor, prompts: Prompts, groups: list[Group]
    ) -> Round:
        """Predict masks for prompts."""
        logits, iou, order = [], [], []
        for (k, box, mask), rows in groups:
            # Not maps[index], whose gradient on a CPU is summed in no fixed order.
            own = tuple(each.index_select(0, image_index[rows]) for each in maps)
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


def with_rounds(model: nn.Module, rounds: int) -> PromptedSam:
    """Return a model for inference, with the most common prompts, masks and dtype of training.

    Args:
        model: a model of the SAM family, a `PromptedSam`, or DDP around one.
        rounds: number of prompts per object.
    """
    own = getattr(model, "module", model)
    own = own if isinstance(own, PromptedSam) else PromptedSam(model)
    kind = most_common(own.shares)
    return PromptedSam(own.sam, kind, rounds, multimask=own.multimask, amp=own.amp)


def _group_by_prompts(prompts: Prompts) -> list[Group]:
    """Group objects by their number of clicks, and by whether they have a box or a mask.

    SAM attends to padding clicks. With one pass per group, the result of an object does not depend
    on the other objects of the batch.
    """
    clicks = (prompts.labels != PAD).sum(dim=1)  # (M,)
    boxed, masked = ~prompts.boxes.isnan().any(1), ~prompts.masks[:, 0, 0, 0].isnan()
    kinds, group = torch.unique(torch.stack([clicks, boxed, masked], 1), dim=0, return_inverse=True)
    return [((k, b, m), torch.where(group == i)[0]) for i, (k, b, m) in enumerate(kinds.tolist())]


def _one_object(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the batch with a single empty object and one click."""
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
