"""A program: transformers' mask-generation pipeline on checkpoints, with torchvision.

    PYTHONPATH=.venv/torchvision python -m tests.sam.mask_generation PICTURE CHECKPOINT...

It prints a line of JSON: for each checkpoint the pipeline's image processor and how it prepares the
picture, the processor of all that a model takes, the clicks, and the masks' sizes.

PyPI's torchvision has compiled parts for the CUDA build of torch only, so that importing it beside
the CPU build fails, and importing transformers with it. So it lies where only this program looks,
and where those parts do not load, the one operator that is needed is ours.
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

from ddp_magic.sam.masks import box_iou

GRID = {"points_per_crop": 4}


def stand_in_for_compiled_parts() -> torch.library.Library | None:
    """Register what torchvision's import looks for; the operators live as long as the result."""
    found = find_spec("torchvision")
    assert found is not None
    assert found.origin is not None
    try:
        for compiled in Path(found.origin).parent.glob("_C*.so"):
            torch.ops.load_library(compiled)
    except OSError:
        pass  # it is for another torch
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
    """Keep of boxes (n, 4) that overlap the one with the best score; return their numbers."""
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
    operators = stand_in_for_compiled_parts()
    with Image.open(sys.argv[1]) as file:
        shown = file.convert("RGB")
    print(json.dumps({checkpoint: generate(checkpoint, shown) for checkpoint in sys.argv[2:]}))
