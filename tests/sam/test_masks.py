"""What masks mean: objects, parts, ignored pixels; and what looks like a mask but is none."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from monai.transforms import Rotate90d
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage.measure import regionprops
from torch import Tensor, nn

from ddp_magic.sam.arrays.items import pick_objects
from ddp_magic.sam.arrays.label_checks import check_mask, note_on
from ddp_magic.sam.data.augmentation import MonaiTransform
from ddp_magic.sam.data.batches import Geometry, collate, prepare
from ddp_magic.sam.data.dataset import SamDataset
from ddp_magic.sam.data.samples import cells
from ddp_magic.sam.data.sampling import Sampled, generator
from ddp_magic.sam.evaluation.evaluate import score_objects
from ddp_magic.sam.models.model import PromptedSam
from ddp_magic.sam.models.tiny import tiny_sam
from ddp_magic.sam.training.losses import step_losses

IMAGES, MASKS, CLICKS = cells(n=3)


def disk(radius: int, value: int = 255) -> Any:
    """Return the picture of a disk, (100, 100)."""
    picture = Image.new("L", (100, 100))
    ImageDraw.Draw(picture).ellipse((50 - radius, 48 - radius, 50 + radius, 48 + radius), value)
    return picture


def jpeg(picture: Image.Image, quality: int) -> Any:
    """Return a picture after JPEG."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def resized(labels: Any, side: int, how: Image.Resampling) -> Any:
    """Return a label map after resizing."""
    return np.rint(np.asarray(Image.fromarray(labels.astype(np.float32)).resize((side, side), how)))


def drawn(*shapes: tuple[str, tuple[int, ...], int]) -> Any:
    """Return a label map (128, 128) of shapes, boxes (x0, y0, x1, y1) and labels."""
    picture = Image.new("L", (128, 128))
    for shape, box, label in shapes:
        getattr(ImageDraw.Draw(picture), shape)(box, label)
    return np.asarray(picture)


FEW = {
    "circles": drawn(
        ("ellipse", (10, 10, 50, 50), 1), ("ellipse", (22, 62, 58, 98), 2),
        ("ellipse", (70, 35, 120, 85), 3),
    ),
    "boxes": drawn(
        ("rectangle", (10, 10, 50, 40), 1), ("rectangle", (10, 60, 50, 100), 2),
        ("rectangle", (70, 10, 120, 50), 3), ("rectangle", (70, 70, 110, 120), 4),
    ),
    "two": drawn(("ellipse", (10, 10, 50, 50), 1), ("ellipse", (60, 60, 110, 110), 2)),
}  # fmt: skip
DISKS = [
    ("ellipse", (x, y, x + 34, y + 34), label)
    for label, (x, y) in enumerate([(2, 3), (45, 8), (88, 30), (10, 60), (70, 80)], start=1)
]
GRAY = {
    **{f"jpeg {r} {q}": jpeg(disk(r), q) for r in (4, 10, 40) for q in (50, 75, 95, 100)},
    **{
        f"resized {r} {side} {how}": np.asarray(disk(r).resize((side, side), how))
        for r in (4, 40)
        for side in (77, 200)
        for how in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
    },
    "antialiased": np.asarray(disk(40).resize((25, 25), Image.Resampling.BOX)),
    "labels": resized(MASKS[0], 45, Image.Resampling.BILINEAR).astype(np.int32),
    "labels as floats": resized(MASKS[1], 90, Image.Resampling.BICUBIC).clip(0),
    **{
        f"{name}, resized to {side} {how}": np.asarray(
            Image.fromarray(few).resize((side, side), how)
        )
        for name, few in FEW.items()
        for side in (256, 384, 512)
        for how in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
        if (name, side, how) != ("two", 256, Image.Resampling.BICUBIC)  # which rounds to 0 and 2
    },
    **{
        f"{name}, resized along one axis to {size}": np.asarray(
            Image.fromarray(few).resize(size, Image.Resampling.BILINEAR)
        )
        for name, few in FEW.items()
        for size in ((128, 384), (384, 128))
    },
    **{
        f"labels, resized by {factor} and back": np.asarray(
            Image.fromarray(drawn(*DISKS)).resize((side, side), how).resize((128, 128), how)
        )
        for how, factor in ((Image.Resampling.BICUBIC, 1.5), (Image.Resampling.BICUBIC, 4))
        for side in (int(128 * factor),)
    },
    **{
        f"cells {number} by {how.name}": np.asarray(
            Image.fromarray(labels.astype(np.uint8)).resize((side, side), how)
        )
        for how, side in (
            (Image.Resampling.BICUBIC, 128),
            (Image.Resampling.LANCZOS, 128),
            (Image.Resampling.HAMMING, 256),
        )
        for number, labels in enumerate(cells(n=24, seed=3)[1])
        if set(np.unique(labels)) >= {0, 1, 2, 3}
    },
    **{  # with labels that the filter has made between 1 and 4, or 5 and 7
        f"cell {number} of {seed} by {how.name}": np.asarray(
            Image.fromarray(cells(n=24, seed=seed)[1][number].astype(np.uint8)).resize((n, n), how)
        )
        for seed, number, n, how in (
            (0, 14, 384, Image.Resampling.LANCZOS),
            (0, 14, 512, Image.Resampling.HAMMING),
            (3, 3, 128, Image.Resampling.HAMMING),
            (5, 15, 128, Image.Resampling.HAMMING),
        )
    },
    "picture": IMAGES[0],
    "labels, jpeg": jpeg(Image.fromarray((MASKS[0] * 20).astype(np.uint8)), 90),
}


@pytest.mark.parametrize("name", GRAY)
def test_gray_images_are_no_label_maps(name: str) -> None:
    """Masks after JPEG or smooth resizing, and pictures, are refused."""
    with pytest.raises(ValueError, match="is a gray image, not a label map"):
        check_mask("mask", GRAY[name])


def _voronoi(points: int) -> Any:
    y, x = np.mgrid[:60, :60]
    at = np.random.default_rng(0).uniform(0, 60, (points, 2))
    return ((y[..., None] - at[:, 0]) ** 2 + (x[..., None] - at[:, 1]) ** 2).argmin(-1)


def _overlapping(number: int, radius: int) -> Any:
    """Return ellipses of which later ones cover earlier ones, (128, 128)."""
    rng, picture = np.random.default_rng(0), Image.new("I", (128, 128))
    for label in range(1, number + 1):
        (x, y), (a, b) = rng.integers(0, 128, 2), rng.integers(2, radius, 2)
        ImageDraw.Draw(picture).ellipse((x - a, y - b, x + a, y + b), fill=label)
    return np.asarray(picture)


def _pairs() -> Any:
    """Return narrow objects that touch in pairs, (60, 60)."""
    columns = np.arange(60)
    return np.tile(np.where(columns % 8 < 6, columns // 8 * 2 + (columns % 8 > 2) + 1, 0), (60, 1))


def _spots() -> Any:
    labels = np.zeros((60, 60), int)
    labels[::3, ::3] = np.arange(400).reshape(20, 20)
    return labels


def _poles() -> Any:
    across = range(4, 120, 9)
    return drawn(
        ("rectangle", (0, 0, 127, 127), 23), *(("rectangle", (x, 9, x + 2, 99), 17) for x in across)
    )


def _walls() -> Any:
    cells = np.arange(2, 102).reshape(10, 10).repeat(12, 0).repeat(12, 1)
    return np.where((np.indices(cells.shape) % 12 < 2).any(0), 1, cells)


@pytest.mark.parametrize(
    "labels",
    [
        MASKS[0],
        MASKS[0].astype(np.uint8) * 50,
        resized(MASKS[0], 45, Image.Resampling.NEAREST),
        np.asarray(disk(40)),
        _voronoi(300),
        _voronoi(900),
        _voronoi(60) % 3,
        _overlapping(100, 8),
        _overlapping(60, 20),
        _spots(),
        _pairs(),
        _poles(),
        _walls(),
        *FEW.values(),
        drawn(*(("ellipse", (9 * n, 9 * n, 99 - 9 * n, 99 - 9 * n), n + 1) for n in range(4))),
        drawn(*(("ellipse", (12 * n, 20, 12 * n + 9, 40), 241 + n) for n in range(10))),
        drawn(
            ("ellipse", (9, 9, 30, 30), 3),
            ("rectangle", (60, 60, 90, 90), 245),
            ("ellipse", (60, 9, 90, 30), 250),
        ),
        MASKS[0] * 24_000_001,
        MASKS[0].astype(np.uint8) * 85,
        MASKS[0].astype(np.float16),
        np.zeros((6, 6), int),
    ],
)
def test_label_maps_are_accepted(labels: Any) -> None:
    """Cells, touching and nested tissue, spots, poles, walls, any few labels, and no object."""
    check_mask("mask", labels)


def _hearts() -> list[Any]:
    """Return short axes of hearts as ACDC labels them, (128, 128): 1 beside 2 around 3."""
    return [
        drawn(
            ("ellipse", (20, 30, 60, 90), 1),
            ("ellipse", (40, 30, 100, 90), 2),
            ("ellipse", (40 + wall, 30 + wall, 100 - wall, 90 - wall), 3),
        )
        for wall in (2, 3, 4, 6)
    ]


@pytest.mark.parametrize("labels", _hearts(), ids=lambda mask: int((mask == 2).sum()))
def test_a_wall_that_borders_the_background_is_no_trace_of_resizing(labels: Any) -> None:
    """Which would have put a rim of 1 around it; after resizing, the heart is refused."""
    check_mask("mask", labels)
    smooth = Image.fromarray(labels.astype(np.uint8)).resize((384, 384), Image.Resampling.BICUBIC)
    with pytest.raises(ValueError, match="thin rim"):
        check_mask("mask", np.asarray(smooth))


def _nuclei_in_cells(seed: int) -> Any:
    """Return cells 1 with a nucleus 2 each, 3 to 8 px inside of them, (128, 128)."""
    rng = np.random.default_rng(seed)
    shapes = []
    for x, y in (np.argwhere(np.ones((4, 4))) * 31).tolist():
        gap = int(rng.integers(3, 9))
        shapes.append(("ellipse", (x, y, x + 29, y + 29), 1))
        shapes.append(("ellipse", (x + gap, y + gap, x + 29 - gap, y + 29 - gap), 2))
    return drawn(*shapes)


@pytest.mark.parametrize("seed", range(20))
def test_nested_labels_whose_rims_have_many_widths_are_accepted(seed: int) -> None:
    """Resizing makes rims of one width."""
    check_mask("mask", _nuclei_in_cells(seed))


def test_a_label_map_that_looks_gray_can_be_passed_as_a_stack() -> None:
    """A wall of 1 around a lumen, and 1 elsewhere: the error says how."""
    wall = drawn(
        ("ellipse", (20, 20, 90, 90), 1),
        ("ellipse", (23, 23, 87, 87), 2),
        ("ellipse", (95, 95, 120, 120), 1),
    )
    with pytest.raises(ValueError, match="thin rim") as caught:
        check_mask("mask", wall)
    (line,) = re.findall(r"pass a stack, (.*)", str(caught.value))
    stack = eval(line, {"np": np, "mask": wall})
    check_mask("mask", stack)
    assert [each.sum() for each in stack] == [(wall == 1).sum(), (wall == 2).sum()]


@pytest.mark.parametrize("width", [1, 2, 3])
def test_one_object_with_a_thin_rim_is_said(width: int) -> None:
    """It is the wall of a vessel, or what resizing has made of a mask of the class 2 alone."""
    wall = drawn(
        ("ellipse", (20, 20, 90, 90), 1),
        ("ellipse", (20 + width, 20 + width, 90 - width, 90 - width), 2),
    )
    check_mask("mask", wall)
    assert note_on("mask", wall)[0] == "mask: the object 1 is a thin rim around the object 2"
    lumen = np.where(wall == 2, 2, 0).astype(np.uint8)
    assert not note_on("mask", lumen)[0]
    smooth = np.asarray(Image.fromarray(lumen).resize((256, 256), Image.Resampling.BILINEAR))
    assert "resize with nearest" in note_on("mask", smooth)[1]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (MASKS[0] - 1, "negative label -1: .*ignore_label=-1"),
        (np.where(MASKS[0] == 0, 255, MASKS[0]), "borders 3 of them: .*ignore_label=255"),
        (np.where(MASKS[0] == 0, 65535, MASKS[0]).astype(np.uint16), "ignore_label=65535"),
        (np.where(MASKS[0] == 3, -1, MASKS[0].astype(int)).astype(np.uint32), "=4294967295"),
        (np.where(MASKS[0] == 3, 2**31 - 1, MASKS[0].astype(np.int32)), "ignore_label=2147483647"),
        (MASKS[0] * 0.3, "fractions"),
        (np.where(MASKS[0] == 0, np.nan, MASKS[0]), "fractions or NaN"),
        (MASKS[0].astype(complex), "dtype complex"),
        (MASKS, "is a stack, but its mask 0 has 4 values"),
        (MASKS[None], r"must have \(H, W\) or \(N, H, W\)"),
    ],
)
def test_other_masks_are_refused(mask: Any, message: str) -> None:
    """Ignore values, fractions, NaN, and volumes of labels."""
    with pytest.raises(ValueError, match=message):
        check_mask("mask", mask)


def test_only_the_first_use_of_a_mask_is_slow_and_all_are_checked() -> None:
    """A mask that the constructor has not looked at is refused when it is used, with its file."""
    masks = [np.zeros((1000, 1000), np.uint8)] * 40
    masks[1] = np.asarray(disk(40).resize((1000, 1000), Image.Resampling.BICUBIC))
    data = SamDataset([np.zeros((1000, 1000), np.uint8)] * 40, masks)
    with pytest.raises(ValueError, match="mask 1 is a gray image"):
        data[1]


def test_ignored_pixels_are_no_object_and_do_not_count() -> None:
    """They are in no mask, have no gradient, get no clicks, and change no score."""
    edges = np.zeros_like(MASKS)
    for shift in ((0, 1), (1, 0)):
        edges |= np.roll(MASKS, shift, (1, 2)) != MASKS
    masks = np.where(edges, 255, MASKS)
    with pytest.raises(ValueError, match="ignore_label=255"):
        SamDataset(IMAGES, masks)
    data = SamDataset(IMAGES, masks, ignore_label=255)
    whole = data[0] | {"instances": data.instances(0)}
    item = MonaiTransform(Rotate90d(["image", "masks"]))(whole, generator(0))
    assert np.array_equal(item["ignored"], np.rot90(edges[0]))
    assert np.array_equal(item["instances"] < 0, item["ignored"])
    assert not item["masks"][:, item["ignored"]].any()
    batch = prepare(collate([data[0], SamDataset(IMAGES, MASKS)[1]]), Geometry(64))
    ignored = torch.from_numpy(edges[0].astype(bool))
    first = batch["image_index"] == 0
    assert torch.equal(batch["inside"][first], ~ignored.expand_as(batch["inside"][first]))
    assert batch["counted"][~first].all()
    logits = torch.zeros_like(batch["target"], requires_grad=True)
    step_losses(Given(logits), batch).sum().backward()
    assert logits.grad is not None
    assert not logits.grad[first][..., ignored].any()
    assert logits.grad[~first].all()


class Given(nn.Module):
    """A model that predicts what it is given."""

    auxiliary = None

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, _batch: Any) -> list[tuple[Tensor, Tensor]]:
        return [(self.logits, torch.zeros(len(self.logits), 1))]


def test_scores_do_not_count_ignored_pixels() -> None:
    """Where all wrong pixels are ignored, every score is perfect."""
    model = tiny_sam()
    wrapper = PromptedSam(model, rounds=5)
    plain = SamDataset(IMAGES[:1], MASKS[:1], CLICKS[CLICKS[:, 0] == 0][:1])
    batch = prepare(collate([plain[0]]), wrapper.geometry)
    predicted = torch.stack(wrapper.eval().predict_logits(batch))[..., 0, :, :] > -1e9
    assert predicted.all()
    everywhere = np.where(MASKS[:1] == 0, 9, MASKS[:1])
    data = SamDataset(IMAGES[:1], everywhere, CLICKS[CLICKS[:, 0] == 0][:1], ignore_label=9)
    before, after = score_objects(wrapper, plain), score_objects(wrapper, data)
    assert after["accuracy"][0] != before["accuracy"][0]
    assert 0 <= after["accuracy"][0] <= 1


def test_parts_become_objects(capsys: pytest.CaptureFixture[str]) -> None:
    """A 0/255 mask of many parts is one object, which is said; or one object per part."""
    masks = (MASKS > 0) * np.uint8(255)
    assert len(SamDataset(IMAGES, masks)[0]["masks"]) == 1
    assert "SamDataset(..., components=True)" in capsys.readouterr().out
    data = SamDataset(IMAGES, masks, components=True)
    assert capsys.readouterr().out == ""
    assert {m.numpy().tobytes() for m in data[0]["masks"]} == {
        (MASKS[0] == n).tobytes() for n in np.unique(MASKS[0])[1:]
    }
    image, y, x = CLICKS[0]
    clicked = SamDataset(IMAGES, masks, CLICKS, components=True)[image]["masks"][0]
    assert np.array_equal(clicked, MASKS[image] == MASKS[image][y, x])


def test_options_that_would_have_no_effect_are_refused() -> None:
    """Parts and ignored labels of stacks, and ignoring the background."""
    stack = [np.stack([mask == 1, mask == 2]) for mask in MASKS]
    for options in ({"components": True}, {"ignore_label": 255}):
        with pytest.raises(ValueError, match="are for label maps"):
            SamDataset(IMAGES, stack, **options)
    with pytest.raises(ValueError, match="invalid ignore_label 0"):
        SamDataset(IMAGES, MASKS, ignore_label=0)


def test_a_background_that_is_an_object_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """As in exports where the background has label 1, and in inverted masks."""
    one_hot = [np.stack([mask == 0, mask == 1]) for mask in MASKS]
    for masks in (MASKS + 1, (MASKS == 0) * np.uint8(255), one_hot):
        SamDataset(IMAGES, masks)
        assert "If it is the background, make it 0" in capsys.readouterr().out


def test_objects_of_a_few_pixels_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is left of a filter, of a codec or of hot pixels; not what a border has cut."""
    mask = MASKS[0].astype(np.uint8)
    mask[0, 20] = mask[40, 63] = 77
    tifffile.imwrite(tmp_path / "a.tif", mask)
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    SamDataset([tmp_path / "a.png"], [tmp_path / "a.tif"])
    assert capsys.readouterr().out == ""
    empty = np.argwhere(ndimage.maximum_filter(mask, 3)[5:-5, 5:-5] == 0)[::900] + 5
    mask[tuple(empty.T)] = range(100, 100 + len(empty))
    tifffile.imwrite(tmp_path / "a.tif", mask)
    SamDataset([tmp_path / "a.png"], [tmp_path / "a.tif"])
    said = rf"a.tif\): {len(empty)} of \d+ objects have at most 3 pixels"
    assert re.search(said, capsys.readouterr().out)


def test_axes_and_columns_in_another_order_are_refused() -> None:
    """Stacks (H, W, N), images with channels first or alpha, and boxes (x, y) or of COCO."""
    stack = np.stack([MASKS[0] == n for n in (1, 2)], -1)
    with pytest.raises(ValueError, match=r"mask.transpose\(2, 0, 1\)"):
        SamDataset(IMAGES[:1], [stack])
    with pytest.raises(ValueError, match=r"Pass \(H, W\), mask\[..., 0\]"):
        SamDataset(IMAGES[:1], [stack[..., :1]])
    for channels in (3, 4):
        with pytest.raises(ValueError, match=r"Pass \(H, W\), mask\[..., 0\]"):
            SamDataset(
                IMAGES[:1], [np.stack([MASKS[0] > 0] * 3 + [MASKS[0] >= 0], -1)[..., :channels]]
            )
    with pytest.raises(ValueError, match=r"image.transpose\(1, 2, 0\)"):
        SamDataset(np.zeros((1, 3, 64, 64), np.uint8), MASKS[:1])
    with pytest.raises(ValueError, match="drop the alpha channel"):
        SamDataset(np.zeros((1, 64, 64, 4), np.uint8), MASKS[:1])
    mask = np.zeros((1, 64, 64), np.uint8)
    mask[0, 5:15, 30:60] = 1
    with pytest.raises(
        ValueError, match=r"\(image, x0, y0, x1, y1\); move its columns: boxes\[:, \[0, 2,"
    ):
        SamDataset(IMAGES[:1], mask, boxes=[(0, 30, 5, 59, 14)])


def test_a_box_ends_at_the_last_pixel_of_its_object() -> None:
    """Exclusive ends (regionprops) are refused at the border; so is a second box of an object."""
    mask = np.zeros((1, 64, 64), np.uint8)
    mask[0, 40:64, 30:64] = 1
    (region,) = regionprops(mask[0])
    with pytest.raises(ValueError, match=r"row 0: image 0, y1 64, x1 64 .* subtract 1"):
        SamDataset(IMAGES[:1], mask, boxes=[(0, *region.bbox)])
    with pytest.raises(ValueError, match=r"y 70, x 70 is outside"):
        SamDataset(IMAGES[:1], mask, boxes=[(0, 40, 30, 70, 70)])
    box = (0, 40, 30, 63, 63)
    assert len(SamDataset(IMAGES[:1], mask, boxes=[box])[0]["boxes"]) == 1
    with pytest.raises(ValueError, match="row 1: image 0, the object has another box, in row 0"):
        SamDataset(IMAGES[:1], mask, boxes=[box, (0, 40, 30, 60, 60)])


def test_keys_are_unique_in_the_data_set() -> None:
    """Also of more objects than one would expect in an image."""
    mask = np.zeros((200, 200), np.int32)
    mask[::2, ::2] = np.arange(1, 10_001).reshape(100, 100)
    data = SamDataset([mask.astype(np.uint8)] * 3, [mask] * 3)
    assert len(torch.cat([data[i]["keys"] for i in range(3)]).unique()) == 30_000


def test_swapped_boxes_that_are_around_other_objects_are_refused() -> None:
    """Each box, with x and y swapped, is half around the mirrored object."""
    mask = np.zeros((1, 64, 64), np.uint8)
    mask[0, 5:15, 30:50], mask[0, 33:53, 6:16] = 1, 2
    boxes = np.array([(0, 5, 30, 14, 49), (0, 33, 6, 52, 15)])
    SamDataset(IMAGES[:1], mask, boxes=boxes)
    with pytest.raises(ValueError, match=r"boxes\[:, \[0, 2, 1, 4, 3\]\]"):
        SamDataset(IMAGES[:1], mask, boxes=boxes[:, [0, 2, 1, 4, 3]])


@pytest.mark.parametrize(
    ("others", "one"),
    [
        (IMAGES.astype(np.uint16) * 200, IMAGES[1].astype(np.uint16)),
        (IMAGES / 255, IMAGES[1] / 1.0),
        (IMAGES / 1.0, IMAGES[1] / 255),
        (IMAGES, (MASKS[1] > 0).astype(np.uint8)),
        (IMAGES, IMAGES[1].astype(np.uint16) * 200),
        (IMAGES / 255, np.full((64, 64), np.nan)),
    ],
)
def test_an_image_that_is_not_like_the_others_is_refused(others: Any, one: Any) -> None:
    """Of another dtype or range, it would come out black or white."""
    images = [*others, *others]
    images[3] = one
    with pytest.raises(ValueError, match=r"image 3 |different dtypes"):
        SamDataset(images, [*MASKS, *MASKS])[3]


def test_a_dark_frame_of_a_series_is_read() -> None:
    """One without objects: of integers as floats, or of fractions if the window is given."""
    series = [*IMAGES.astype(np.float32), (IMAGES[0] > 100).astype(np.float32)]
    masks = [*MASKS, np.zeros_like(MASKS[0])]
    assert SamDataset(series, masks)[len(IMAGES)]["image"].max() == 1
    series[-1] = IMAGES[0] / np.float32(255)
    with pytest.raises(ValueError, match=r"or pass window=\(0, 255\)"):
        SamDataset(series, masks)
    assert SamDataset(series, masks, window=(0, 255))[len(IMAGES)]["image"].max() == 1


def test_an_item_with_some_objects_has_only_their_masks() -> None:
    """It equals the whole item with these objects picked, for any data set."""
    for arguments in ((IMAGES, MASKS), (IMAGES, MASKS, CLICKS)):
        data = SamDataset(*arguments)
        chosen = data.item(0, lambda n: [n - 1, 0])
        n = len(data[0]["keys"])
        expected = pick_objects(data[0], torch.tensor([n - 1, 0]))
        torch.testing.assert_close(chosen, expected, rtol=0, atol=0, equal_nan=True)


def test_sampling_does_not_make_the_other_masks() -> None:
    """An item of 400 objects makes the masks of three."""
    data = SamDataset([np.zeros((60, 60), np.uint8)], [_spots()])
    asked: list[int] = []

    class Watched(SamDataset):
        def target(self, index: int, objects: Any = None) -> Any:
            asked.append(len(super().target(index, objects)["masks"]))
            return super().target(index, objects)

    watched = Watched([np.zeros((60, 60), np.uint8)], [_spots()])
    assert len(Sampled(watched, seed=0, objects=3)[0]["masks"]) == 3
    assert asked == [3]
    assert len(data[0]["masks"]) == 399


def _grid(number: int) -> Any:
    """Return a label map (400, 400) of squares."""
    labels = np.zeros((400, 400), np.int32)
    for n in range(number):
        y, x = n // 20 * 20 + 3, n % 20 * 20 + 3
        labels[y : y + 12, x : x + 12] = n + 1
    return labels


@pytest.mark.parametrize("number", [300, 400])
@pytest.mark.parametrize(
    "squeeze",
    [
        lambda labels: labels.astype(np.uint8),
        lambda labels: np.asarray(Image.fromarray(labels).convert("L")),
        lambda labels: (labels * (255 / labels.max())).astype(np.uint8),
        lambda labels: np.rint(labels / labels.max() * 255).astype(np.int64),
    ],
)
def test_more_objects_than_8_bits_can_number_are_refused(squeeze: Any, number: int) -> None:
    """Cast, clipped or scaled, some have the label of others."""
    labels = _grid(number)
    image = np.where(labels > 0, 150, 40).astype(np.uint8)
    with pytest.raises(ValueError, match=r"but \d+ separate parts: .* saved in 8 bits"):
        SamDataset([image], [squeeze(labels)])
    parts = SamDataset([image], [squeeze(labels)], components=True)[0]["masks"]
    assert number - 1 <= len(parts) <= number  # one became 0
    true = _grid(255).astype(np.uint8)
    true[9, ::60] = 0  # some are in two parts
    true[:, 9:200:20] = np.where(np.arange(400)[:, None] < 30, 0, true[:, 9:200:20])
    assert len(SamDataset([image], [true])[0]["masks"]) == 255


def test_labels_that_float32_cannot_tell_apart_are_refused() -> None:
    labels = np.where(_grid(4) > 0, _grid(4) + 2**24, 0)
    with pytest.raises(ValueError, match=r"2\*\*24 or more in float32"):
        check_mask("mask 0", labels.astype(np.float32))
    check_mask("mask 0", labels.astype(np.float64))


def test_each_kind_of_doubt_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """With the number of its masks; those without one are not counted."""
    labels = MASKS[0]
    speck = labels.copy()
    free = np.argwhere(ndimage.distance_transform_edt(labels == 0) > 2)
    speck[tuple(free[len(free) // 2])] = 99
    inverted = np.where(labels, 0, 255).astype(np.uint8)
    parts = (labels > 0) * np.uint8(255)
    SamDataset([IMAGES[0]] * 6, [labels, speck, inverted, parts, inverted, labels])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3
    assert said[0].startswith("mask 1: 1 of ")
    assert "(2 such masks of 6). If it is the background" in said[1]
    assert "components=True" in said[2]


def test_two_parts_are_said_also_in_a_stack_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Data sets of torch have masks (1, H, W)."""
    two = np.isin(MASKS[0], (1, 2)) * np.uint8(255)
    for mask, words in ((two, "components=True)"), (two[None], "with masks (H, W)")):
        SamDataset([IMAGES[0]], [mask])
        said = capsys.readouterr().out
        assert "2 separate parts are one object" in said
        assert words in said
    SamDataset([IMAGES[0]], [np.stack([two, two])])  # each with another one, perhaps
    assert capsys.readouterr().out == ""


def test_masks_of_any_period_are_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of more than 64 files some are; every second one, and the last ones, are among them."""
    (tmp_path / "i").mkdir()
    (tmp_path / "m").mkdir()
    for n in range(130):
        wrong = n % 2 or n > 120
        mask = np.where(MASKS[0], 0, 255) if wrong else MASKS[0]
        Image.fromarray(IMAGES[0]).save(tmp_path / "i" / f"{n}.png")
        Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "m" / f"{n}.png")
    SamDataset(tmp_path / "i", tmp_path / "m")
    found = re.search(r"\((\d+) such masks of 64\)", capsys.readouterr().out)
    assert found is not None
    assert 20 < int(found[1]) < 50


@pytest.mark.parametrize("seed", range(40))
def test_a_few_small_objects_are_no_gray_image(seed: int) -> None:
    """Discs that touch or cover each other: a share of so few pixels says little."""
    rng, labels = np.random.default_rng(seed), np.zeros((64, 64), np.int32)
    y, x = np.mgrid[:64, :64]
    for n in range(1, 4):
        cy, cx, radius = rng.integers(5, 59), rng.integers(5, 59), rng.integers(2, 6)
        labels[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = n
    check_mask("mask 0", labels)
    two = np.zeros((64, 64), np.int32)
    for n, cy in enumerate((14, 16), start=1):
        two[(y - cy) ** 2 + (x - 14) ** 2 <= 9] = n
    check_mask("mask 1", two)
