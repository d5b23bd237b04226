"""Fine-tuning Segment Anything (SAM) models.

This package does not import the rest of ddp_magic. It also works in one process without a process
group. Each name is imported on its first use.

The rooms (each imports only rooms below it):

    training    `train`
        loop            the training loop
        embeddings      embeddings of a frozen encoder, stored on disk
        out_dir         the folder that it writes to; going on after a restart of the ranks
        checkpoint      checkpoints, and the log
        losses          training losses, and a check of them
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
        sampling        the order of the images; objects and prompts in each epoch
        augmentation    augmentation by the transforms of MONAI
        batches         from items of a data set to the input of a model
        samples         sample data: real nuclei, synthetic cells (NumPy only)
    reading
        files           images and masks in files
        names           the names of files: which mask belongs to which image
        readers         from a file to an array
        pictures        images in files, and arrays that are not in memory, read when indexed
        pil             images that Pillow opens
        dicom           DICOM
        volumes         TIFF and NIfTI
        channels        alpha, palettes, orientation, pixels without data
        coco            masks in the JSON format of COCO
        patches         patches of images that are too large to be read whole
        gray_levels     from images of any dtype to uint8
    arrays
        items           an item of a data set
        masks           the objects of a label map or a stack of masks
        checks          checks of shapes
        prompt_checks   checks of clicks and boxes
        label_checks    checks of masks
    arguments       checks of words, numbers, flags and functions
    process_group   process group, device, mixed precision
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddp_magic.sam.data.augmentation import MonaiTransform as MonaiTransform
    from ddp_magic.sam.data.batches import collate as collate
    from ddp_magic.sam.data.batches import prepare as prepare
    from ddp_magic.sam.data.dataset import SamDataset as SamDataset
    from ddp_magic.sam.data.samples import cells as cells
    from ddp_magic.sam.data.samples import nuclei as nuclei
    from ddp_magic.sam.data.samples import nuclei_picture as nuclei_picture
    from ddp_magic.sam.data.sampling import RankSampler as RankSampler
    from ddp_magic.sam.data.sampling import Sampled as Sampled
    from ddp_magic.sam.evaluation.evaluate import evaluate as evaluate
    from ddp_magic.sam.evaluation.evaluate import show_predictions as show_predictions
    from ddp_magic.sam.evaluation.metrics import dice_score as dice_score
    from ddp_magic.sam.evaluation.metrics import instance_scores as instance_scores
    from ddp_magic.sam.evaluation.metrics import iou_score as iou_score
    from ddp_magic.sam.evaluation.metrics import pixel_accuracy as pixel_accuracy
    from ddp_magic.sam.evaluation.plots import show_history as show_history
    from ddp_magic.sam.evaluation.plots import show_results as show_results
    from ddp_magic.sam.inference.predict import predict as predict
    from ddp_magic.sam.inference.segment import segment as segment
    from ddp_magic.sam.models.instances import instance_decoder as instance_decoder
    from ddp_magic.sam.models.meta_checkpoint import load_meta_checkpoint as load_meta_checkpoint
    from ddp_magic.sam.models.model import PromptedSam as PromptedSam
    from ddp_magic.sam.models.tiny import tiny_sam as tiny_sam
    from ddp_magic.sam.models.tuning import tune as tune
    from ddp_magic.sam.process_group import GradScaler as GradScaler
    from ddp_magic.sam.process_group import all_reduce_sum as all_reduce_sum
    from ddp_magic.sam.process_group import autocast as autocast
    from ddp_magic.sam.process_group import cleanup as cleanup
    from ddp_magic.sam.process_group import setup as setup
    from ddp_magic.sam.reading.patches import random_patches as random_patches
    from ddp_magic.sam.training.loop import train as train
    from ddp_magic.sam.training.losses import dice_bce as dice_bce
    from ddp_magic.sam.training.losses import step_losses as step_losses
    from ddp_magic.sam.training.optimizers import Muon as Muon
    from ddp_magic.sam.training.optimizers import warmup_cosine as warmup_cosine

# The modules of this package, and the public names that each defines.
_NAMES = {
    "process_group": "GradScaler all_reduce_sum autocast cleanup setup",
    "reading.patches": "random_patches",
    "data.batches": "collate prepare",
    "data.dataset": "SamDataset",
    "data.samples": "cells nuclei nuclei_picture",
    "data.augmentation": "MonaiTransform",
    "data.sampling": "RankSampler Sampled",
    "models.instances": "instance_decoder",
    "models.meta_checkpoint": "load_meta_checkpoint",
    "models.model": "PromptedSam",
    "models.tiny": "tiny_sam",
    "models.tuning": "tune",
    "inference.predict": "predict",
    "inference.segment": "segment",
    "evaluation.evaluate": "evaluate show_predictions",
    "evaluation.metrics": "dice_score instance_scores iou_score pixel_accuracy",
    "evaluation.plots": "show_history show_results",
    "training.loop": "train",
    "training.losses": "dice_bce step_losses",
    "training.optimizers": "Muon warmup_cosine",
}
HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}
__all__ = sorted(HOMES)  # noqa: PLE0605 -- a list

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
    return __all__
