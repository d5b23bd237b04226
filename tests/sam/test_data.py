"""SamDataset, collate and prepare: the model gets the right images, masks and prompts."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from ddp_magic.sam.arrays.checks import note_on_axes
from ddp_magic.sam.arrays.masks import object_masks
from ddp_magic.sam.data.batches import MEAN, STD, Geometry, collate, prepare
from ddp_magic.sam.data.dataset import SamDataset
from ddp_magic.sam.data.samples import cells
from ddp_magic.sam.data.sampling import Sampled

MASKS = cells(n=1)[1]


def _small() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return two images of 6 x 9 pixels with objects 1 and 2 in the first, 5 in the second."""
    images = np.arange(2 * 6 * 9, dtype=np.uint8).reshape(2, 6, 9)
    masks = np.zeros((2, 6, 9), dtype=np.int32)
    masks[0, :2, :3], masks[0, 4:, 5:], masks[1, 2, 8] = 1, 2, 5
    return images, masks


def test_clicks_on_one_object_are_one_prompt() -> None:
    """Clicks in any order are grouped by the object under them, as (x, y), by first click."""
    images, masks = _small()
    data = SamDataset(images, masks, [(1, 2, 8), (0, 5, 6), (0, 1, 2), (0, 4, 5)])
    item = data[0]
    assert item["image"].shape == (3, 6, 9)
    assert item["image"].dtype == torch.uint8
    assert item["points"].tolist() == [[6, 5], [5, 4], [2, 1]]
    assert item["counts"].tolist() == [2, 1]
    assert torch.equal(item["masks"], torch.from_numpy(np.stack([masks[0] == 2, masks[0] == 1])))
    assert data[-1]["points"].tolist() == [[8, 2]]
    with pytest.raises(IndexError):
        data[2]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((0, 8, 4), r"row 1: image 0, y 8, x 4 is outside 6 x 9 .*swapped"),
        ((0, 8, 10), r"row 1: image 0, y 8, x 10 is outside 6 x 9 pixels"),
        ((0, -1, 3), "outside"),
        ((0, float("nan"), 3), "outside"),
        ((0, 3, 0), r"row 1: \(image 0, y 3, x 0\) is on background"),
        ((0.5, 1, 1), "row 1: image index 0.5"),
        ((2, 1, 1), r"row 1: image index 2 is not in 0\.\.1"),
    ],
)
def test_bad_clicks_are_refused_by_row(row: tuple[float, ...], message: str) -> None:
    """The error for a click outside, on background or in no image contains its row and values."""
    images, masks = _small()
    with pytest.raises(ValueError, match=message):
        SamDataset(images, masks, [(1, 2, 8), row])


def test_images_and_masks_must_match() -> None:
    """Counts, sizes, channel order and fractions in masks are checked on construction."""
    images, masks = _small()
    with pytest.raises(ValueError, match="2 images but 1 masks"):
        SamDataset(images, masks[:1], [])
    with pytest.raises(ValueError, match=r"image 0 has shape \(6, 9\), but its mask has \(9, 6\)"):
        SamDataset(images, masks.transpose(0, 2, 1), [])
    with pytest.raises(ValueError, match="move the channels to the end"):
        SamDataset(np.zeros((2, 3, 6, 9), np.uint8), masks, [])
    with pytest.raises(ValueError, match="fractions"):
        SamDataset(images, masks * 0.3, [])
    with pytest.raises(ValueError, match=r"must have \(P, 3\) or \(P, 4\)"):
        SamDataset(images, masks, [(1, 2)])


@pytest.mark.parametrize(
    ("mask", "factor"), [(bool, 1), (np.uint8, 1), (np.uint8, 255), (np.float32, 1)]
)
def test_single_object_masks(mask: type, factor: int) -> None:
    """Boolean, 0/1 and 0/255 masks all contain one object, and become boolean."""
    images, masks = _small()
    single = (masks == 2).astype(mask) * mask(factor)
    item = SamDataset(images[:1], single[:1], [(0, 4, 5)])[0]
    assert item["masks"].dtype == torch.bool
    assert torch.equal(item["masks"][0], torch.from_numpy(masks[0] == 2))


def test_images_without_clicks_stay() -> None:
    """An image without clicks is an item without objects, and can be in a batch."""
    images, masks = _small()
    data = SamDataset(images, masks, [(1, 2, 8)])
    batch = collate([data[0], data[1]])
    assert batch["image_index"].tolist() == [1]
    empty = collate([SamDataset(images, masks, [])[0]])
    assert empty["masks"].shape == (0, 6, 9)
    assert prepare(empty, Geometry(64))["points"].shape == (0, 0, 2)


def test_finding_the_prompts_of_an_image_takes_constant_time() -> None:
    """The clicks of an item are not searched for: with 100 times as many it takes as long."""
    few, many = 100, 10_000
    sets = {n: _five_clicks_an_image(n) for n in (few, many)}
    seconds = dict.fromkeys(sets, np.inf)
    for _ in range(20):  # in turns, so that other programs slow down both
        for n, data in sets.items():
            start = time.perf_counter()
            for i in range(100):
                data.prompts(i)
            seconds[n] = min(seconds[n], time.perf_counter() - start)
    assert seconds[many] < 5 * seconds[few]
    assert sum(len(sets[many][i]["points"]) for i in range(few)) == 5 * few


def _five_clicks_an_image(n: int) -> SamDataset:
    images = [np.zeros((4, 4), np.uint8)] * n
    masks = [np.ones((4, 4), np.uint8)] * n
    rows = np.stack([np.repeat(np.arange(n), 5), np.arange(5 * n) % 4, np.zeros(5 * n)], 1)
    return SamDataset(images, masks, rows)


@pytest.mark.parametrize(
    ("dtype", "factor", "rule"),
    [
        (np.float32, 1 / 255, "multiplied by 255"),
        (np.float64, 1, "gray levels"),
        (np.uint16, 1, "gray levels"),
        (np.uint16, 257, "stretched"),
        (np.int16, -100, "stretched"),
        (bool, 1, "multiplied by 255"),
    ],
)
def test_the_intensity_rule_is_printed_once(
    dtype: type, factor: float, rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other dtypes than uint8 are scaled to 0..255 by one rule, printed in one line."""
    levels = np.zeros((3, 16, 16))
    levels[1:], levels[2, :8] = 100, 255
    images = (levels * factor).astype(dtype)
    data = SamDataset(images, np.ones((3, 16, 16), bool), [(0, 1, 1)])
    printed = capsys.readouterr().out
    assert [rule in line for line in printed.splitlines()].count(True) == 1
    got = torch.stack([data[i]["image"] for i in range(3)])
    assert capsys.readouterr().out == ""
    if dtype is bool:
        assert set(got.unique().tolist()) == {0, 255}
    elif factor == -100:
        assert got[0].min() == 255  # the order of the values is kept
        assert got.min() == 0
    else:
        assert torch.equal(got[:, 0], torch.from_numpy(levels).to(torch.uint8))


def test_uint8_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """uint8 images are not scaled, even if they are dark, and nothing is printed."""
    image = np.full((1, 4, 4, 3), 1, np.uint8)
    item = SamDataset(image, np.eye(4, dtype=bool)[None], [])[0]
    assert item["image"].unique().tolist() == [1]
    assert capsys.readouterr().out == ""


def test_mixed_or_broken_values_are_refused() -> None:
    """Different dtypes in one data set, and NaN, are errors."""
    mask = np.ones((4, 4), bool)
    with pytest.raises(ValueError, match=r"uint8 \(image 0\), float64 \(image 1\)"):
        SamDataset([np.zeros((4, 4), np.uint8), np.zeros((4, 4))], [mask, mask], [])
    with pytest.raises(ValueError, match="not finite"):
        SamDataset([np.full((4, 4), np.nan)], [mask], [])


def test_collate_pads_and_flattens() -> None:
    """Unequal images are padded at the bottom and right, ragged clicks with label -10."""
    big, small = np.full((1, 8, 5), 9, np.uint8), np.full((1, 4, 6), 7, np.uint8)
    a = SamDataset(big, np.ones((1, 8, 5), bool), [(0, 7, 4), (0, 1, 2), (0, 3, 3)])[0]
    b = SamDataset(small, np.ones((1, 4, 6), bool), [(0, 3, 5)])[0]
    batch = collate([a, b])
    assert batch["images"].shape == (2, 3, 8, 6)
    assert batch["images"].dtype == torch.uint8
    assert batch["sizes"].tolist() == [[8, 5], [4, 6]]
    assert batch["images"][1, 0].sum() == 7 * 24
    assert batch["masks"].sum((1, 2)).tolist() == [40, 24]
    assert batch["labels"].tolist() == [[1, 1, 1], [1, -10, -10]]
    assert batch["points"][1, 0].tolist() == [5, 3]


@pytest.mark.parametrize("size", [(40, 60), (100, 37), (128, 128), (211, 300), (64, 64)])
def test_prepare_equals_sam_processor(size: tuple[int, int]) -> None:
    """Pixels equal those of the processor of transformers, also beside a larger image.

    Because of rounding, at most one pixel in 800 differs by one gray level.
    """
    side = 128
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    image = (image // 4 + np.linspace(0, 180, size[1], dtype=np.uint8)[None, :, None]).astype(
        np.uint8
    )
    processor = SamImageProcessorPil(
        size={"longest_edge": side},
        pad_size={"height": side, "width": side},
        mask_size={"longest_edge": side // 4},
        mask_pad_size={"height": side // 4, "width": side // 4},
    )
    oracle = processor(image, return_tensors="pt")["pixel_values"][0]
    full = np.ones(size, bool)
    other = np.zeros((300, 310, 3), np.uint8)
    data = SamDataset([image, other], [full, np.ones((300, 310), bool)], [(0, 7, 11), (1, 0, 0)])
    batch = prepare(collate([data[0], data[1]]), Geometry(side))
    std = torch.tensor(STD).view(3, 1, 1)
    levels = (batch["pixel_values"][0] - oracle).abs() * std
    assert levels.max() < 1.01
    assert (levels > 0.01).double().mean() < 1 / 800
    scale = side / max(size)
    new = [int(s * scale + 0.5) for s in size]
    expected = [11 * new[1] / size[1], 7 * new[0] / size[0]]
    assert batch["points"][0, 0].tolist() == pytest.approx(expected, rel=1e-6)


def test_float_images_are_not_black() -> None:
    """An image as uint8 and as floats from 0 to 1 gives the same pixels."""
    image = np.random.default_rng(0).integers(0, 256, (1, 20, 30), dtype=np.uint8)
    mask = np.ones((1, 20, 30), bool)
    a, b = (
        prepare(collate([SamDataset(x, mask, [(0, 0, 0)])[0]]), Geometry(64))["pixel_values"]
        for x in (image, image / 255)
    )
    assert torch.equal(a, b)
    assert b.max() > (255 - MEAN[0]) / STD[0] - 0.2


def test_each_epoch_samples_some_objects() -> None:
    """The samples are the same on each call, have their own prompts, and vary over epochs."""
    image, mask = np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.int32)
    for label in range(1, 7):
        mask[6 * label - 5 : 6 * label - 2] = label
    clicks = [(0, 6 * label - 4, x) for label in range(1, 7) for x in range(label)]
    data = SamDataset([image], [mask], clicks)
    a, b, everything = (Sampled(data, seed=1, objects=objects) for objects in (2, 2, 0))
    seen: set[int] = set()
    for epoch in range(20):
        a.epoch = b.epoch = epoch
        item, again = a[0], b[0]
        torch.testing.assert_close(item, again, rtol=0, atol=0, equal_nan=True)
        assert len(item["masks"]) == len(item["boxes"]) == len(item["keys"]) == 2
        owner = torch.arange(2).repeat_interleave(item["counts"])
        for n, (x, y) in zip(owner, item["points"].long(), strict=True):
            assert item["masks"][n, y, x]
        labels = [int(mask[each.numpy()][0]) for each in item["masks"]]
        assert item["counts"].tolist() == labels == sorted(labels)
        seen |= set(labels)
    assert seen == {1, 2, 3, 4, 5, 6}
    assert len(everything[0]["masks"]) == 6


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int32, np.int64, np.float32])
def test_masks_of_a_label_map_are_each_objects_own(kind: type) -> None:
    """Labels can be in any order, only some of them, or none."""
    mask = np.random.default_rng(0).integers(0, 6, (20, 30)).astype(kind)
    for labels in ([1], [5, 1, 3], list(range(1, 6)), []):
        masks = object_masks(mask, np.array(labels, dtype=np.int64))
        assert masks.shape == (len(labels), 20, 30)
        assert all((each == (mask == n)).all() for each, n in zip(masks, labels, strict=True))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((2, 30, 30), 1 / 255) * np.eye(30), "divided by 255 twice"),
        (np.stack([np.zeros((30, 30)), np.eye(30)]).astype(np.uint8), "nearly black"),
    ],
)
def test_images_divided_too_often_are_refused(images: Any, message: str) -> None:
    """Nearly black images, as after a second division by 255, are an error that shows one."""
    with pytest.raises(ValueError, match=message) as caught:
        SamDataset(images, np.ones((2, 30, 30), bool))
    assert "#" in str(caught.value)
    assert "." in str(caught.value).splitlines()[-1]  # bright and dark regions differ


def test_the_error_shows_the_bright_part_of_a_nearly_black_image() -> None:
    """A dark gray background is not part of it."""
    images = np.full((1, 40, 40), 0.1)
    images[0, 20:] = 1
    with pytest.raises(ValueError, match="nearly black") as caught:
        SamDataset(images / 255, np.ones((1, 40, 40), bool))
    lines = str(caught.value).splitlines()[1:]
    assert lines == ["." * 40] * 6 + ["#" * 40] * 6


def test_clicks_of_another_size_are_noticed() -> None:
    """Errors name clicks for another image size, swapped axes, and transposed masks."""
    image, mask = np.zeros((1, 30, 40), np.uint8), np.ones((1, 30, 40), bool)
    shown = r"\n#{40}\n"  # the mask, too
    with pytest.raises(ValueError, match=r"coordinates for another image size\?\)" + shown):
        SamDataset(image, mask, [(0, 500, 900)])
    with pytest.raises(ValueError, match=r"are y and x swapped\?\)" + shown):
        SamDataset(image, mask, [(0, 10, 5), (0, 35, 3)])
    with pytest.raises(ValueError, match="outside 30 x 40 pixels" + shown):
        SamDataset(image, mask[:, None], boxes=[(0, 1, 1, 50, 50)])
    with pytest.raises(ValueError, match=r"transposed\?\)\n#{30}\n"):
        SamDataset(image, mask.transpose(0, 2, 1))


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((96, 128, 5), True),
        ((256, 256, 40), True),
        ((64, 64, 300), True),
        ((5, 96, 128), False),
        ((300, 64, 64), False),
        ((20, 1024, 1280), False),
        ((64, 64, 64), False),
        ((400, 40, 256), False),
        ((96, 128), False),
    ],
)
def test_arrays_whose_images_may_be_last_are_said(
    shape: tuple[int, ...], said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """nibabel has the slices last; only a person can tell them from narrow images."""
    if len(shape) == 3 and np.prod(shape) < 10**7:
        labels = np.zeros(shape, np.uint8)
        labels[shape[0] // 2] = 1
        labels[:, 0] = 0
        images = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
        assert len(SamDataset(images, labels)) == shape[0]
        assert ("np.moveaxis(images, -1, 0)" in capsys.readouterr().out) == said
    assert bool(note_on_axes(shape)) == said


@pytest.mark.parametrize("factor", [80, 1 / 80])
def test_an_image_of_another_range_is_refused(factor: float) -> None:
    """It takes the gray levels of all others, or has none itself."""
    rng, mask = np.random.default_rng(0), np.zeros((64, 64), int)
    mask[20:40, 20:40] = 1
    images = [np.where(mask, 600, 200) + rng.integers(0, 100, mask.shape) for _ in range(20)]
    images[7] = images[7] * factor
    data = SamDataset(np.stack(images).astype(np.uint16), [mask] * 20)
    with pytest.raises(
        ValueError, match=r"image \d+ comes out with the gray levels .* leave it out"
    ):
        _ = [data.image(i) for i in range(20)]
    empty = SamDataset(np.stack(images).astype(np.uint16), [mask * 0] * 20)
    assert len([empty.image(i) for i in range(20)]) == 20  # without objects, an empty place


def test_a_window_may_clip_most_of_an_image() -> None:
    """The air of a CT slice, for example; its objects can be seen."""
    y, x = np.mgrid[:96, :96]
    organ = (y - 46) ** 2 + (x - 36) ** 2 < 100
    slices = np.full((5, 96, 96), -1000, np.int16)
    slices[:, ((y - 48) / 26) ** 2 + ((x - 48) / 36) ** 2 <= 1] = 40
    slices[:, organ] = 110
    data = SamDataset(slices, np.stack([organ] * 5), window=(-160, 240))
    assert data.image(0)[:, organ].min() == 172


def test_small_units_are_read_with_a_window() -> None:
    """Diffusion in mm2/s, for example; without a window the error says how to pass one."""
    adc = np.random.default_rng(0).uniform(0.0008, 0.0025, (64, 64)).astype(np.float32)
    with pytest.raises(ValueError, match=r"nearly black.* If they are right, pass window=\(0\.000"):
        SamDataset([adc], [MASKS[0]])
    item = SamDataset([adc], [MASKS[0]], window=(0, 0.003))[0]
    assert item["image"].max() > 200


def test_images_of_one_gray_level_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    """A file may be damaged."""
    images = np.random.default_rng(0).integers(0, 255, (3, 64, 64)).astype(np.uint8)
    images[1] = 7
    SamDataset(images, [MASKS[0]] * 3)
    assert "image 1 has one gray level: 7" in capsys.readouterr().out
