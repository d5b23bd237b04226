"""An auxiliary task for the image encoder, in training only.

The loss of the masks reaches the encoder only through the decoder and the prompt. To separate
touching objects, the encoder must know which pixels belong together. A linear layer therefore
predicts from the embeddings alone, without a prompt, where in its object each pixel is: on the two
sides of a border between objects the targets are opposite, even if the pixels look alike. Only
prompted objects count, because the masks of a data set may not contain every object of an image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE = 4  # pixels of a mask per token and axis


class PlaceInObject(nn.Module):
    """Predict the vertical and horizontal offset of each pixel from the center of its object.

    Source:
        The horizontal and vertical maps of Graham et al., "HoVer-Net: Simultaneous segmentation and
        classification of nuclei in multi-tissue histology images", Medical Image Analysis 2019.
    """

    def __init__(self, channels: int, weight: float) -> None:
        """Initialize the layer with zeros: the same on all ranks, without random numbers.

        Args:
            channels: number of channels of the embeddings.
            weight: weight of the auxiliary loss.
        """
        super().__init__()
        self.weight = weight
        self.linear = nn.Linear(channels, 2 * SCALE**2)
        for parameter in self.linear.parameters():
            nn.init.zeros_(parameter)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return offsets down and to the right, (B, 2, s, s), for embeddings (B, C, h, w)."""
        out: Tensor = self.linear(embeddings.permute(0, 2, 3, 1))
        return F.pixel_shuffle(out.permute(0, 3, 1, 2), SCALE)


def place_in_object(target: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Compute the targets of the auxiliary task.

    Args:
        target: true masks, (M, 1, T, T), from 0 to 1.
        size: s, the side of the output, in pixels.

    Returns:
        Offsets of each pixel down and to the right of the center of mass of the object, divided by
        the largest one of the object, (M, 2, s, s); and the mask of the object, (M, 1, s, s), 0 or
        1.
    """
    mask = F.interpolate(target, (size, size), mode="area")
    own = (mask > 0.5).to(mask)
    line = torch.arange(size, dtype=mask.dtype, device=mask.device)
    area = own.sum((2, 3), keepdim=True).clamp(min=1)  # (M, 1, 1, 1)
    axes = (line.view(-1, 1).expand(size, size), line.expand(size, size))
    away = torch.cat([axis - (own * axis).sum((2, 3), keepdim=True) / area for axis in axes], 1)
    away = away * own  # (M, 2, s, s)
    return away / away.abs().amax((2, 3), keepdim=True).clamp(min=1), own


def place_losses(predicted: Tensor, target: Tensor, image_index: Tensor) -> Tensor:
    """Compute the auxiliary loss of each object, the mean over its pixels, (M,).

    Args:
        predicted: output of `PlaceInObject`, (B, 2, s, s).
        target: true masks, (M, 1, T, T), from 0 to 1.
        image_index: index of the image of each object, (M,).
    """
    truth, own = place_in_object(target, predicted.shape[-1])
    # Not predicted[index], whose gradient on a CPU is summed in no fixed order.
    own_predicted = predicted.index_select(0, image_index)
    off = F.smooth_l1_loss(own_predicted, truth, beta=0.1, reduction="none")
    return (off * own).sum((1, 2, 3)) / (2 * own.sum((1, 2, 3))).clamp(min=1)
