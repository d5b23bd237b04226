"""An item of a data set: one image with its objects and their prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Item = dict[str, Any]

FOREGROUND, BACKGROUND, PAD = 1, 0, -10  # labels of clicks in SAM; PAD: no click


def no_prompts(objects: int) -> Item:
    """Return the prompts of an item whose objects have none."""
    return {
        "points": torch.zeros(0, 2),
        "labels": torch.zeros(0, dtype=torch.long),
        "counts": torch.zeros(objects, dtype=torch.long),
        "boxes": torch.full((objects, 4), torch.nan),
    }


def without_objects(image: NDArray[np.uint8]) -> Item:
    """Return an image (3, H, W) as an item without objects."""
    return {
        "image": torch.from_numpy(np.ascontiguousarray(image)),
        "masks": torch.zeros(0, *image.shape[1:], dtype=torch.bool),
        "keys": torch.zeros(0, dtype=torch.long),
        **no_prompts(0),
    }
