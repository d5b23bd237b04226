"""The names that a `%%ddp` cell finds ready, and where each is defined.

They are the usual imports of a distributed PyTorch program and the public names of `ddp_magic.sam`.
Outside a cell, import them from here or from where they are defined, such as `ddp_magic.sam`. Each
name is imported on its first use: `import ddp_magic.prelude` imports neither torch nor any other
large library.

Names that tutorials on DDP in notebooks define, and what replaces them here:

    compute_dice_score             dice_score: one score per object; logits are thresholded at 0
    compute_iou                    iou_score: 1 for two empty masks, as dice_score
    compute_accuracy               pixel_accuracy
    visualize_results              show_results
    CustomDataset                  SamDataset(images, masks, coordinates)
    collate_fn                     collate, then prepare on the rank's device
    setup(rank, world_size, port)  setup; in a cell it only returns the device
    cleanup                        cleanup
    find_free_port                 not needed
    torch.cuda.amp.autocast        autocast: torch.autocast for the device in use
    torch.cuda.amp.GradScaler      GradScaler: torch.amp.GradScaler for the device in use
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ddp_magic import sam

if TYPE_CHECKING:
    import csv
    import os
    import socket

    import matplotlib.pyplot as plt
    import numpy as np
    import torch
    import torch.distributed as dist
    import torch.multiprocessing as mp
    import torch.nn.functional as F
    from monai.losses import DiceLoss
    from torch import nn, optim
    from torch.nn.parallel import DistributedDataParallel as DDP
    from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset
    from tqdm.std import tqdm
    from transformers import SamModel, SamProcessor

    from ddp_magic.sam import (
        GradScaler,
        MonaiTransform,
        Muon,
        PromptedSam,
        RankSampler,
        SamDataset,
        Sampled,
        all_reduce_sum,
        autocast,
        cells,
        cleanup,
        collate,
        dice_bce,
        dice_score,
        evaluate,
        instance_decoder,
        instance_scores,
        iou_score,
        load_meta_checkpoint,
        nuclei,
        nuclei_picture,
        pixel_accuracy,
        predict,
        prepare,
        random_patches,
        segment,
        setup,
        show_history,
        show_predictions,
        show_results,
        step_losses,
        tiny_sam,
        train,
        tune,
        warmup_cosine,
    )

__all__ = [
    "DDP",
    "DataLoader",
    "Dataset",
    "DiceLoss",
    "DistributedSampler",
    "F",
    "GradScaler",
    "MonaiTransform",
    "Muon",
    "PromptedSam",
    "RankSampler",
    "SamDataset",
    "SamModel",
    "SamProcessor",
    "Sampled",
    "Subset",
    "all_reduce_sum",
    "autocast",
    "cells",
    "cleanup",
    "collate",
    "csv",
    "dice_bce",
    "dice_score",
    "dist",
    "evaluate",
    "instance_decoder",
    "instance_scores",
    "iou_score",
    "load_meta_checkpoint",
    "mp",
    "nn",
    "np",
    "nuclei",
    "nuclei_picture",
    "optim",
    "os",
    "pixel_accuracy",
    "plt",
    "predict",
    "prepare",
    "random_patches",
    "segment",
    "setup",
    "show_history",
    "show_predictions",
    "show_results",
    "socket",
    "step_losses",
    "tiny_sam",
    "torch",
    "tqdm",
    "train",
    "tune",
    "warmup_cosine",
]

# name -> (module, attribute of the module; None: the module itself)
HOMES: dict[str, tuple[str, str | None]] = {
    "csv": ("csv", None),
    "os": ("os", None),
    "socket": ("socket", None),
    "np": ("numpy", None),
    "plt": ("matplotlib.pyplot", None),
    "tqdm": ("tqdm.std", "tqdm"),  # as text: notebook widgets do not work in a rank
    "torch": ("torch", None),
    "dist": ("torch.distributed", None),
    "mp": ("torch.multiprocessing", None),
    "nn": ("torch.nn", None),
    "F": ("torch.nn.functional", None),
    "optim": ("torch.optim", None),
    "DDP": ("torch.nn.parallel", "DistributedDataParallel"),
    "Dataset": ("torch.utils.data", "Dataset"),
    "DataLoader": ("torch.utils.data", "DataLoader"),
    "Subset": ("torch.utils.data", "Subset"),
    "DistributedSampler": ("torch.utils.data", "DistributedSampler"),
    "SamModel": ("transformers", "SamModel"),
    "SamProcessor": ("transformers", "SamProcessor"),
    "DiceLoss": ("monai.losses", "DiceLoss"),
    **{name: (f"{sam.__name__}.{module}", name) for name, module in sam.HOMES.items()},
}


def home(name: str) -> str:
    """Return the full name of the module that defines `name`."""
    return HOMES[name][0]


# Each rank has its own of these.
RANK_NAMES = frozenset(["rank", "local_rank", "world_size", "device"])

# The names that this package defines itself.
OWN_NAMES = frozenset(sam.HOMES)

# Packages that `pip install "ddp-magic[sam]"` installs.
_EXTRA = {"PIL", "matplotlib", "monai", "peft", "scipy", "tqdm", "transformers"}


def __getattr__(name: str) -> object:
    """Import a name on its first use.

    Raises:
        AttributeError: The prelude has no such name.
        ImportError: The name needs a package that is not installed.
    """
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = HOMES[name]
    try:
        home = import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        raise ImportError(f'{name} needs {missing}: pip install "ddp-magic[sam]"') from error
    value: object = home if attribute is None else getattr(home, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List all public names, whether imported yet or not."""
    return sorted(__all__)
