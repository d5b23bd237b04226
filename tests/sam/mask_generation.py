"""A program: transformers' mask-generation pipeline on checkpoints, with torchvision.

    PYTHONPATH=.venv/torchvision python -m tests.sam.mask_generation PICTURE CHECKPOINT...

It prints one line of JSON with, for each checkpoint, the image processor of the pipeline, the
pixels that it makes of the picture, the processor, the clicks, and the sizes of the masks.

The compiled parts of torchvision on PyPI need the CUDA build of torch. Beside the CPU build,
importing torchvision fails, and so does importing transformers. Torchvision is therefore installed
where only this program finds it. If its compiled parts cannot be loaded, this program defines the
only operator that it needs.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ddp_magic.sam.arrays.masks import box_iou

GRID = {"points_per_crop": 4}


def register_operators() -> torch.library.Library | None:
    """Register the operators that importing torchvision needs, for the lifetime of the result."""
    found = find_spec("torchvision")
    assert found is not None
    assert found.origin is not None
    try:
        for compiled in Path(found.origin).parent.glob("_C*.so"):
            torch.ops.load_library(compiled)
    except OSError:
        pass  # compiled for another torch
    else:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", nms, "CPU")
    import torchvision.extension

    torchvision.extension._has_ops = lambda: True
    return library


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Keep the best of overlapping boxes (n, 4), and return the indices of the kept ones."""
    kept: list[int] = []
    for number in scores.argsort(descending=True).tolist():
        ious = box_iou(boxes[number].numpy(), boxes[kept].numpy())
        if not (ious > iou_threshold).any():
            kept.append(number)
    return torch.tensor(kept, dtype=torch.long)


def generate(checkpoint: str, picture: Image.Image) -> dict[str, Any]:
    from transformers import AutoProcessor, pipeline

    generator: Any = pipeline("mask-generation", model=checkpoint, device="cpu")
    pixels = generator.image_processor(images=picture, return_tensors="pt")["pixel_values"]
    clicks = [each["input_points"].max() for each in generator.preprocess(picture, **GRID)]
    out = generator(picture, **GRID, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    return {
        "image_processor": type(generator.image_processor).__name__,
        "processor": type(AutoProcessor.from_pretrained(checkpoint)).__name__,
        "pixels": pixels.tolist(),
        "farthest_click": float(max(clicks)),
        "masks": [list(mask.shape) for mask in out["masks"]],
        "scores": len(out["scores"]),
    }


if __name__ == "__main__":
    operators = register_operators()
    with Image.open(sys.argv[1]) as file:
        shown = file.convert("RGB")
    print(json.dumps({checkpoint: generate(checkpoint, shown) for checkpoint in sys.argv[2:]}))
