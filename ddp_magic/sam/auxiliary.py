"""A second task for the image encoder, in training only.

Masks teach the encoder through the whole decoder and the click. Where objects touch, what it needs
to know is simple to say: which pixels go together. So a linear layer must tell from the embeddings
alone, without any prompt, where in its object a pixel lies: the two sides of a border have opposite
answers, however alike they look. Only objects that are asked for count, since a set's masks need
not hold all that an image shows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE = 4  # pixels of a mask along a token


class PlaceInObject(nn.Module):
    """Tell of each pixel how far below and right of the middle of its object it lies.

    Source:
        The horizontal and vertical maps of Graham et al., "HoVer-Net: Simultaneous segmentation and
        classification of nuclei in multi-tissue histology images", Medical Image Analysis 2019.
    """

    def __init__(self, channels: int, weight: float) -> None:
        """Begin at zero: the same on all ranks, and no random number is drawn.

        Args:
            channels: of the embeddings.
            weight: of this task beside the masks.
        """
        super().__init__()
        self.weight = weight
        self.linear = nn.Linear(channels, 2 * SCALE**2)
        for parameter in self.linear.parameters():
            nn.init.zeros_(parameter)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return (B, 2, s, s), shares down and to the right, of embeddings (B, C, h, w)."""
        out: Tensor = self.linear(embeddings.permute(0, 2, 3, 1))
        return F.pixel_shuffle(out.permute(0, 3, 1, 2), SCALE)


def place_in_object(target: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return what there is to tell of objects.

    Args:
        target: (M, 1, T, T), 0 to 1.
        size: s, the side of the answer, in pixels.

    Returns:
        How far below and right of the object's center of mass a pixel is, as shares of the farthest
        one, (M, 2, s, s); and which pixels are the object's, (M, 1, s, s), 0 or 1.
    """
    mask = F.interpolate(target, (size, size), mode="area")
    own = (mask > 0.5).to(mask)
    line = torch.arange(size, dtype=mask.dtype, device=mask.device)
    area = own.sum((2, 3), keepdim=True).clamp(min=1)  # (M, 1, 1, 1)
    axes = (line.view(-1, 1).expand(size, size), line.expand(size, size))
    away = torch.cat([axis - (own * axis).sum((2, 3), keepdim=True) / area for axis in axes], 1)
    away = away * own  # (M, 2, s, s)
    return away / away.abs().amax((2, 3), keepdim=True).clamp(min=1), own


def place_losses(told: Tensor, target: Tensor, image_index: Tensor) -> Tensor:
    """Return the error of each object, the mean over its pixels, (M,).

    Args:
        told: what `PlaceInObject` says, (B, 2, s, s).
        target: (M, 1, T, T), 0 to 1.
        image_index: whose image an object is in, (M,).
    """
    truth, own = place_in_object(target, told.shape[-1])
    # Not told[index]: on a CPU its gradient is summed by threads in no fixed order.
    off = F.smooth_l1_loss(told.index_select(0, image_index), truth, beta=0.1, reduction="none")
    return (off * own).sum((1, 2, 3)) / (2 * own.sum((1, 2, 3))).clamp(min=1)
