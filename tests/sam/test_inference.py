"""Inference with a trained model: predict, segment, and the pipeline of transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset
from transformers import SamModel

from ddp_magic.prelude import (
    SamDataset,
    cells,
    dice_score,
    evaluate,
    instance_scores,
    predict,
    segment,
    tiny_sam,
    train,
)
from ddp_magic.sam.arrays.items import without_objects
from ddp_magic.sam.data.batches import collate, prepare
from ddp_magic.sam.models.adapter import geometry_of
from ddp_magic.sam.models.instances import instance_decoder
from ddp_magic.sam.models.model import PromptedSam
from ddp_magic.sam.reading.gray_levels import to_rgb
from ddp_magic.sam.training.checkpoint import save_model
from ddp_magic.sam.training.optimizers import Muon

from .family import FAMILY, build


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained on synthetic cells until it finds most of them."""
    folder = tmp_path_factory.mktemp("trained")
    sets = SamDataset(*cells(n=96)), SamDataset(*cells(n=16, seed=1))
    prompts = {"points": 2, "boxes": 1, "masks": 1}
    sam = tiny_sam()
    model = PromptedSam(sam, prompts, rounds=1, multimask=False, auxiliary=instance_decoder(sam))
    options: dict[str, Any] = {"optimizer": lambda _: Muon(model, lr=1e-2), "out_dir": folder}
    history = train(model, *sets, epochs=3, batch_size=4, **options)
    assert history[-1]["dice"] > 0.6
    return folder


def test_prompts_of_all_kinds_find_the_object(trained: Path) -> None:
    """Clicks with label 1 and 0, boxes, rough masks, and lists of them work."""
    model = SamModel.from_pretrained(trained / "best")
    images, masks, clicks = cells(n=6, seed=1)
    scores: dict[str, list[float]] = {"click": [], "signed": [], "box": [], "mask": []}
    for number, y, x in clicks:
        true = masks[number] == masks[number, y, x]
        at = np.argwhere(true)
        box = [*at.min(0), *at.max(0)]
        off = np.argwhere(~true)[0]
        image = images[number]
        predicted = {
            "click": predict(model, image, [(y, x)]),
            "signed": predict(model, image, [(y, x), off], [1, 0]),
            "box": predict(model, image, boxes=box),
            "mask": predict(model, image, masks=true),
        }
        for kind, mask in predicted.items():
            assert mask.shape == (64, 64)
            scores[kind].append(dice_score(mask, true).item())
    means = {kind: np.mean(values) for kind, values in scores.items()}
    assert min(means.values()) > 0.6, means
    assert means["box"] > means["click"] - 0.1
    two = predict(model, images[0], boxes=[[0, 0, 20, 20], [30, 30, 50, 50]])
    assert two.shape == (2, 64, 64)
    assert np.array_equal(predict(model, images[0], (9, 30)), predict(model, images[0], [(9, 30)]))


def test_gray_levels_are_those_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image is scaled as the training images, also by a model loaded from a checkpoint."""
    images, masks, clicks = cells(n=4)
    raw = images.astype(np.uint16) * 16 + 100
    train_set = SamDataset(raw, masks, clicks)
    options: dict[str, Any] = {"epochs": 1, "out_dir": tmp_path, "overwrite": True}
    sam = tiny_sam()
    prompted = PromptedSam(sam, rounds=1)
    train(prompted, train_set, SamDataset(raw, masks, clicks, window=train_set.window), **options)
    assert "different gray levels" not in capsys.readouterr().out
    loaded, dark = SamModel.from_pretrained(tmp_path / "best"), raw[0] // 4
    as_trained = to_rgb(dark, train_set.window)
    assert as_trained.max() < 100
    for model in (sam, loaded):
        seen = predict(model, dark, (9, 9))
        assert np.array_equal(seen, predict(model, as_trained.transpose(1, 2, 0), (9, 9)))
    assert "stretched" not in capsys.readouterr().out
    predict(sam, dark.astype(np.float32), (9, 9))  # another dtype is scaled by its own values
    assert "stretched" in capsys.readouterr().out
    joined: Any = ConcatDataset([train_set])  # whose gray levels are unknown
    train(prompted, train_set, joined, **options)
    assert "different gray levels" not in capsys.readouterr().out
    train(prompted, train_set, SamDataset(raw, masks, clicks, window=(0, 9999)), **options)
    assert "different gray levels" in capsys.readouterr().out
    train(prompted, SamDataset(images, masks, clicks), SamDataset(images[:0], masks[:0]), **options)
    predict(sam, dark, (9, 9))  # the last training counts
    assert "stretched" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ({}, "for each object"),
        ({"points": [[(1, 1)], [(2, 2)]], "boxes": [[0, 0, 9, 9]] * 3}, "for each object"),
        ({"points": [(1, 1)], "labels": [1, 0]}, "one label per click"),
        ({"points": [(1, 1)], "labels": [2]}, r"must be 1 \(on the object\) or 0"),
        ({"points": [(0, 1, 1)]}, r"rows \(y, x\)"),
        ({"points": (1, 64)}, "outside"),
        ({"boxes": [0, 0, 9, 64]}, "x1 are the last pixels of the object.* subtract 1"),
        ({"boxes": [[0, 0, 9, 63], [50, 50, 64, 64]]}, "regionprops"),
        ({"boxes": [0, 0, 9, 66]}, "outside"),
        ({"boxes": [9, 9, 0, 0]}, "y0 < y1"),
        ({"boxes": [0, 0, 9]}, r"boxes rows \(y0, x0, y1, x1\)"),
        ({"masks": np.ones((9, 9), bool)}, "64 x 64 pixels"),
        ({"points": (0.2, 0.7)}, "in pixels, not in fractions"),
        ({"boxes": [0.1, 0.1, 0.4, 0.5]}, "in pixels, not in fractions"),
        ({"masks": np.arange(64 * 64).reshape(64, 64)}, "labels == 3 from a label map"),
        ({"masks": np.linspace(0, 1, 64 * 64).reshape(64, 64)}, "probabilities > 0.5"),
        ({"masks": np.zeros((64, 64), bool)}, "each mask must have one object"),
    ],
)
def test_invalid_prompts_are_refused(prompts: dict[str, Any], words: str) -> None:
    """Otherwise they would cause an error in torch, or a mask of something else."""
    with pytest.raises(ValueError, match=words):
        predict(tiny_sam(), np.zeros((64, 64), np.uint8), **prompts)


def test_other_spellings_of_prompts() -> None:
    """A label without a list, and a detector that has found nothing."""
    model, image = tiny_sam(), np.random.default_rng(0).integers(0, 255, (40, 50)).astype(np.uint8)
    one = predict(model, image, (9, 9), 1)
    assert np.array_equal(one, predict(model, image, [(9, 9)], [1]))
    assert predict(model, image, boxes=np.zeros((0, 4))).shape == (0, 40, 50)


@pytest.mark.parametrize("shape", [(1, 64), (64, 1), (3, 200), (200, 4), (4, 64, 3), (1, 1)])
def test_narrow_images_are_images(shape: tuple[int, ...]) -> None:
    """Of a data set, they would be rows of one."""
    image = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    assert predict(tiny_sam(), image, (0, 0)).shape == shape[:2]
    assert segment(tiny_sam(), image, quiet=True).shape == shape[:2]


def test_images_of_other_shapes_are_refused() -> None:
    """Several images at once, four channels, or one dimension."""
    for shape in ((2, 64, 64), (64, 64, 4), (64,)):
        with pytest.raises(ValueError, match="has shape"):
            segment(tiny_sam(), np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    "option",
    [
        {"tile": 0},
        {"tile": 1},
        {"tile": "64"},
        {"tile": 64.0},
        {"points_per_side": 0},
        {"points_per_side": 2.5},
        {"min_area": -1},
        {"min_area": 0.5},
    ],
)
def test_numbers_of_pixels_and_clicks_are_integers(option: dict[str, Any]) -> None:
    """0 was the default, and fractions failed in the middle."""
    with pytest.raises(ValueError, match=f"invalid {next(iter(option))} .*: use an integer of"):
        segment(tiny_sam(), np.zeros((64, 64), np.uint8), **option)


@pytest.mark.parametrize("points_per_side", [None, 16])
def test_a_large_image_is_segmented_in_tiles(
    trained: Path, points_per_side: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Most cells of a mosaic are found, each once; the decoder proposes better clicks than a grid.

    The tiles have the size of the training images, which a checkpoint contains.
    """
    images, masks, _ = cells(n=6, seed=1)
    picture, truth = (
        np.block([[x[0], x[1], x[2]], [x[3], x[4], x[5]]])
        for x in (images, masks + 100 * (masks > 0) * np.arange(6)[:, None, None])
    )
    model = SamModel.from_pretrained(trained / "best").train()
    found = segment(model, picture, min_iou=0.5, points_per_side=points_per_side)
    assert model.training
    assert found.shape == picture.shape == (128, 192)
    assert set(np.unique(found)) == set(range(found.max() + 1))
    assert instance_scores(found, truth)["ap_50"] > (0.3 if points_per_side else 0.45)
    how = "on a grid, 4 pixels apart" if points_per_side else "proposed by the decoder"
    said = f"128 x 192 pixels; 15 tiles of 64 pixels, overlap 32; clicks {how}\n"
    assert said in capsys.readouterr().out
    quiet = segment(model, picture[:64, :64], points_per_side=4, max_share=0, quiet=True)
    assert quiet.max() == 0
    assert not capsys.readouterr().out


def test_whole_pictures_are_evaluated(trained: Path) -> None:
    """The scores of the label maps are beside those of the clicks; ignored pixels do not count."""
    model = SamModel.from_pretrained(trained / "best")
    images, masks, clicks = cells(n=4, seed=1)
    masks[0] = 0  # this image is wrong
    scores = evaluate(model, SamDataset(images, masks, clicks[clicks[:, 0] > 0]), instances=True)
    assert scores["count"] == (clicks[:, 0] > 0).sum()
    found = [segment(model, image, quiet=True) for image in images]
    expected = instance_scores(found, masks)
    assert {name: scores[name] for name in expected} == expected
    assert "ap_50" not in evaluate(model, SamDataset(images[:1], masks[:1]))
    without = SamDataset(images, masks)

    class Own(Dataset[Any]):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Any:
            return without[index]

    with pytest.raises(ValueError, match="item 0 has no label map"):
        evaluate(model, Own(), instances=True)


PROCESSORS = {
    "trained": ("SamImageProcessor", "SamProcessor"),
    "sam": ("SamImageProcessor", "SamProcessor"),
    "sam_hq": ("SamImageProcessor", "SamHQProcessor"),
    "sam2": ("Sam2ImageProcessor", "Sam2Processor"),
    "sam3_tracker": ("Sam3ImageProcessor", "Sam3TrackerProcessor"),
}


@pytest.mark.slow
def test_the_pipeline_of_transformers_loads_the_checkpoints(trained: Path, tmp_path: Path) -> None:
    """The mask-generation pipeline loads model and image processor of each family.

    The image processor prepares an image as in training, the grid of clicks covers the image, and
    the masks have its size.
    """
    image = SamDataset(*cells(n=1, seed=1)).image(0)[:, :48]  # (3, 48, 64)
    Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "picture.png")
    models = {"trained": SamModel.from_pretrained(trained / "best")}
    models |= {kind: build(kind) for kind in FAMILY}
    for name, sam in models.items():
        save_model(tmp_path / name, sam)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.sam.mask_generation", tmp_path / "picture.png"),
            *(tmp_path / name for name in models),
        ],
        env={**os.environ, "PYTHONPATH": f"{sys.prefix}/torchvision"},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    for (name, sam), found in zip(models.items(), json.loads(done.stdout).values(), strict=True):
        assert (found["image_processor"], found["processor"]) == PROCESSORS[name]
        geometry = geometry_of(sam)
        own = prepare(collate([without_objects(image)]), geometry)["pixel_values"]
        assert (torch.tensor(found["pixels"]) - own).abs().max() < 1e-5
        assert 0.75 * geometry.image_size < found["farthest_click"] <= geometry.image_size
        assert 0 < len(found["masks"]) == found["scores"] <= 3 * 4 * 4
        assert all(size == [48, 64] for size in found["masks"])
        if name == "trained":  # several clicks find the same object, which is returned once
            assert found["scores"] < 3 * 4 * 4
