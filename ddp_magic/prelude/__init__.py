"""SAM fine-tuning helpers, and the names that a distributed PyTorch program usually imports.

In a `%%ddp` cell they are simply there; elsewhere: `from ddp_magic.prelude import train, nuclei`.
Nothing is imported before it is used: `import ddp_magic.prelude` loads neither torch nor anything
else that is heavy.

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

    from ddp_magic.prelude.batches import collate, prepare
    from ddp_magic.prelude.data import SamDataset
    from ddp_magic.prelude.evaluation import evaluate, show_predictions
    from ddp_magic.prelude.inference import predict, segment
    from ddp_magic.prelude.metrics import dice_score, iou_score, pixel_accuracy
    from ddp_magic.prelude.model import tiny_sam
    from ddp_magic.prelude.plots import show_history, show_results
    from ddp_magic.prelude.process_group import GradScaler, autocast, cleanup, setup
    from ddp_magic.prelude.samples import cells, nuclei
    from ddp_magic.prelude.training import train

__all__ = [
    "DDP",
    "DataLoader",
    "Dataset",
    "DiceLoss",
    "DistributedSampler",
    "F",
    "GradScaler",
    "SamDataset",
    "SamModel",
    "SamProcessor",
    "Subset",
    "autocast",
    "cells",
    "cleanup",
    "collate",
    "csv",
    "dice_score",
    "dist",
    "evaluate",
    "iou_score",
    "mp",
    "nn",
    "np",
    "nuclei",
    "optim",
    "os",
    "pixel_accuracy",
    "plt",
    "predict",
    "prepare",
    "segment",
    "setup",
    "show_history",
    "show_predictions",
    "show_results",
    "socket",
    "tiny_sam",
    "torch",
    "tqdm",
    "train",
]

# name -> (module, attribute of it; None: the module itself)
HOMES: dict[str, tuple[str, str | None]] = {
    "csv": ("csv", None),
    "os": ("os", None),
    "socket": ("socket", None),
    "np": ("numpy", None),
    "plt": ("matplotlib.pyplot", None),
    "tqdm": ("tqdm.std", "tqdm"),  # text; a notebook's widget bar cannot live in a rank
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
    "SamDataset": (".data", "SamDataset"),
    "collate": (".batches", "collate"),
    "prepare": (".batches", "prepare"),
    "dice_score": (".metrics", "dice_score"),
    "iou_score": (".metrics", "iou_score"),
    "pixel_accuracy": (".metrics", "pixel_accuracy"),
    "tiny_sam": (".model", "tiny_sam"),
    "predict": (".inference", "predict"),
    "segment": (".inference", "segment"),
    "show_results": (".plots", "show_results"),
    "show_history": (".plots", "show_history"),
    "setup": (".process_group", "setup"),
    "cleanup": (".process_group", "cleanup"),
    "autocast": (".process_group", "autocast"),
    "GradScaler": (".process_group", "GradScaler"),
    "nuclei": (".samples", "nuclei"),
    "cells": (".samples", "cells"),
    "train": (".training", "train"),
    "evaluate": (".evaluation", "evaluate"),
    "show_predictions": (".evaluation", "show_predictions"),
}


def home(name: str) -> str:
    """Return the full name of the module in which a name of the prelude lives."""
    module = HOMES[name][0]
    return __name__ + module if module.startswith(".") else module


# Those that are this package's work, not other libraries'.
OWN_NAMES = frozenset(name for name, (module, _) in HOMES.items() if module.startswith("."))

# What `pip install "ddp-magic[sam]"` brings.
_EXTRA = {"PIL", "matplotlib", "monai", "tqdm", "transformers"}


def __getattr__(name: str) -> object:
    """Import a name on its first use.

    Raises:
        AttributeError: There is no such name.
        ImportError: It needs a package that is not installed.
    """
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = HOMES[name]
    try:
        home = import_module(module, __name__)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        raise ImportError(f'{name} needs {missing}: pip install "ddp-magic[sam]"') from error
    value: object = home if attribute is None else getattr(home, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(__all__)
