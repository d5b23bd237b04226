"""SAM fine-tuning: images, masks and prompts in, a trained model and honest scores out.

Useful without the rest of ddp_magic: it imports nothing of it, and works at world size 1 without
a process group. Nothing is imported before it is used.

General layout (each module uses those below it):

    training       the loop
    checkpoint     what is saved, and the log
    tuning         which weights are trained: all, the decoder, LoRA; their running average
    optimizers     AdamW, Muon
    embeddings     a frozen encoder's output, kept on disk
    evaluation     scores of held-out objects
    inference      a trained model at work: `predict` and `segment`
    losses         what training makes small
    model          a tiny SAM, the one forward
    prompts        first prompts, and clicks that correct
    adapter        what differs between SAM, HQ-SAM, SAM 2 and SAM 3
    layers         what transformers and torch do too, with fewer bytes
    plots          pictures of results, learning curves
    batches        items of a data set, to the tensors that SAM takes
    data           images, masks and prompts, an item an image
    arrays, files  what users give: checked, read
    metrics        one score an object
    process_group  joining, leaving, the device, mixed precision
    samples        real nuclei, drawn cells (NumPy only)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddp_magic.sam.batches import collate, prepare
    from ddp_magic.sam.data import SamDataset
    from ddp_magic.sam.evaluation import evaluate, show_predictions
    from ddp_magic.sam.inference import predict, segment
    from ddp_magic.sam.metrics import dice_score, iou_score, pixel_accuracy
    from ddp_magic.sam.model import tiny_sam
    from ddp_magic.sam.plots import show_history, show_results
    from ddp_magic.sam.process_group import GradScaler, autocast, cleanup, setup
    from ddp_magic.sam.samples import cells, nuclei
    from ddp_magic.sam.training import train

__all__ = [
    "GradScaler",
    "SamDataset",
    "autocast",
    "cells",
    "cleanup",
    "collate",
    "dice_score",
    "evaluate",
    "iou_score",
    "nuclei",
    "pixel_accuracy",
    "predict",
    "prepare",
    "segment",
    "setup",
    "show_history",
    "show_predictions",
    "show_results",
    "tiny_sam",
    "train",
]

# Each public name, and the module of this package in which it is defined.
HOMES = {
    "GradScaler": "process_group",
    "SamDataset": "data",
    "autocast": "process_group",
    "cells": "samples",
    "cleanup": "process_group",
    "collate": "batches",
    "dice_score": "metrics",
    "evaluate": "evaluation",
    "iou_score": "metrics",
    "nuclei": "samples",
    "pixel_accuracy": "metrics",
    "predict": "inference",
    "prepare": "batches",
    "segment": "inference",
    "setup": "process_group",
    "show_history": "plots",
    "show_predictions": "evaluation",
    "show_results": "plots",
    "tiny_sam": "model",
    "train": "training",
}


if not TYPE_CHECKING:  # a type checker would take every missing name for an object

    def __getattr__(name: str) -> object:
        """Import a name on its first use.

        Raises:
            AttributeError: There is no such name.
        """
        if name not in HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(__all__)
