"""SAM: a small one that trains in a minute, one forward for training, and prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from transformers import (
    SamConfig,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from ddp_magic.prelude.data import (
    FOREGROUND,
    PAD,
    by_size,
    check_click,
    collate,
    gray_window,
    prepare,
    resized,
    to_rgb,
)
from ddp_magic.prelude.process_group import rank_and_world

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def tiny_sam(image_size: int = 64, patch_size: int = 8, width: int = 96, seed: int = 0) -> SamModel:
    """Build a SAM of 0.8 million parameters, with random weights that are the same on all ranks.

    The library's own defaults are for loading Meta's weights. From random weights they give a
    model that never learns to look at the prompt: the encoder starts at zero (initializer_range
    1e-10), and positions are encoded by so high frequencies (scale width / 2) that neighboring
    pixels look unrelated. Here both are as Meta trained them, or near.

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
    vision.scale = 1.0  # type: ignore[assignment]  # not in the call above: it would be overwritten
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
        return SamModel(config)


class PromptedSam(nn.Module):
    """The one forward of a training step, which is what DDP needs.

    DDP starts averaging gradients in the backward pass of *its* forward: calling parts of the
    model past it, or it twice, fails or leaves the ranks with different weights.
    """

    def __init__(self, sam: SamModel, amp: str = "fp32", rounds: int = 1) -> None:
        """Wrap a model, which stays the caller's.

        Args:
            sam: the model, or DDP around it.
            amp: "fp32", "bf16" or "fp16": type of the image encoder's arithmetic. Prompts and
                decoder stay in float32, since bfloat16 would move a click by a pixel in 1024.
            rounds: of clicks: the batch's own, then each time one more where the mask is wrong.

        Raises:
            ValueError: An unknown `amp`.
        """
        super().__init__()
        if amp not in DTYPES:
            raise ValueError(f'amp is "fp32", "bf16" or "fp16", not {amp!r}')
        self.sam: SamModel = getattr(sam, "module", sam)  # DDP keeps the model in .module
        self.amp = amp
        self.rounds = rounds

    @property
    def image_size(self) -> int:
        """S, the side of the square that the model takes, in pixels."""
        config: Any = self.sam.config.vision_config
        return int(config.image_size)

    def forward(self, batch: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Draw one mask an object; then, round by round, correct it with one more click.

        All rounds are in this one forward, which is what DDP asks for, and share the encoding. In
        training mode a click is at a random wrong pixel, the same whenever `keys` is the same; in
        evaluation it is in the middle of what is wrong.

        Args:
            batch: what `prepare` made: `pixel_values` (B, 3, S, S); `image_index` (M,), whose
                image an object is in; `points` (M, K, 2), (x, y) in pixels of the square;
                `labels` (M, K), -10 after an object's last click; `keys` (M,). For more than one
                round `target` and `inside` (M, 1, S, S) from `square_targets`.

        Returns:
            For each round the masks' logits (M, 1, s, s), and a guess of their IoU (M, 1).
        """
        image_index, points, labels = batch["image_index"], batch["points"], batch["labels"]
        if len(image_index) == 0:
            # A rank without objects still takes part in the backward pass, with zero gradients.
            stand_in = _one_object(batch, self.image_size)
            return [(logits[:0], iou[:0]) for logits, iou in self(stand_in)]
        pixels = batch["pixel_values"]
        with torch.autocast(pixels.device.type, DTYPES[self.amp], enabled=self.amp != "fp32"):
            encoded = self.sam.vision_encoder(pixels).last_hidden_state  # (B, C, s/4, s/4)
        encoded = encoded.float()
        out = [self._decode(encoded, image_index, points, labels, None)]
        for number in range(1, self.rounds):
            logits = out[-1][0].detach()
            keys = batch["keys"] * self.rounds + number if self.training else None
            point, label = next_click(logits, batch["target"], batch["inside"], keys)
            points = torch.cat([point[:, None], points], dim=1)  # (M, K + 1, 2), the newest first
            labels = torch.cat([label[:, None], labels], dim=1)
            out.append(self._decode(encoded, image_index, points, labels, logits))
        return out

    def _decode(
        self,
        encoded: Tensor,
        image_index: Tensor,
        points: Tensor,
        labels: Tensor,
        masks: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Draw masks for clicks, and for the masks (M, 1, s, s) of the round before."""
        # SAM attends to padding clicks, so each number of clicks has its own pass: what an object
        # gets does not depend on what else is in the batch.
        clicks = (labels != PAD).sum(dim=1)  # (M,)
        logits, iou, order = [], [], []
        for k in sorted(set(clicks.tolist())):
            rows = torch.where(clicks == k)[0]  # (m,)
            out = self.sam(
                image_embeddings=encoded[image_index[rows]],
                input_points=points[rows, None, :k],  # (m, 1, k, 2)
                input_labels=labels[rows, None, :k],  # (m, 1, k)
                input_masks=None if masks is None else masks[rows],
                multimask_output=False,
            )
            logits.append(out.pred_masks[:, 0])  # (m, 1, s, s)
            iou.append(out.iou_scores[:, 0])  # (m, 1)
            order.append(rows)
        back = torch.argsort(torch.cat(order))
        return torch.cat(logits)[back], torch.cat(iou)[back]


def _one_object(batch: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Return the same images with one object that is nowhere, and a click on it."""
    pixels = batch["pixel_values"]
    number = torch.zeros(1, dtype=torch.long, device=pixels.device)
    blank = pixels.new_zeros(1, 1, size, size)
    return {
        "pixel_values": pixels,
        "image_index": number,
        "points": pixels.new_zeros(1, 1, 2),
        "labels": number[:, None] + FOREGROUND,
        "keys": number,
        "target": blank,
        "inside": blank == 0,
    }


def next_click(
    logits: Tensor, target: Tensor, inside: Tensor, keys: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Click where the mask is wrong, as someone would who corrects it.

    Args:
        logits: (M, 1, s, s).
        target: (M, 1, S, S), 0 or 1.
        inside: (M, 1, S, S), False in the padding around the image.
        keys: (M,), for a random wrong pixel each; None: the middle of the largest wrong part.

    Returns:
        Clicks (M, 2), (x, y) in pixels of the square; their labels (M,), 1 where the object is and
        0 where it is not. A perfect mask is clicked on once more, on the object.

    Source:
        Kirillov et al., "Segment Anything", ICCV 2023: the next point is "sampled uniformly from
        the error region"; Sofiiuk et al., "Reviving iterative training", 2021, for its middle.
    """
    size = target.shape[-1]
    drawn = F.interpolate(logits.float(), (size, size), mode="bilinear", align_corners=False) > 0
    true = target > 0
    wrong = (drawn != true) & inside  # (M, 1, S, S)
    perfect = ~wrong.flatten(1).any(1)
    wrong = torch.where(perfect.view(-1, 1, 1, 1), true & inside, wrong)
    flat = wrong.flatten(1)  # (M, S * S)
    if keys is None:
        # The more of a window around a pixel is wrong, the more central it is. On a grid of about
        # 64 x 64 cells, since the cost of a window grows with its area.
        cells = F.avg_pool2d(wrong.float(), max(1, size // 64), ceil_mode=True)
        around = F.avg_pool2d(cells, 9, stride=1, padding=4)
        weight = F.interpolate(around, (size, size), mode="bilinear").flatten(1)
        at = torch.where(flat, 1 + weight, 0).argmax(1)  # (M,)
    else:
        count = flat.cumsum(1, dtype=torch.int32)
        chosen = (_uniform(keys) * count[:, -1]).int() + 1  # 1 to the number of wrong pixels
        at = torch.searchsorted(count, chosen[:, None])[:, 0].clamp(max=size * size - 1)
    label = true.flatten(1).gather(1, at[:, None])[:, 0]
    return torch.stack([at % size, at // size], 1).to(target), label.long()


def _uniform(keys: Tensor) -> Tensor:
    """Return a number from 0 to 1 for each key, the same wherever that key is met; (M,).

    Source:
        The mixing steps of SplitMix64 (Steele et al., "Fast splittable pseudorandom number
        generators", 2014).
    """
    x = keys * -7046029254386353131
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * factor
    x = x ^ (x >> 31 & (1 << 33) - 1)
    return (x & 0xFFFFFF).double() / 2**24


def square_targets(batch: dict[str, Tensor], image_size: int) -> dict[str, Tensor]:
    """Bring the true masks into the model's square.

    Args:
        batch: what `prepare` made.
        image_size: S, in pixels.

    Returns:
        `target` (M, 1, S, S), 0 or 1, and 0 in the padding; `inside` (M, 1, S, S), False there.
    """
    masks, sizes = batch["masks"], batch["sizes"][batch["image_index"].cpu()]  # (M, 2)
    target = torch.zeros(len(masks), 1, image_size, image_size, device=masks.device)
    inside = torch.zeros_like(target, dtype=torch.bool)
    for (h, w), on_cpu in by_size(sizes):
        rows, (new_h, new_w) = on_cpu.to(masks.device), resized((h, w), image_size)
        true = masks[rows, None, :h, :w].float()
        target[rows, :, :new_h, :new_w] = F.interpolate(true, (new_h, new_w), mode="nearest-exact")
        inside[rows, :, :new_h, :new_w] = True
    return {"target": target, "inside": inside}


def at_original_size(logits: Tensor, size: tuple[int, int], image_size: int) -> Tensor:
    """Undo SAM's resizing and padding.

    Args:
        logits: (m, 1, s, s), as the model gives them.
        size: the image's own height and width, in pixels.
        image_size: S, the side of the model's square, in pixels.

    Returns:
        Logits (m, H, W).
    """
    height, width = resized(size, image_size)
    square = F.interpolate(logits, (image_size, image_size), mode="bilinear", align_corners=False)
    crop = square[..., :height, :width]
    return F.interpolate(crop, size, mode="bilinear", align_corners=False)[:, 0]


def freeze_unused(model: PromptedSam, batch: dict[str, Tensor]) -> list[nn.Parameter]:
    """Freeze what no gradient reaches, so that DDP need not search for it in every step.

    With one click, that is what embeds boxes and mask prompts; a backward pass on rank 0 finds
    it. The positional encoding is frozen as well: Meta's SAM never trains it.

    Args:
        model: on this rank's device.
        batch: a prepared batch of the kind that training will have, with its targets.

    Returns:
        The parameters that were frozen here, to be thawed after training.
    """
    names: list[str] = []
    if rank_and_world()[0] == 0:
        out = model(batch)
        sum(logits.sum() + iou.sum() for logits, iou in out).backward()
        names = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        names.append("sam.shared_image_embedding.positional_embedding")
        model.zero_grad(set_to_none=True)
    if rank_and_world()[1] > 1:
        shared = [names]
        dist.broadcast_object_list(shared, src=0, device=batch["pixel_values"].device)
        names = shared[0]
    parameters = dict(model.named_parameters())
    frozen = [parameters[name] for name in names if parameters[name].requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen


def thaw(parameters: list[nn.Parameter]) -> None:
    """Undo `freeze_unused`."""
    for parameter in parameters:
        parameter.requires_grad_(True)


@torch.no_grad()
def predict(
    model: SamModel, image: ArrayLike, points: ArrayLike | Sequence[ArrayLike]
) -> NDArray[np.bool_]:
    """Draw the mask of what is clicked on.

    Args:
        model: any SamModel, on any device; or DDP around one.
        image: (H, W) or (H, W, 3), of any type that `SamDataset` takes. uint8 is safest: the gray
            levels of another type are judged by this one image.
        points: clicks of one object, (K, 2), rows (y, x) in pixels, as in `SamDataset`'s
            coordinates; or a list of such arrays, one an object.

    Returns:
        A mask (H, W), or masks (N, H, W) if `points` is a list of arrays.

    Raises:
        ValueError: A click lies outside the image.
    """
    several = isinstance(points, Sequence) and bool(len(points)) and np.ndim(points[0]) == 2
    prompts: Any = points if several else [points]
    arrays = [np.asarray(clicks, dtype=np.float32).reshape(-1, 2) for clicks in prompts]
    rgb = to_rgb(image, gray_window([image]))  # (3, H, W)
    height, width = rgb.shape[1:]
    for y, x in np.concatenate(arrays):
        check_click(y, x, (height, width))
    item = {
        "image": torch.from_numpy(rgb),
        "masks": torch.zeros(len(arrays), height, width, dtype=torch.bool),
        "points": [torch.from_numpy(clicks[:, ::-1].copy()) for clicks in arrays],
        "keys": torch.arange(len(arrays)),
    }
    training, wrapper = model.training, PromptedSam(model)
    wrapper.eval()
    ((logits, _),) = wrapper(prepare(collate([item]), wrapper.image_size, model.device))
    wrapper.train(training)
    masks = at_original_size(logits, (height, width), wrapper.image_size) > 0  # (N, H, W)
    result: NDArray[np.bool_] = masks.cpu().numpy()
    return result if several else result[0]
