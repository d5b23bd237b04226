"""Fine-tuning Segment Anything (SAM) models.

This package does not import the rest of ddp_magic. It also works in one process without a process
group. Each name is imported on its first use.

The rooms (each imports only rooms below it):

    training    `train`
        loop            the training loop
        checks          of what `train` is given, and of its loss
        progress        bar and rows
        embeddings      embeddings of a frozen encoder, stored on disk
        checkpoint      checkpoints and the log
        restarts        going on after a restart of the ranks
        losses          training losses
        optimizers      Muon, and the learning rate
    evaluation
        evaluate        scores of held-out objects
        metrics         scores of objects, and of label maps
        plots           figures of results and learning curves
    inference
        segment         `segment`: all objects of an image, in tiles
        tiles           splitting an image, and merging what is found in the parts
        predict         `predict`: masks of prompted objects
    models
        model           the forward pass that training, evaluation and inference share
        tuning          the parameters that are trained: all, the decoder, LoRA
        adapter         the differences between SAM, SAM-HQ, SAM 2 and SAM 3
        prompts         simulated prompts
        postprocessing  from the output of a model to masks at the original size
        instances       a decoder that finds objects without a prompt
        layers          faster attention in the image encoder
        meta_checkpoint checkpoints in the layout of Meta's repository
        tiny            a tiny SAM with random weights
    data
        dataset         the data set
        access          reading parts of items from any data set
        sampling        the order of the images; objects and augmentation in each epoch
        batches         from items of a data set to the input of a model
        samples         sample data: real nuclei, synthetic cells (NumPy only)
    reading
        files           images and masks in files
        names           the names of files: which mask belongs to which image
        readers         from a file to an array
        pictures        sequences of images in files, read when they are indexed
        pil             images that Pillow opens
        dicom           DICOM
        volumes         TIFF and NIfTI
        channels        alpha, palettes, orientation, pixels without data
        coco            masks in the JSON format of COCO
        stored          arrays that are not in memory
        patches         patches of images that are too large to be read whole
        gray_levels     from images of any dtype to uint8
    arrays
        items           an item of a data set
        masks           the objects of a label map or a stack of masks
        checks          checks of images and prompts
        label_checks    checks of masks
    arguments       checks of words, numbers and functions
    process_group   process group, device, mixed precision
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddp_magic.sam.data.batches import collate, prepare
    from ddp_magic.sam.data.dataset import SamDataset
    from ddp_magic.sam.data.samples import cells, nuclei, nuclei_picture
    from ddp_magic.sam.data.sampling import MonaiTransform, RankSampler, Sampled
    from ddp_magic.sam.evaluation.evaluate import evaluate, show_predictions
    from ddp_magic.sam.evaluation.metrics import (
        dice_score,
        instance_scores,
        iou_score,
        pixel_accuracy,
    )
    from ddp_magic.sam.evaluation.plots import show_history, show_results
    from ddp_magic.sam.inference.predict import predict
    from ddp_magic.sam.inference.segment import segment
    from ddp_magic.sam.models.instances import instance_decoder
    from ddp_magic.sam.models.meta_checkpoint import load_meta_checkpoint
    from ddp_magic.sam.models.model import PromptedSam
    from ddp_magic.sam.models.tiny import tiny_sam
    from ddp_magic.sam.models.tuning import tune
    from ddp_magic.sam.process_group import GradScaler, all_reduce_sum, autocast, cleanup, setup
    from ddp_magic.sam.reading.patches import random_patches
    from ddp_magic.sam.training.loop import train
    from ddp_magic.sam.training.losses import dice_bce, step_losses
    from ddp_magic.sam.training.optimizers import Muon, warmup_cosine

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
    "MonaiTransform": "data.sampling",
    "Muon": "training.optimizers",
    "PromptedSam": "models.model",
    "RankSampler": "data.sampling",
    "SamDataset": "data.dataset",
    "Sampled": "data.sampling",
    "all_reduce_sum": "process_group",
    "autocast": "process_group",
    "cells": "data.samples",
    "cleanup": "process_group",
    "collate": "data.batches",
    "dice_bce": "training.losses",
    "dice_score": "evaluation.metrics",
    "evaluate": "evaluation.evaluate",
    "instance_decoder": "models.instances",
    "instance_scores": "evaluation.metrics",
    "iou_score": "evaluation.metrics",
    "load_meta_checkpoint": "models.meta_checkpoint",
    "nuclei": "data.samples",
    "nuclei_picture": "data.samples",
    "pixel_accuracy": "evaluation.metrics",
    "predict": "inference.predict",
    "prepare": "data.batches",
    "random_patches": "reading.patches",
    "segment": "inference.segment",
    "setup": "process_group",
    "show_history": "evaluation.plots",
    "show_predictions": "evaluation.evaluate",
    "show_results": "evaluation.plots",
    "step_losses": "training.losses",
    "tiny_sam": "models.tiny",
    "train": "training.loop",
    "tune": "models.tuning",
    "warmup_cosine": "training.optimizers",
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
