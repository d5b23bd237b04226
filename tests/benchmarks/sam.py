"""The prelude beside what one would use instead: `python -m tests.benchmarks.sam`.

Some ten minutes on two idle cores. Each row is a ratio within one run; one thread a process.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from monai.losses import DiceLoss
from monai.metrics import compute_iou
from monai.transforms import RandFlipd, RandRotate90d
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import label
from skimage.segmentation import watershed
from torch import nn, optim
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import SamConfig, SamModel, SamProcessor, get_wsd_schedule
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.models.sam.modeling_sam import SamVisionSdpaAttention

import ddp_magic
from ddp_magic.prelude import (
    SamDataset,
    cells,
    evaluate,
    instance_decoder,
    instance_scores,
    nuclei,
    nuclei_picture,
    segment,
    tiny_sam,
    train,
)
from ddp_magic.sam.data.augmentation import MonaiTransform
from ddp_magic.sam.data.batches import collate, prepare
from ddp_magic.sam.data.samples import SEEN
from ddp_magic.sam.data.sampling import Sampled
from ddp_magic.sam.models.adapter import geometry_of
from ddp_magic.sam.models.model import DTYPES, PromptedSam
from ddp_magic.sam.models.tuning import tune
from ddp_magic.sam.training.embeddings import store_embeddings
from ddp_magic.sam.training.losses import step_losses
from ddp_magic.sam.training.optimizers import Muon

TINY = {
    "size": {"longest_edge": 64},
    "pad_size": {"height": 64, "width": 64},
    "mask_size": {"longest_edge": 32},
    "mask_pad_size": {"height": 32, "width": 32},
}


def median_s(work: Callable[[], object], turns: int) -> float:
    """Run something some times after a first one; return the median of its seconds."""
    seconds = []
    for _ in range(turns + 1):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:] or seconds)


def row(what: str, anchor: str, ours: str, ratio: str) -> None:
    """Print a row of the table."""
    print(f"| {what} | {anchor} | {ours} | {ratio} |", flush=True)


def step(wrapper: PromptedSam, data: Dataset[Any], optimizer: optim.Optimizer) -> None:
    """Train on the first image of a set, once."""
    learn_from(wrapper, prepare(collate([data[0]]), wrapper.geometry), optimizer)


def encoded_anew(wrapper: PromptedSam, data: Dataset[Any], optimizer: optim.Optimizer) -> None:
    """Do the same, with the image encoded by transformers' own forward each time."""
    with torch.no_grad():
        batch = encoded(wrapper, prepare(collate([data[0]]), wrapper.geometry))
    learn_from(wrapper, batch, optimizer)


def encoded(wrapper: PromptedSam, batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch with what transformers' own forward makes of its images."""
    for layer in wrapper.sam.vision_encoder.layers:
        layer.attn.__class__ = SamVisionSdpaAttention  # instead of the faster one
    maps = wrapper.sam.vision_encoder(batch["pixel_values"]).last_hidden_state
    return batch | {"embeddings": [maps]}


def learn_from(wrapper: PromptedSam, batch: dict[str, Any], optimizer: optim.Optimizer) -> None:
    """Take a step."""
    loss = step_losses(wrapper, batch).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def cached_step(turns: int) -> None:
    """A ViT-B at 1024 with a frozen encoder, one object: encoded in each step, or once."""
    torch.set_num_threads(2)
    wrapper = PromptedSam(tune(SamModel(SamConfig()), "decoder"), rounds=1)
    trained = [p for p in wrapper.parameters() if p.requires_grad]
    optimizer = optim.AdamW(trained, lr=1e-5, fused=True)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 1024, 1024, 3), dtype=np.uint8)
    mask = np.zeros((1, 1024, 1024), bool)
    mask[0, 300:700, 200:600] = True
    data = SamDataset(image, mask, [(0, 500, 400)])
    every = median_s(lambda: encoded_anew(wrapper, data, optimizer), 1)
    with TemporaryDirectory() as folder:
        stored = store_embeddings(wrapper, data, Path(folder))
        once = median_s(lambda: step(wrapper, stored, optimizer), turns)
    row(
        "step, frozen ViT-B at 1024, 1 object, 2 threads",
        f"{every:.2f} s",
        f"{once:.3f} s",
        f"{every / once:.0f} x (goal 60)",
    )
    torch.set_num_threads(1)


def preparation(turns: int) -> None:
    """An image of 1365 x 2048 pixels to what SAM takes."""
    image = np.random.default_rng(0).integers(0, 256, (1365, 2048, 3), dtype=np.uint8)
    processor = SamImageProcessorPil()
    theirs = median_s(lambda: processor(image, return_tensors="pt"), turns)
    data = SamDataset([image], [np.zeros(image.shape[:2], bool)], [])
    batch, geometry = collate([data[0]]), geometry_of(SamModel(SamConfig()))
    ours = median_s(lambda: prepare(batch, geometry), turns)
    row(
        "preparation of a 1365 x 2048 image",
        f"{theirs * 1000:.0f} ms (SamProcessor)",
        f"{ours * 1000:.1f} ms",
        f"{theirs / ours:.1f} x (goal 8 ms)",
    )


def prompts() -> None:
    """The clicks of 10,000 images, 5 each, as an epoch needs them."""
    n = 10_000
    rows = np.stack([np.repeat(np.arange(n), 5), np.arange(5 * n) % 4, np.zeros(5 * n)], 1)
    data = SamDataset([np.zeros((4, 4), np.uint8)] * n, [np.ones((4, 4), np.uint8)] * n, rows)
    ours = median_s(lambda: [data.prompts(i) for i in range(n)], 3)
    coordinates = rows.tolist()
    few = 20
    theirs = median_s(
        lambda: [[(p[2], p[1]) for p in coordinates if p[0] == i] for i in range(few)], 1
    )
    row(
        "prompts of 10,000 images x 5 clicks",
        f"{theirs * n / few:.0f} s (the guide, from {few})",
        f"{ours:.3f} s",
        f"{theirs * n / few / ours:.0f} x (goal 0.1 s)",
    )


def objects(turns: int) -> None:
    """An item of 25 objects, of 529 in 2048 x 2048 pixels: all masks made, or those in use."""
    side = np.arange(2048)
    squares = np.where((side % 88 < 60) & (side // 88 < 23), side // 88, -1)
    y, x = np.meshgrid(squares, squares, indexing="ij")
    labels = np.where((y < 0) | (x < 0), 0, y * 23 + x + 1).astype(np.int32)
    image = np.random.default_rng(0).integers(0, 256, labels.shape, dtype=np.uint8)
    data = SamDataset([image], [labels])
    sampled = Sampled(data, instances=False)  # as `train` reads it
    cost: dict[str, tuple[float, float]] = {}
    for name, work in {"all": lambda: data[0], "some": lambda: sampled[0]}.items():
        seconds = median_s(work, turns)
        tracemalloc.start()
        work()
        cost[name] = seconds, tracemalloc.get_traced_memory()[1] / 1e9
        tracemalloc.stop()
    row(
        "item of 25 of 529 objects in 2048 x 2048 pixels",
        f"{cost['all'][0]:.2f} s, {cost['all'][1]:.2f} GB (all masks)",
        f"{cost['some'][0]:.2f} s, {cost['some'][1]:.2f} GB",
        "(goal 0.5 s, 0.1 GB)",
    )


@dataclass
class Setting:
    """What is trained, on what: the same for the reference and for us."""

    model: Callable[[], SamModel]
    data: tuple[Any, Any, Any]  # images, label maps, clicks
    batch: tuple[int, int]  # the reference's objects, our images
    processor: dict[str, Any] = field(default_factory=dict)
    amp: str = "fp32"
    workers: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def now(self) -> float:
        """Return the time at which all that was asked of the device is done, s."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


class OneObject(Dataset[Any]):
    """As the well-known Transformers notebook: an object an item, through SamProcessor."""

    def __init__(self, setting: Setting) -> None:
        self.images, self.masks, self.clicks = setting.data
        self.processor = SamProcessor(SamImageProcessorPil(**setting.processor))

    def __len__(self) -> int:
        return len(self.clicks)

    def __getitem__(self, index: int) -> Any:
        number, y, x = self.clicks[index].tolist()
        image = np.repeat(self.images[number][..., None], 3, axis=2)
        inputs = self.processor(image, input_points=[[[x, y]]], return_tensors="pt")
        item = {key: value.squeeze(0) for key, value in inputs.items()}
        mask = self.masks[number]
        return item | {"ground_truth_mask": (mask == mask[y, x]).astype(np.float32)}


def reference_epoch(setting: Setting) -> float:
    """Train with accelerate and SamProcessor, for the same loss; return objects a second."""
    AcceleratorState._reset_state(reset_partial_state=True)  # of an epoch in other arithmetic
    accelerator = Accelerator(
        cpu=setting.device.type == "cpu",
        mixed_precision="no" if setting.amp == "fp32" else setting.amp,
    )
    model = setting.model()
    loader = DataLoader(
        OneObject(setting), setting.batch[0], shuffle=True, num_workers=setting.workers
    )
    optimizer = optim.AdamW(model.parameters(), lr=1e-3)
    loss_of = DiceLoss(sigmoid=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    start, count = 0.0, 0
    for number, batch in enumerate(loader):
        if number == 1:  # the first one warms up
            start = setting.now()
        points, true = batch["input_points"].float(), batch["ground_truth_mask"][:, None]
        out = model(pixel_values=batch["pixel_values"], input_points=points, multimask_output=False)
        large = nn.functional.interpolate(out.pred_masks[:, 0], true.shape[-2:], mode="bilinear")
        loss = loss_of(large, true)
        loss = loss + nn.functional.binary_cross_entropy_with_logits(large, true)
        iou = compute_iou((large > 0).float(), true, ignore_empty=False)
        loss = loss + nn.functional.mse_loss(out.iou_scores[:, 0], iou)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        count += len(points) * (number > 0)
    return count / (setting.now() - start)


def our_epoch(setting: Setting, rounds: int = 1, *, compiled: bool = False) -> float:
    """Train with the prelude's loss and its guesses of IoU; return objects a second."""
    data = SamDataset(*setting.data)
    sam = setting.model().to(setting.device)
    if compiled:
        sam.vision_encoder.compile()
    wrapper = PromptedSam(sam, rounds=rounds, multimask=False, amp=setting.amp).train()
    optimizer = optim.AdamW(wrapper.parameters(), lr=1e-3, fused=True)
    scaler = torch.amp.GradScaler(setting.device.type, enabled=setting.amp == "fp16")
    loader = DataLoader(
        data,
        setting.batch[1],
        shuffle=True,
        collate_fn=collate,
        num_workers=setting.workers,
        pin_memory=setting.device.type == "cuda",
    )
    start, count = 0.0, 0
    for number, raw in enumerate(loader):
        if number == 1:
            start = setting.now()
        batch = prepare(raw, wrapper.geometry, setting.device)
        optimizer.zero_grad()
        loss = step_losses(wrapper, batch).mean()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        count += len(batch["masks"]) * (number > 0)
    return count / (setting.now() - start)


def throughput(images: int) -> None:
    """Objects a second of one rank, one click each, the same model and images."""
    setting = Setting(tiny_sam, nuclei("train", crops=images), (24, 8), TINY)
    theirs, ours = reference_epoch(setting), our_epoch(setting)
    corrected = our_epoch(setting, 3)
    row(
        "training, one rank, tiny model, one click",
        f"{theirs:.0f} objects/s (accelerate + SamProcessor)",
        f"{ours:.0f} objects/s (3 rounds of clicks: {corrected:.0f})",
        f"{ours / theirs:.1f} x (goal 2)",
    )


def gpu() -> None:
    """A ViT-B at 1024 on a GPU, all of it trained, one click an image of 256 pixels."""
    if not torch.cuda.is_available():
        row("ViT-B at 1024 on a GPU", "", "no GPU here", "")
        return
    images, masks, clicks = cells(n=256, size=256)
    clicks = clicks[np.unique(clicks[:, 0], return_index=True)[1]]  # the first of each image
    for amp in ("fp16", "bf16"):
        setting = Setting(
            lambda: SamModel(SamConfig()),
            (images, masks, clicks),
            (4, 4),
            amp=amp,
            workers=4,
            device=torch.device("cuda"),
        )
        theirs, ours = reference_epoch(setting), our_epoch(setting)
        share = ours * operations_an_image(setting) / matmul_speed(setting)
        row(
            f"ViT-B at 1024 on a {torch.cuda.get_device_name()}, {amp}",
            f"{theirs:.1f} images/s (accelerate + SamProcessor)",
            f"{ours:.1f} images/s, {share:.0%} of what a large product of matrices reaches",
            f"{ours / theirs:.1f} x",
        )
    compiled = our_epoch(setting, compiled=True)
    row(
        f"the same with a compiled encoder, {amp}",
        "",
        f"{compiled:.1f} images/s, {share * compiled / ours:.0%}",
        f"{compiled / theirs:.1f} x",
    )


def operations_an_image(setting: Setting) -> float:
    """Count the floating-point operations of a training step, an image, as transformers does it.

    Ours multiplies longer queries and keys in its place, which is no more done for the user.
    """
    data, n = SamDataset(*setting.data), setting.batch[1]
    wrapper = PromptedSam(setting.model(), rounds=1, multimask=False, amp=setting.amp)
    wrapper.to(setting.device).train()
    batch = prepare(collate([data[i] for i in range(n)]), wrapper.geometry, setting.device)
    with FlopCounterMode(display=False) as counter:
        with torch.autocast(setting.device.type, DTYPES[setting.amp]):
            batch = encoded(wrapper, batch)
        step_losses(wrapper, batch).mean().backward()
    return counter.get_total_flops() / n


def matmul_speed(setting: Setting, size: int = 8192) -> float:
    """Return the floating-point operations a second that a product of large matrices reaches."""
    # Random, since the power that a product of ones takes, and so its time, is less.
    a = torch.randn(size, size, dtype=DTYPES[setting.amp], device=setting.device)

    def work() -> None:
        a @ a
        setting.now()

    return 2 * size**3 / median_s(work, 10)


def images_per_s(crops: int) -> float:
    """Train two epochs on all ranks; return the second one's speed."""
    torch.set_num_threads(1)
    sets = SamDataset(*nuclei("train", crops=crops)), SamDataset(*nuclei("val", crops=2))
    history = train(PromptedSam(tiny_sam(), multimask=False), *sets, epochs=2, batch_size=8)
    return history[-1]["images_per_s"]


def ranks(crops: int) -> None:
    """Two ranks against one, a thread each."""
    speed = {n: ddp_magic.launch(images_per_s, crops, nproc_per_node=n).results[0] for n in (1, 2)}
    row(
        "2 ranks against 1, one thread each",
        f"{speed[1]:.0f} images/s",
        f"{speed[2]:.0f} images/s",
        f"{speed[2] / speed[1]:.2f} x (goal 1.8)",
    )


def learn(folder: str) -> dict[str, float]:
    """Train as the notebook does; return the held-out scores and the seconds."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    train_set = SamDataset(*nuclei("train", crops=1600, size=(56, 64, 72, 80)))
    val_set = SamDataset(*nuclei("val"))
    model = tiny_sam()
    wrapper = PromptedSam(
        model, rounds=RECIPE_ROUNDS, multimask=False, auxiliary=instance_decoder(model)
    )
    optimizer = lambda _: Muon(wrapper, lr=6e-3)  # noqa: E731
    train(wrapper, train_set, val_set, optimizer=optimizer, **RECIPE, out_dir=folder)
    scores = evaluate(model, val_set)
    return scores | {"seconds": time.perf_counter() - start}


BOTH = ["image", "masks"]
RECIPE_ROUNDS = 2
RECIPE: dict[str, Any] = {
    "epochs": 8,
    "batch_size": 16,
    "schedule": lambda optimizer, steps: get_wsd_schedule(
        optimizer, steps // 20, steps * 3 // 10, steps
    ),
    "transform": MonaiTransform(RandFlipd(BOTH, 0.5, 1), RandRotate90d(BOTH, 0.75, 3)),
}


def of_whole_picture(model: nn.Module) -> dict[str, tuple[dict[str, float], float]]:
    """Segment the held-out nuclei without prompts; return scores and seconds of each way."""
    image, truth, ignore = nuclei_picture()
    ways: dict[str, Callable[[], Any]] = {
        "Otsu, watershed": lambda: otsu_and_watershed(image),
        "grid": lambda: segment(model, image, points_per_side=16),
        "decoder": lambda: segment(model, image),
    }
    found = {}
    for name, way in ways.items():
        start = time.perf_counter()
        labels = way()
        found[name] = instance_scores(labels, truth, ignore), time.perf_counter() - start
    return found


def otsu_and_watershed(image: NDArray[np.uint8]) -> NDArray[Any]:
    """Segment bright objects as tutorials of scikit-image do.

    Of 12 pairs of smoothing and distance, these have the highest scores on the held-out nuclei.
    """
    smooth = gaussian(image.astype(float), 1)
    mask = smooth > threshold_otsu(smooth)
    distance = gaussian(distance_transform_edt(mask), 1)
    middles = peak_local_max(distance, min_distance=5, labels=label(mask))
    markers = np.zeros(image.shape, int)
    markers[tuple(middles.T)] = 1 + np.arange(len(middles))
    labels: NDArray[Any] = watershed(-distance, markers, mask=mask)
    areas = np.bincount(labels.ravel())
    return np.where(areas[labels] < SEEN, 0, labels)


def large_picture(model: nn.Module) -> float:
    """Segment 2048 x 2048 pixels, a mosaic of the held-out nuclei; return the seconds."""
    torch.set_num_threads(2)
    strip = nuclei_picture()[0]
    start = time.perf_counter()
    segment(model, np.tile(strip, (4, 13))[:, :2048])
    return time.perf_counter() - start


def quality() -> None:
    """Held-out nuclei, tiny model, two ranks."""
    with TemporaryDirectory() as folder:
        scores = ddp_magic.launch(learn, folder, nproc_per_node=2).results[0]
        model = SamModel.from_pretrained(f"{folder}/best")
        pictures, large_s = of_whole_picture(model), large_picture(model)
    row(
        "held-out nuclei, Dice at 1 / 5 clicks; wrong prompt",
        ".889 / .290 trained one-click; .883 / .925 with 3 rounds",
        f"{scores['dice']:.3f} / {scores['dice_5']:.3f}; {scores['wrong_prompt_dice']:.3f}",
        f"{scores['seconds']:.0f} s (goal .90 / .94, under .05, 180 s)",
    )
    names = ("ap_50", "ap_75", "ap", "pq")
    shown = {
        way: f"{way}: {' / '.join(f'{s[name]:.3f}' for name in names)}, {seconds:.1f} s"
        for way, (s, seconds) in pictures.items()
    }
    row(
        "the same, whole picture of 512 x 160: AP50 / AP75 / AP / PQ",
        f"{shown['Otsu, watershed']}; {shown['grid']}",
        shown["decoder"],
        "(goal .93 / - / - / .87)",
    )
    row("segment, 2048 x 2048, tiny model, 2 threads", "", f"{large_s:.0f} s", "(goal 60 s)")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--crops", type=int, default=384)
    parser.add_argument("--only", default="", help="a function's name")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| what | anchor | here | |\n| --- | --- | --- | --- |")
    parts: dict[str, Callable[[], None]] = {
        "preparation": lambda: preparation(options.turns),
        "prompts": prompts,
        "objects": lambda: objects(options.turns),
        "throughput": lambda: throughput(options.crops),
        "gpu": gpu,
        "cached_step": lambda: cached_step(options.turns),
        "ranks": lambda: ranks(options.crops),
        "quality": quality,
    }
    for name, part in parts.items():
        if options.only in {"", name}:
            part()


if __name__ == "__main__":
    main()
