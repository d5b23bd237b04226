"""Which files are images and masks, and which belong together."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pandas as pd
import pydicom.data
import pytest
import tifffile
import torch
import zarr
from PIL import Image
from pycocotools import mask as rle

from ddp_magic.prelude import SamDataset, cells, random_patches
from ddp_magic.sam.reading.files import to_array

IMAGES, MASKS, CLICKS = cells(n=3)


def save(folder: Path, names: list[str], arrays: Any = None) -> Path:
    """Save images, or label maps if a name says so, in a folder."""
    for name, image, mask in zip(names, IMAGES, MASKS, strict=False):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        is_mask = "mask" in str(path.relative_to(folder.parent))
        pixels = mask.astype(np.uint16) if is_mask else image
        Image.fromarray(pixels if arrays is None else arrays).save(path)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three synthetic images and their label maps, with usual file names."""
    save(tmp_path / "images", [f"cell{i + 8}.png" for i in range(3)])
    save(tmp_path / "masks", [f"cell{i + 8}_mask.png" for i in range(3)])
    return tmp_path


def same(data: SamDataset, expected: SamDataset) -> bool:
    """Return whether two data sets have the same items."""
    return len(data) == len(expected) and all(
        torch.equal(data[i][key].nan_to_num(), value.nan_to_num())
        for i in range(len(expected))
        for key, value in expected[i].items()
    )


def test_folders_equal_arrays(folder: Path) -> None:
    """Two folders give the same items as arrays, in natural order, and can be pickled."""
    data: Any = SamDataset(folder / "images", str(folder / "masks"), CLICKS)
    arrays = SamDataset(IMAGES, MASKS, CLICKS)
    assert same(pickle.loads(pickle.dumps(data)), arrays)
    files = [folder / "images" / f"cell{i + 8}.png" for i in range(3)]
    pictures = [Image.open(path) for path in files]
    for images in (
        files,
        [str(path) for path in files],
        np.array(files),
        pd.Series(files),
        pictures,
    ):
        assert same(SamDataset(images, MASKS, CLICKS), arrays)


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["area_5².png", "b.c.png", "ü ñ.png"], ["area_5²_mask.png", "b.c_mask.png", "ü ñ.png"]),
        (["a.PNG", "b.Png", "c.png"], ["a.TIF", "b.tiff", "c.bmp"]),
        (["img_001.png", "img_2.png", "img_010.png"], ["mask_1.png", "mask_02.png", "mask_10.png"]),
        (["1.png", "2.png", "3.png"], ["1_cp_masks.png", "2_cp_masks.png", "3_cp_masks.png"]),
        (["la_1_0000.png", "la_2_0000.png", "la_3_0000.png"], ["la_1.png", "la_2.png", "la_3.png"]),
        (["p1/1.png", "p1/2.png", "p2/1.png"], ["p1/1.png", "p1/2.png", "p2/1.png"]),
    ],
)  # fmt: skip
def test_names_of_images_and_masks(tmp_path: Path, images: list[str], masks: list[str]) -> None:
    """Usual names and sub-folders match; hidden files and tables are left out."""
    save(tmp_path / "images", images)
    save(tmp_path / "masks", [name.replace(".bmp", ".png") for name in masks])
    for name in ("._a.png", ".DS_Store", "Thumbs.db", "notes.TXT"):
        (tmp_path / "images" / name).write_bytes(b"\0")
    data = SamDataset(tmp_path / "images", tmp_path / "masks", CLICKS)
    assert same(data, SamDataset(IMAGES, MASKS, CLICKS))


def _refused(message: str, *arguments: Any, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=message):
        SamDataset(*arguments)


def test_files_that_do_not_match_are_refused(folder: Path, tmp_path: Path) -> None:
    """Missing files, other names, other kinds, and the same file for both are errors."""
    images, masks = folder / "images", folder / "masks"
    _refused("no such file", [images / "0.png"], [masks / "0.png"], error=FileNotFoundError)
    (tmp_path / "empty").mkdir()
    _refused("no PNG, JPEG", tmp_path / "empty", masks, error=FileNotFoundError)
    _refused("are the same", images, images)
    files, mask_files = sorted(images.iterdir()), sorted(masks.iterdir())
    _refused("both an image and its mask", files, files)
    _refused("sort both lists", files, mask_files[::-1])
    _refused("3 images but 2 masks", files, mask_files[:2])
    _refused(
        "is a Group", zarr.open_group(str(tmp_path / "g.zarr"), mode="w"), masks, error=TypeError
    )
    _refused("is a DataFrame", pd.DataFrame({"i": [str(images)]}), masks, error=TypeError)
    _refused("is a generator", images.glob("*"), masks, error=TypeError)
    renamed = [path.rename(masks / f"x{path.name}") for path in mask_files]
    assert len(SamDataset(files, renamed)) == 3
    _refused(r"3 images without a mask \(cell8.png, cell9.png, cell10.png\)", images, masks)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a.png").symlink_to(images / "nothing.png")
    _refused("a.png", tmp_path / "links", MASKS[:1], error=FileNotFoundError)
    (images / "a.czi").write_bytes(b"\0")
    _refused("a.czi is not PNG", images, masks)
    _refused("open it and pass the array: zarr", tmp_path / "a.zarr", masks)


def test_a_name_that_is_not_unique_is_refused(tmp_path: Path) -> None:
    """Such as the channels of nnU-Net, and a folder that contains both images and masks."""
    save(tmp_path / "both", ["a.png", "a_mask.png"])
    _refused(
        "would belong to the same image", tmp_path / "both", save(tmp_path / "masks", ["a.png"])
    )


def test_headers_are_compared_before_training(folder: Path, tmp_path: Path) -> None:
    """Other sizes, numbers of pages, and dtypes are errors that name the file."""
    wide = np.zeros((32, 64), np.uint8)
    for images, masks, message in (
        (
            wide,
            MASKS[0],
            r"a.png\) has shape \(32, 64\), but its mask .*a_mask.png\) has \(64, 64\)",
        ),
        (wide, wide.T, "transposed"),
    ):
        Image.fromarray(images).save(tmp_path / "a.png")
        Image.fromarray(masks.astype(np.uint8)).save(tmp_path / "a_mask.png")
        _refused(message, [tmp_path / "a.png"], [tmp_path / "a_mask.png"])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(wide).save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(wide).save(tmp_path / "a_mask.png")
    _refused(
        r"a.jpg\) has shape \(64, 32\).* \(transposed",
        [tmp_path / "a.jpg"],
        [tmp_path / "a_mask.png"],
    )
    np.save(tmp_path / "a.npy", np.dstack([MASKS[0] == 1] * 2))
    _refused(r"Pass \(N, H, W\)", [folder / "images" / "cell8.png"], [tmp_path / "a.npy"])
    np.save(tmp_path / "a.npy", np.stack([IMAGES[0]] * 3))
    _refused(r"a.npy: has shape \(3, 64, 64\)", [tmp_path / "a.npy"], [tmp_path / "a_mask.png"])
    tifffile.imwrite(tmp_path / "a.tif", IMAGES, photometric="minisblack")
    _refused("contains 3 images, but", [tmp_path / "a.tif"], [tmp_path / "a_mask.png"])
    Image.fromarray(IMAGES[0].astype(np.uint16) * 99).save(folder / "images" / "cell9.png")
    _refused("dtypes, .*cell8.png.*cell9.png", folder / "images", folder / "masks")


class Column:
    """A sequence of another library that returns PIL images, such as a column of datasets."""

    def __init__(self, pictures: list[Image.Image]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Image.Image:
        return self.pictures[index]


def test_pil_images_of_any_sequence_are_decoded() -> None:
    """A palette is not taken for gray levels, nor an orientation for the pixels."""
    palette = [Image.fromarray(image).convert("RGB").quantize(256) for image in IMAGES]
    for column in (Column(palette), palette):
        found = SamDataset(column, MASKS)[0]["image"]
        assert np.array_equal(found.permute(1, 2, 0), np.asarray(palette[0].convert("RGB")))


def test_an_image_to_predict_is_read_as_those_of_a_data_set(tmp_path: Path) -> None:
    """A path and a PIL image, with a palette and an orientation; a stack is refused."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(IMAGES[0]).convert("RGB").quantize(256)
    picture.save(tmp_path / "a.png", exif=exif)
    expected = np.rot90(np.asarray(picture.convert("RGB")), -1)
    assert np.array_equal(to_array(tmp_path / "a.png"), expected)
    with Image.open(tmp_path / "a.png") as file:
        assert np.array_equal(to_array(file), expected)
    tifffile.imwrite(tmp_path / "a.tif", IMAGES, photometric="minisblack")
    with pytest.raises(ValueError, match="contains 3 images"):
        to_array(str(tmp_path / "a.tif"))


def test_an_orientation_that_the_mask_lacks_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the size is the same, only a person can see whether the mask was drawn before it."""
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.jpg", exif=exif)
    save(tmp_path, ["a_mask.png"])
    SamDataset([tmp_path / "a.jpg"], [tmp_path / "a_mask.png"])
    assert "1 images are turned as their metadata says" in capsys.readouterr().out


def test_tiff_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each page of a TIFF is an image; uint16 is scaled by one rule, printed once."""
    tifffile.imwrite(tmp_path / "a.tif", IMAGES.astype(np.uint16) * 200, photometric="minisblack")
    data = SamDataset(tmp_path / "a.tif", MASKS, CLICKS)
    assert "uint16" in capsys.readouterr().out
    assert np.corrcoef(data[2]["image"][0].numpy().ravel(), IMAGES[2].ravel())[0, 1] > 0.999


def test_nifti_slices_and_axes(tmp_path: Path) -> None:
    """A label map with other axes, or elsewhere, is refused."""
    paths = tmp_path / "scan.nii.gz", tmp_path / "scan_seg.nii.gz"
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    image = nibabel.Nifti1Image(IMAGES.transpose(2, 1, 0), affine)
    nibabel.save(image, paths[0])
    labels = nibabel.Nifti1Image(MASKS.astype(np.uint8).transpose(2, 1, 0), affine)
    expected = SamDataset(IMAGES, MASKS, CLICKS)
    nibabel.save(labels, paths[1])
    assert same(SamDataset(*paths, CLICKS), expected)
    for axes in ("LPS", "SAR", "AIL"):
        turn = nibabel.orientations.ornt_transform(
            nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(axes)
        )
        nibabel.save(labels.as_reoriented(turn), paths[1])
        _refused("other axes, or lies elsewhere, than the image .*scan.nii.gz", *paths)
    nibabel.save(nibabel.Nifti1Image(labels.get_fdata(), np.eye(4)), paths[1])
    _refused("other axes, or lies elsewhere, than the image .*scan.nii.gz", *paths)


def test_dicom(tmp_path: Path) -> None:
    """A CT slice is in Hounsfield units, with a name of any suffix, next to a PNG mask."""
    source = pydicom.data.get_testdata_file("CT_small.dcm")
    shutil.copy(str(source), tmp_path / "IM-0001.1")
    Image.fromarray(np.pad(np.ones((40, 40), np.uint8), 44)).save(tmp_path / "m.png")
    data = SamDataset([tmp_path / "IM-0001.1"], [tmp_path / "m.png"])
    data_set = pydicom.dcmread(str(source))
    expected = data_set.pixel_array * float(data_set.RescaleSlope) + data_set.RescaleIntercept
    assert np.array_equal(data.images[0], expected.astype(np.float32))
    assert data[0]["masks"].sum() == 1600


def coco(folder: Path, **changes: Any) -> Path:
    """Write a COCO file with a polygon, run lengths, and a crowd, for two images."""
    codes = [rle.encode(np.asfortranarray((MASKS[1] == n).astype(np.uint8))) for n in (1, 2)]
    for code in codes:
        code["counts"] = code["counts"].decode()
    square = [[10, 20, 30, 20, 30, 50, 10, 50]]
    data = {
        "images": [
            {"id": 7, "file_name": "cell8.png", "height": 64, "width": 64},
            {"id": 3, "file_name": "images/cell9.png", "height": 64, "width": 64},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "segmentation": square},
            {"id": 2, "image_id": 3, "category_id": 1, "segmentation": codes[0]},
            {"id": 3, "image_id": 3, "category_id": 2, "segmentation": codes[1], "iscrowd": 1},
        ],
        "categories": [],
    }
    (folder / "coco.json").write_text(json.dumps(data | changes))
    return folder / "coco.json"


def test_coco(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each annotation is an object, and crowds are ignored pixels; the rest is said."""
    data = SamDataset(folder / "images", coco(folder))
    assert "1 of 3 images are not in it" in capsys.readouterr().out
    second, first = data[0], data[1]  # in the order of the files
    assert torch.equal(first["image"][0], torch.from_numpy(IMAGES[1]))
    assert torch.equal(first["masks"], torch.from_numpy(MASKS[1] == 1)[None])
    assert torch.equal(first["ignored"], torch.from_numpy(MASKS[1] == 2))
    assert second["masks"][0, 21:49, 11:29].all()
    assert second["masks"].sum() == 20 * 30
    assert SamDataset(folder / "images", coco(folder), [(0, 30, 20)])[0]["counts"].tolist() == [1]


def test_coco_that_does_not_fit_is_refused(folder: Path) -> None:
    """Other sizes, missing files, boxes without masks, and other JSON files are errors."""
    images = folder / "images"
    record = {"id": 7, "file_name": "cell8.png", "height": 32, "width": 64}
    _refused(r"says \(32, 64\)", images, coco(folder, images=[record], annotations=[]))
    _refused("not in the format of COCO", images, _json(folder, "[]"))
    _refused("is not a JSON file", images, _json(folder, "{"))
    missing = coco(folder, images=[record | {"file_name": "x.png"}], annotations=[])
    _refused("names the image x.png", images, missing, error=FileNotFoundError)
    tiny = {"id": 6, "image_id": 7, "category_id": 1, "segmentation": [[0, 0, 0.5, 0, 0.5, 0.5]]}
    _refused("a polygon of fractions", images, coco(folder, annotations=[tiny]))
    code = {"size": [32, 64], "counts": [2, 3, 2043]}
    _refused(
        r"mask of \(32, 64\), but",
        images,
        coco(folder, annotations=[tiny | {"segmentation": code}]),
    )
    box = {"id": 5, "image_id": 7, "category_id": 1, "segmentation": []}
    _refused("annotation 5 has no valid mask", images, coco(folder, annotations=[box]))


def test_a_folder_behind_a_link_is_read(folder: Path, tmp_path: Path) -> None:
    """Its images are not left out without a word."""
    for name in ("images", "masks"):
        (tmp_path / f"linked {name}").mkdir()
        (tmp_path / f"linked {name}" / "all").symlink_to(folder / name, target_is_directory=True)
    data = SamDataset(tmp_path / "linked images", tmp_path / "linked masks", CLICKS)
    assert same(data, SamDataset(IMAGES, MASKS, CLICKS))


def _json(folder: Path, text: str) -> Path:
    (folder / "other.json").write_text(text)
    return folder / "other.json"


class Counted:
    """An array that counts the values that are read, as a zarr array of chunks would."""

    def __init__(self, array: Any) -> None:
        self.array, self.shape, self.dtype, self.values = array, array.shape, array.dtype, 0

    def __getitem__(self, key: Any) -> Any:
        found = self.array[key]
        self.values += np.size(found)
        return found


def _in_zarr(folder: Path, name: str, array: Any) -> Any:
    kind = {"shape": array.shape, "dtype": array.dtype}
    stored: Any = zarr.open(str(folder / f"{name}.zarr"), mode="w", **kind)
    stored[:] = array
    return stored


def _in_hdf5(folder: Path, name: str, array: Any) -> Any:
    return h5py.File(folder / f"{name}.h5", "w").create_dataset("x", data=array)


def _in_npy(folder: Path, name: str, array: Any) -> Any:
    np.save(folder / name, array)
    return folder / f"{name}.npy"


def first_mask(data: SamDataset) -> Any:
    """Read in another process."""
    return data[0]["masks"].numpy()


@pytest.mark.parametrize("store", [_in_zarr, _in_hdf5, _in_npy])
def test_stored_arrays(tmp_path: Path, store: Callable[[Path, str, Any], Any]) -> None:
    """Arrays in zarr, HDF5 and .npy files are the same as in memory, also in other processes."""
    arrays = store(tmp_path, "images", IMAGES), store(tmp_path, "masks", MASKS)
    data, expected = SamDataset(*arrays, CLICKS), SamDataset(IMAGES, MASKS, CLICKS)
    assert same(data, expected)
    with get_context("fork").Pool(1) as pool:
        assert np.array_equal(pool.apply(first_mask, (data,)), expected[0]["masks"])


def test_stored_arrays_are_not_read_whole() -> None:
    """Of 1000 images, some 64 are looked at, and an item reads one."""
    images = Counted(np.broadcast_to(IMAGES[0], (1000, 64, 64)))
    masks = Counted(np.broadcast_to(MASKS[0], (1000, 64, 64)))
    data = SamDataset(images, masks)
    assert images.values < 70 * 64 * 64
    assert masks.values < 70 * 64 * 64
    before = masks.values
    data[500]
    assert masks.values - before == 64 * 64


def test_patches_are_drawn_without_reading_the_image() -> None:
    """Each patch of a large image has some objects, is the same again, and is all that is read."""
    side = 10_000
    image = Counted(np.broadcast_to(np.arange(side) % 251, (side, side)).astype(np.uint8))
    labels = np.zeros((side, side), np.int32)
    centers = np.random.default_rng(0).integers(0, side - 20, (4000, 2))
    for number, (y, x) in enumerate(centers, start=1):
        labels[y : y + 20, x : x + 20] = number
    mask = Counted(labels)
    arguments: Any = {"size": 256, "min_objects": 3, "region": (0, 0, side, 5000)}
    images, masks = random_patches(image, mask, 100, **arguments)
    assert image.values == mask.values == 0
    data = SamDataset(images, masks)
    item = data[70]
    assert image.values < 100 * 256**2
    assert mask.values < 1000 * 256**2 < side**2
    assert len(item["masks"]) >= 3
    assert item["masks"].sum((1, 2)).min() >= 25
    _, top, left = images.read.__self__.drawn[70]  # type: ignore[attr-defined]
    window = labels[top : top + 256, left : left + 256]
    assert {window[m].min() for m in item["masks"].numpy()} <= set(np.unique(window))
    assert torch.equal(item["image"][0, 0], torch.arange(left, left + 256) % 251)
    assert left + 256 <= 5000
    again = random_patches(image, mask, 100, **arguments)  # in another order
    assert np.array_equal(again[1][70], masks[70])
    assert np.array_equal(again[0][70], images[70])


def test_patches_keep_ignored_pixels() -> None:
    """Also few of them; they are no object."""
    image, mask = (
        np.random.default_rng(0).integers(0, 255, (100, 100), np.uint8),
        np.zeros((100, 100), int),
    )
    mask[10:40, 10:40], mask[60:64, 60:66] = 1, 255
    data = SamDataset(*random_patches(image, mask, 1, 100, ignore_label=255), ignore_label=255)
    assert (int(data[0]["ignored"].sum()), len(data[0]["masks"])) == (24, 1)
    mask[10:40, 10:40] = 255
    with pytest.raises(ValueError, match="none of 2000 patches of 90 x 90 pixels has 1 objects"):
        random_patches(image, mask, 1, 90, ignore_label=255)[0][0]


def test_patches_that_cannot_be_drawn_are_refused() -> None:
    """Other shapes, too large patches, and too few objects."""
    image, mask = np.zeros((90, 80, 3), np.uint8), np.zeros((90, 80), int)
    for arguments, message in (
        ((image, mask.T, 5, 32), "its mask has"),
        ((image.transpose(2, 0, 1), mask, 5, 32), "move the channels"),
        ((image, mask, 5, 85), "do not fit into rows 0 to 90 and columns 0 to 80"),
        ((image, mask, 5.5, 32), "invalid n 5.5: use an integer"),
        ((image, mask, 5, (32, 32)), "invalid size"),
    ):
        with pytest.raises(ValueError, match=message):
            random_patches(*arguments)
    for region in ((0, 0, 80, 90), (0, 0, 91, 80), (80, 60, 0, 0)):  # x before y, and others
        with pytest.raises(ValueError, match="of image 0, which has 90 x 80 pixels"):
            random_patches(image, mask, 5, 32, region=region)
    with pytest.raises(ValueError, match="none of 2000 patches of 32 x 32 pixels has 2 objects"):
        random_patches(image, mask, 5, 32, min_objects=2)[0][0]


def test_a_list_of_files_is_a_stack_of_masks(tmp_path: Path) -> None:
    """One file per object, as in the Data Science Bowl, in folders of any name."""
    image, objects = tmp_path / "images" / "a.png", tmp_path / "masks" / "a"
    save(tmp_path / "images", ["a.png"])
    objects.mkdir(parents=True)
    for n in (1, 2):
        Image.fromarray((MASKS[0] == n) * np.uint8(255)).save(objects / f"{n}.png")
    data = SamDataset([image], [sorted(objects.iterdir())])
    assert np.array_equal(data[0]["masks"], np.stack([MASKS[0] == 1, MASKS[0] == 2]))
    _refused("pass two lists", image.parent, objects.parent)


def test_whole_small_objects_stay_in_patches() -> None:
    """Only small pieces at the border of a patch become background."""
    labels = np.zeros((400, 400), int)
    for n in range(400):
        y, x, side = n // 20 * 20 + 5, n % 20 * 20 + 5, 4 if n % 2 else 9
        labels[y : y + side, x : x + side] = n + 1
    image = np.where(labels, 150, 40).astype(np.uint8)
    assert len(SamDataset(*random_patches(image, labels, 1, 400))[0]["masks"]) == 400
    data = SamDataset(*random_patches(image, labels, 40, 100))
    for i in range(40):
        for mask in data[i]["masks"]:
            whole = mask.clone()
            whole[1:-1, 1:-1] = False
            assert mask.sum() >= 25 or not whole.any()


def test_few_objects_in_a_large_image_are_found() -> None:
    labels = np.zeros((4000, 4000), np.uint8)
    for n, (y, x) in enumerate(np.random.default_rng(0).integers(0, 3900, (5, 2)), start=1):
        labels[y : y + 30, x : x + 30] = n
    _, masks = random_patches(labels * 40, labels, 100, 256)
    assert all(masks[i].any() for i in range(100))


def test_large_chunks_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Each patch reads whole ones."""
    labels = np.zeros((2000, 2000), np.uint8)
    labels[100:200, 100:200] = 1
    for chunks, said in (
        ((2000, 2000), "mask 0 is stored in chunks of 2000 x 2000"),
        ((256, 256), ""),
    ):
        stored = zarr.array(labels, chunks=chunks)
        random_patches(labels, stored, 1, 128)
        out = capsys.readouterr().out
        assert said in out
        assert bool(said) == bool(out)


def test_hidden_values_of_patches_are_refused() -> None:
    hidden = np.ma.MaskedArray(MASKS[0], mask=MASKS[0] == 1)
    with pytest.raises(ValueError, match="has hidden values"):
        random_patches(IMAGES[0], hidden, 1, 32)


def test_an_archive_named_npy_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", MASKS[0])
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"a\.npy: is an \.npz archive"):
        SamDataset([IMAGES[0]], [tmp_path / "a.npy"])
