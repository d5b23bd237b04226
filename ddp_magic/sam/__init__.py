"""Fine-tuning Segment Anything (SAM) models.

This package does not import the rest of ddp_magic. It also works in one process without a process
group. Each name is imported on its first use.

The modules (each imports only modules below it):

    training        the training loop
    progress        bar and rows
    segmentation    `segment`: all objects of an image, in tiles
    tiles           splitting an image, and merging what is found in the parts
    inference       `predict`: masks of prompted objects
    evaluation      scores of held-out objects
    embeddings      embeddings of a frozen encoder, stored on disk
    checkpoint      checkpoints and the log
    dry_run         finds parameters that get no gradient, before training
    tuning          the parameters that are trained: all, the decoder, LoRA
    model           the forward pass that training, evaluation and inference share
    postprocessing  from the output of a model to masks at the original size
    losses          training losses
    prompts         simulated prompts
    plots           figures of results and learning curves
    adapter         the differences between SAM, SAM-HQ, SAM 2 and SAM 3
    batches         from items of a data set to the input of a model
    sampling        the order of the images; objects and augmentation in each epoch
    dataset_access  reading parts of items from any data set
    data            the data set
    patches         patches of images that are too large to be read whole
    coco            masks in the JSON format of COCO
    gray_levels     from images of any dtype to uint8
    files           images and masks in files
    label_checks    checks of masks
    checks          checks of images and prompts
    names           the names of files: which mask belongs to which image
    stored          arrays that are not in memory
    readers         from a file to an array
    volumes         TIFF, NIfTI and DICOM
    channels        alpha, palettes, orientation
    masks           the objects of a label map or a stack of masks
    items           an item of a data set
    metrics         scores of objects, and of label maps
    optimizers      Muon, and the learning rate
    instances       a decoder that finds objects without a prompt
    meta_checkpoint checkpoints in the layout of Meta's repository
    layers          faster versions of layers of transformers
    tiny            a tiny SAM with random weights
    samples         sample data: real nuclei, synthetic cells (NumPy only)
    arguments       checks of words and numbers
    process_group   process group, device, mixed precision
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddp_magic.sam.batches import collate, prepare
    from ddp_magic.sam.data import SamDataset
    from ddp_magic.sam.dry_run import freeze_unused
    from ddp_magic.sam.evaluation import evaluate, show_predictions
    from ddp_magic.sam.inference import predict
    from ddp_magic.sam.instances import instance_decoder
    from ddp_magic.sam.losses import dice_bce, step_losses
    from ddp_magic.sam.meta_checkpoint import load_meta_checkpoint
    from ddp_magic.sam.metrics import dice_score, instance_scores, iou_score, pixel_accuracy
    from ddp_magic.sam.model import PromptedSam
    from ddp_magic.sam.optimizers import Muon, warmup_cosine
    from ddp_magic.sam.patches import random_patches
    from ddp_magic.sam.plots import show_history, show_results
    from ddp_magic.sam.process_group import GradScaler, all_reduce_sum, autocast, cleanup, setup
    from ddp_magic.sam.samples import cells, nuclei, nuclei_picture
    from ddp_magic.sam.sampling import MonaiTransform, RankSampler, Sampled
    from ddp_magic.sam.segmentation import segment
    from ddp_magic.sam.tiny import tiny_sam
    from ddp_magic.sam.training import train
    from ddp_magic.sam.tuning import tune

__all__ = [
    "GradScaler",
    "MonaiTransform",
    "Muon",
    "PromptedSam",
    "RankSampler",
    "SamDataset",
    "Sampled",
    "all_reduce_sum",
    "autocast",
    "cells",
    "cleanup",
    "collate",
    "dice_bce",
    "dice_score",
    "evaluate",
    "freeze_unused",
    "instance_decoder",
    "instance_scores",
    "iou_score",
    "load_meta_checkpoint",
    "nuclei",
    "nuclei_picture",
    "pixel_accuracy",
    "predict",
    "prepare",
    "random_patches",
    "segment",
    "setup",
    "show_history",
    "show_predictions",
    "show_results",
    "step_losses",
    "tiny_sam",
    "train",
    "tune",
    "warmup_cosine",
]

# Each public name, and the module of this package that defines it.
HOMES = {
    "GradScaler": "process_group",
    "MonaiTransform": "sampling",
    "Muon": "optimizers",
    "PromptedSam": "model",
    "RankSampler": "sampling",
    "SamDataset": "data",
    "Sampled": "sampling",
    "all_reduce_sum": "process_group",
    "autocast": "process_group",
    "cells": "samples",
    "cleanup": "process_group",
    "collate": "batches",
    "dice_bce": "losses",
    "dice_score": "metrics",
    "evaluate": "evaluation",
    "freeze_unused": "dry_run",
    "instance_decoder": "instances",
    "instance_scores": "metrics",
    "iou_score": "metrics",
    "load_meta_checkpoint": "meta_checkpoint",
    "nuclei": "samples",
    "nuclei_picture": "samples",
    "pixel_accuracy": "metrics",
    "predict": "inference",
    "prepare": "batches",
    "random_patches": "patches",
    "segment": "segmentation",
    "setup": "process_group",
    "show_history": "plots",
    "show_predictions": "evaluation",
    "show_results": "plots",
    "step_losses": "losses",
    "tiny_sam": "tiny",
    "train": "training",
    "tune": "tuning",
    "warmup_cosine": "optimizers",
}


if not TYPE_CHECKING:  # a type checker would take every missing name for an object

    def __getattr__(name: str) -> object:
        """Import a name on its first use.

        Raises:
            AttributeError: The package has no such name.
        """
        if name not in HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """List all public names, whether imported yet or not."""
    return sorted(__all__)
