"""A light decoder that finds the objects of an image without a prompt.

It predicts from the embeddings of the image alone which pixels belong to an object, and where in
its object each of them is. `segment` clicks in the middle of the objects that it finds. It also
trains the encoder, which the loss of the masks reaches only through the decoder and the prompt: on
the two sides of a border between objects the targets are opposite, even if the pixels look alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils.hub import cached_file

from ddp_magic.sam.process_group import print0, unwrapped

FILE = "instance_decoder.safetensors"  # beside the weights of the model
HIDDEN = 32  # channels at two pixels per token and axis


class InstanceDecoder(nn.Module):
    """Predict the foreground, and the offset of each pixel from the center of its object.

    Source:
        The horizontal and vertical maps of Graham et al., "HoVer-Net: Simultaneous segmentation and
        classification of nuclei in multi-tissue histology images", Medical Image Analysis 2019; a
        decoder beside that of SAM, as in Archit et al., "Segment Anything for Microscopy", Nature
        Methods 2025.
    """

    def __init__(self, channels: int, weight: float = 1.0) -> None:
        """Initialize the layers, the same on all ranks; the global random state does not change.

        Args:
            channels: number of channels of the embeddings.
            weight: weight of the loss in training.
        """
        super().__init__()
        self.weight = weight
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv1 = nn.Conv2d(channels, HIDDEN * 4, 3, padding=1)
            self.conv2 = nn.Conv2d(HIDDEN, 3 * 4, 3, padding=1)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return maps (B, 3, s, s) for embeddings (B, C, h, w): four pixels per token and axis.

        The maps are the logits of the foreground, and the offsets down and to the right.
        """
        maps = self._maps(embeddings)
        if not embeddings.requires_grad:
            return maps
        # Only the offsets train the encoder.
        return torch.cat([self._maps(embeddings.detach())[:, :1], maps[:, 1:]], 1)

    def _maps(self, embeddings: Tensor) -> Tensor:
        hidden = F.gelu(F.pixel_shuffle(self.conv1(embeddings), 2))
        return F.pixel_shuffle(self.conv2(hidden), 2)


def place_in_object(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Compute where in its object each pixel is.

    Args:
        labels: label maps, (B, s, s); 0 or less is no object.

    Returns:
        Offsets of each pixel down and to the right of the center of mass of its object, divided by
        the largest one of the object, (B, 2, s, s), 0 off the objects; and the share of each pixel
        in the area of its object, (B, 1, s, s).
    """
    b, s, _ = labels.shape
    image = torch.arange(b, device=labels.device).view(-1, 1, 1)
    key = torch.where(labels > 0, labels + image * (labels.amax() + 1), 0).flatten()
    _, of = torch.unique(torch.cat([key.new_zeros(1), key]), return_inverse=True)
    of = of[1:]  # (B * s * s), the object of each pixel; 0: none
    line = torch.arange(s, device=labels.device, dtype=torch.float32)
    at = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).repeat(b, 1, 1, 1).view(-1, 2)
    area = torch.bincount(of).float().clamp(min=1)  # (objects + 1,)
    center = at.new_zeros(len(area), 2).index_add_(0, of, at) / area[:, None]
    away = at - center[of]
    farthest = torch.ones_like(area).scatter_reduce_(0, of, away.abs().amax(1), "amax")
    own = (of > 0).float()
    place = away * (own / farthest[of])[:, None]
    return place.view(b, s, s, 2).permute(0, 3, 1, 2), (own / area[of]).view(b, 1, s, s)


def instance_losses(predicted: Tensor, instances: Tensor) -> Tensor:
    """Compute the loss of the decoder for each image, (B,).

    It is the mean binary cross-entropy of the foreground over the pixels, plus the mean error of
    the offsets over the objects, each of which counts the same.

    Args:
        predicted: output of `InstanceDecoder`, (B, 3, s, s).
        instances: label maps, (B, T, T), 0 for background and -1 for pixels that do not count.
    """
    size = predicted.shape[-1]
    nearest = ((torch.arange(size, device=instances.device) + 0.5) * instances.shape[-1]) // size
    labels = instances[:, nearest.long()][:, :, nearest.long()]  # (B, s, s)
    counts = (labels >= 0).float()
    pixels = F.binary_cross_entropy_with_logits(
        predicted[:, 0], (labels > 0).float(), counts, reduction="none"
    )
    place, share = place_in_object(labels)
    off = F.smooth_l1_loss(predicted[:, 1:], place, beta=0.1, reduction="none").mean(1, True)
    objects = share.sum((1, 2, 3)).clamp(min=1)
    of_places: Tensor = (off * share).sum((1, 2, 3)) / objects
    return pixels.sum((1, 2)) / counts.sum((1, 2)).clamp(min=1) + of_places


def middles(maps: Tensor, threshold: float = 0.4) -> tuple[Tensor, Tensor]:
    """Find the middles of objects.

    Args:
        maps: output of `InstanceDecoder`, (B, 3, s, s).
        threshold: minimum of foreground probability times nearness to the middle, from 0 to 1.

    Returns:
        The image of each middle, (n,), and its position (x, y) in pixels of the maps, (n, 2).
    """
    near = 1 - maps[:, 1:].abs().amax(1, keepdim=True)
    heat = F.avg_pool2d(maps[:, :1].sigmoid() * near, 3, stride=1, padding=1)
    peak = (heat == F.max_pool2d(heat, 5, stride=1, padding=2)) & (heat > threshold)
    image, _, y, x = torch.where(peak)
    return image, torch.stack([x, y], 1).float()


def instance_decoder(model: nn.Module, weight: float = 1.0) -> InstanceDecoder:
    """Return the decoder of a model, or a new one, to train as `PromptedSam.auxiliary`.

    Args:
        model: a model of the SAM family, or DDP around one.
        weight: weight of its loss.
    """
    sam: Any = unwrapped(model)
    decoder = decoder_of(sam) or InstanceDecoder(sam.config.prompt_encoder_config.hidden_size)
    decoder.weight = weight
    return decoder


def attach_decoder(sam: Any, decoder: InstanceDecoder | None) -> None:  # noqa: ANN401 -- see adapter.Sam
    """Set or remove the decoder of a model, for `segment` and `save_decoder`.

    It is no submodule of the model, so that `save_pretrained` and `from_pretrained` of transformers
    see the model that they know.
    """
    sam.__dict__["instance_decoder"] = decoder
    sam.config.instance_decoder = FILE if decoder else None


def decoder_of(sam: Any) -> InstanceDecoder | None:  # noqa: ANN401
    """Return the decoder of a model: from `train`, or the file in the folder of its checkpoint."""
    if getattr(sam.config, "instance_decoder", None) is None:
        return None
    if "instance_decoder" not in sam.__dict__:
        path = cached_file(sam.name_or_path, FILE, _raise_exceptions_for_missing_entries=False)
        if path is None:
            print0(f"{sam.name_or_path} has no {FILE}: copy it from the folder that train wrote")
            return None
        state = load_file(path)
        decoder = InstanceDecoder(state["conv1.weight"].shape[1])
        decoder.load_state_dict(state)
        sam.__dict__["instance_decoder"] = decoder
    found: InstanceDecoder = sam.__dict__["instance_decoder"]
    return found


def save_decoder(folder: Path, sam: nn.Module) -> None:
    """Write the decoder of a model, if it has one, into the folder of its checkpoint."""
    if decoder := decoder_of(sam):
        save_file({k: v.contiguous() for k, v in decoder.state_dict().items()}, folder / FILE)
