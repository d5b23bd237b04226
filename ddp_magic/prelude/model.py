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

from ddp_magic.prelude.data import PAD, check_click, collate, gray_window, prepare, resized, to_rgb
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

    def __init__(self, sam: SamModel, amp: str = "fp32") -> None:
        """Wrap a model, which stays the caller's.

        Args:
            sam: the model, or DDP around it.
            amp: "fp32", "bf16" or "fp16": type of the image encoder's arithmetic. Prompts and
                decoder stay in float32, since bfloat16 would move a click by a pixel in 1024.

        Raises:
            ValueError: An unknown `amp`.
        """
        super().__init__()
        if amp not in DTYPES:
            raise ValueError(f'amp is "fp32", "bf16" or "fp16", not {amp!r}')
        self.sam: SamModel = getattr(sam, "module", sam)  # DDP keeps the model in .module
        self.amp = amp

    @property
    def image_size(self) -> int:
        """S, the side of the square that the model takes, in pixels."""
        config: Any = self.sam.config.vision_config
        return int(config.image_size)

    def forward(
        self, pixel_values: Tensor, image_index: Tensor, points: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Draw one mask an object.

        Args:
            pixel_values: (B, 3, S, S).
            image_index: (M,), whose image an object is in.
            points: (M, K, 2), (x, y) in pixels of the square.
            labels: (M, K), -10 after an object's last click.

        Returns:
            Logits (M, 1, s, s), and the model's own guess of each mask's IoU, (M, 1).
        """
        if len(image_index) == 0:
            # A rank without objects still takes part in the backward pass, with zero gradients.
            click = pixel_values.new_zeros(1, 1, 2)
            one = torch.ones(1, 1, dtype=torch.long, device=pixel_values.device)
            logits, iou = self(pixel_values, one[0] - 1, click, one)
            return logits[:0], iou[:0]
        with torch.autocast(pixel_values.device.type, DTYPES[self.amp], enabled=self.amp != "fp32"):
            encoded = self.sam.vision_encoder(pixel_values).last_hidden_state  # (B, C, s/4, s/4)
        encoded = encoded.float()
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
                multimask_output=False,
            )
            logits.append(out.pred_masks[:, 0])  # (m, 1, s, s)
            iou.append(out.iou_scores[:, 0])  # (m, 1)
            order.append(rows)
        back = torch.argsort(torch.cat(order))
        return torch.cat(logits)[back], torch.cat(iou)[back]


def run(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Call `model`, a `PromptedSam` or DDP around one, on a prepared batch."""
    logits, iou = model(
        batch["pixel_values"], batch["image_index"], batch["points"], batch["labels"]
    )
    return logits, iou


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

    With clicks only, that is what embeds boxes and mask prompts; a backward pass on rank 0 finds
    it. The positional encoding is frozen as well: Meta's SAM never trains it.

    Args:
        model: on this rank's device.
        batch: a prepared batch of the kind that training will have.

    Returns:
        The parameters that were frozen here, to be thawed after training.
    """
    names: list[str] = []
    if rank_and_world()[0] == 0:
        logits, iou = run(model, batch)
        (logits.sum() + iou.sum()).backward()  # type: ignore[no-untyped-call]
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
    }
    training, wrapper = model.training, PromptedSam(model)
    wrapper.eval()
    logits, _ = run(wrapper, prepare(collate([item]), wrapper.image_size, model.device))
    wrapper.train(training)
    masks = at_original_size(logits, (height, width), wrapper.image_size) > 0  # (N, H, W)
    result: NDArray[np.bool_] = masks.cpu().numpy()
    return result if several else result[0]
