"""Lists and folders whose names contradict their order, stacks of masks, and what is no file."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageFilter
from pydicom.dataset import Dataset

from ddp_magic.prelude import SamDataset, cells, random_patches

IMAGES, MASKS, _ = cells(n=3)
OBJECT = (MASKS[0] == 1) * np.uint8(255)
OTHER = (MASKS[0] == 2) * np.uint8(255)


def images(folder: Path, names: list[str]) -> list[Path]:
    """Save an image for each name."""
    for name, image in zip(names, IMAGES, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
    return [folder / name for name in names]


def masks(folder: Path, names: list[str]) -> list[Path]:
    """Save a label map for each name."""
    for name, mask in zip(names, MASKS, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask.astype(np.uint8)).save(folder / name)
    return [folder / name for name in names]


ORDERS = [  # images, and their masks
    (["img1.png", "img2.png", "img10.png"], ["nuc1.png", "nuc2.png", "nuc10.png"]),
    (["s1_dapi.png", "s3_dapi.png"], ["s1_nuclei.png", "s3_nuclei.png"]),
    (["e_w1_s1.png", "e_w1_s2.png"], ["e_w2_s1.png", "e_w2_s2.png"]),
    (["a/1.png", "b/1.png"], ["a/1_mask.png", "b/1_mask.png"]),
    (["ant_dapi_1.png", "bee_dapi_1.png"], ["ant_nuclei_9.png", "bee_nuclei_9.png"]),
    (["p/x/images/i.png", "p/y/images/i.png"], ["p/x/masks/j.png", "p/y/masks/j.png"]),
    (["405_c_0000.png", "405_c_0001.png"], ["m0.png", "m1.png"]),
]


@pytest.mark.parametrize(("names", "mask_names"), ORDERS)
def test_the_order_of_lists_is_compared_by_numbers_and_folders(
    tmp_path: Path, names: list[str], mask_names: list[str]
) -> None:
    """With other words in the names of the masks; names without any relation are accepted."""
    files, mask_files = images(tmp_path / "i", names), masks(tmp_path / "m", mask_names)
    assert len(SamDataset(files, mask_files)) == len(names)
    others = masks(tmp_path / "x", ["x.png", "z.png", "y.png"])[: len(names)]
    assert len(SamDataset(files, others)) == len(names)
    with pytest.raises(ValueError, match=r"is .*, but mask \d is .*: sort both lists"):
        SamDataset(files, mask_files[:-2] + mask_files[-2:][::-1])


@pytest.mark.parametrize(
    ("names", "mask_names"),
    [
        (["1.png", "2.png", "4.png"], ["1.png", "2.png", "3.png"]),
        (["img1.png", "img2.png", "img4.png"], ["nuc1.png", "nuc2.png", "nuc3.png"]),
        (["a.png", "x.png", "c.png"], ["a_mask.png", "b_mask.png", "c_mask.png"]),
    ],
)
def test_a_pair_of_other_names_between_pairs_that_agree_is_warned_of(
    tmp_path: Path, names: list[str], mask_names: list[str]
) -> None:
    """An image without a mask, and a mask without an image, make lists of the same length."""
    files, mask_files = images(tmp_path / "i", names), masks(tmp_path / "m", mask_names)
    with pytest.warns(UserWarning, match="another name than its mask, while those of most"):
        SamDataset(files, mask_files)


def test_the_order_of_stacks_is_compared_by_their_folders(tmp_path: Path) -> None:
    """As in the Data Science Bowl."""
    files = images(tmp_path, ["q/images/q.png", "r/images/r.png"])
    stacks = []
    for name in ("q", "r"):
        (tmp_path / name / "masks").mkdir()
        stacks.append([tmp_path / name / "masks" / f"{n}.png" for n in (1, 2)])
        for path, pixels in zip(stacks[-1], (OBJECT, OTHER), strict=True):
            Image.fromarray(pixels).save(path)
    assert len(SamDataset(files, stacks)[0]["masks"]) == 2
    with pytest.raises(ValueError, match="sort both lists"):
        SamDataset(files, stacks[::-1])


def _soft(path: Path) -> None:
    Image.fromarray(OBJECT).filter(ImageFilter.GaussianBlur(2)).save(path)


def _labels(path: Path) -> None:
    Image.fromarray(MASKS[0].astype(np.uint8)).save(path)


def _pages(path: Path) -> None:
    pages = [Image.fromarray(OBJECT), Image.fromarray(OTHER)]
    pages[0].save(path.with_suffix(".tif"), save_all=True, append_images=pages[1:])


def _nifti(path: Path) -> None:
    image = nibabel.Nifti1Image(OBJECT, np.diag([-1, -1, 1, 1]))
    nibabel.save(image, path.with_suffix(".nii"))


def _smaller(path: Path) -> None:
    Image.fromarray(OBJECT[:-2]).save(path)


def _npy(path: Path) -> None:
    np.save(path.with_suffix(".npy"), np.stack([OBJECT, OTHER]))


@pytest.mark.parametrize("write", [_soft, _labels, _pages, _nifti, _smaller, _npy])
@pytest.mark.parametrize("first", [False, True])
def test_a_file_of_a_stack_that_is_not_one_mask_is_refused(
    tmp_path: Path, write: Callable[[Path], None], *, first: bool
) -> None:
    """The error names the file."""
    write(tmp_path / "bad.png")
    bad = next(tmp_path.iterdir())
    Image.fromarray(OBJECT).save(tmp_path / "good.png")
    stack = [bad, tmp_path / "good.png"] if first else [tmp_path / "good.png", bad]
    with pytest.raises(ValueError, match=rf"{'good' if write is _smaller and first else bad.name}"):
        SamDataset(IMAGES[:1], [stack])


@pytest.mark.parametrize("kind", [Image.fromarray, np.asarray, torch.from_numpy])
def test_a_stack_may_be_a_list_in_memory(kind: Callable[[Any], Any]) -> None:
    """Of PIL images, arrays or tensors, with the same checks as files."""
    item = SamDataset(IMAGES[:1], [[kind(OBJECT), kind(OTHER)]])[0]
    assert np.array_equal(item["masks"], np.stack([OBJECT, OTHER]) > 0)
    for other in (OBJECT[:-2].copy(), MASKS[0].astype(np.uint8)):
        with pytest.raises(ValueError, match=r"masks\[0\]\[1\] has"):
            SamDataset(IMAGES[:1], [[kind(OBJECT), kind(other)]])
    with pytest.raises(ValueError, match=r"masks\[1\] is an empty list"):
        SamDataset(IMAGES[:2], [[kind(OBJECT)], []])
    with pytest.raises(ValueError, match=r"images\[0\] is a list: only masks can be lists"):
        SamDataset([[kind(OBJECT)]], MASKS[:1])


def test_the_error_for_other_numbers_has_a_file(tmp_path: Path) -> None:
    """Pages of one file are not the masks of several files."""
    tifffile.imwrite(tmp_path / "m.tif", MASKS.astype(np.uint8), photometric="minisblack")
    files = images(tmp_path, ["1.png", "2.png", "3.png"])
    with pytest.raises(ValueError, match=r"1.png contains 1 images, but .*m.tif contains 3 masks"):
        SamDataset(files, tmp_path / "m.tif")
    with pytest.raises(ValueError, match=r"3 images but 1 masks, .*\(.*m.tif\) and mask 0: pass"):
        SamDataset(tmp_path / "m.tif", MASKS[:1])


def test_one_frame_of_an_open_file_is_refused(tmp_path: Path) -> None:
    """A list from ImageSequence contains the same object, at its last frame."""
    tifffile.imwrite(tmp_path / "i.tif", IMAGES, photometric="minisblack")
    with Image.open(tmp_path / "i.tif") as file:
        with pytest.raises(ValueError, match=r"i.tif is open at one of its 3 frames"):
            SamDataset([file], MASKS[:1])
        file.seek(2)
        assert np.array_equal(SamDataset([file.copy()], MASKS[2:])[0]["image"][0], IMAGES[2])


def test_tensors_of_any_kind_are_read() -> None:
    """With gradients, and of bfloat16."""
    image = torch.rand(64, 64, requires_grad=True)
    expected = SamDataset([image.detach().numpy()], MASKS[:1])[0]["image"]
    for given in ([image], image[None]):
        assert torch.equal(SamDataset(given, MASKS[:1])[0]["image"], expected)
    rounded = image.detach().bfloat16()
    expected = SamDataset([rounded.float().numpy()], MASKS[:1])[0]["image"]
    assert torch.equal(SamDataset([rounded], MASKS[:1])[0]["image"], expected)


def test_errors_of_libraries_have_a_name(tmp_path: Path) -> None:
    """Rows of different lengths, a palette that is too short, labels of 64 bits, and paths."""
    with pytest.raises(ValueError, match=r"coordinates must be an array .*\(image, y, x"):
        SamDataset(IMAGES, MASKS, [[0, 5, 6], [0, 5, 6, 1]])
    with pytest.raises(ValueError, match=r"boxes must be an array .*\(image, y0"):
        SamDataset(IMAGES, MASKS, boxes=["a"])
    picture = Image.frombytes("P", (64, 64), MASKS[0].astype(np.uint8).tobytes())
    picture.putpalette([0, 0, 0])
    with pytest.raises(ValueError, match="mask 0, a PIL image: has indices without a color"):
        SamDataset(IMAGES[:1], [picture])
    for components in (False, True):
        with pytest.raises(ValueError, match=r"mask 0 has dtype uint64: .*2\*\*63"):
            SamDataset(IMAGES[:1], [MASKS[0].astype(np.uint64) * 2**62 * 2], components=components)
    with pytest.raises(ValueError, match="invalid ignore_label '255'"):
        SamDataset(IMAGES, MASKS, ignore_label="255")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"image 0 has shape \(0, 64\)"):
        SamDataset([IMAGES[0][:0]], [MASKS[0][:0]])
    path = images(tmp_path, ["1.png"])[0]
    for given in (str(path), path, Image.open(path)):
        with pytest.raises(
            TypeError, match=r"image 0 and its mask are .*, but patches need arrays"
        ):
            random_patches(given, given, 3, 20)


def _first(data: SamDataset) -> Any:
    return data[0]["masks"].numpy()


def test_a_file_of_hdf5_that_is_closed_or_written(tmp_path: Path) -> None:
    """It is opened again where that is possible."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["i"], file["m"] = IMAGES, MASKS
        data = SamDataset(file["i"], file["m"])
        with (
            get_context("spawn").Pool(1) as pool,
            pytest.raises(OSError, match=r"a.h5: .*close it, and open it with"),
        ):
            pool.apply(_first, (data,))
        closed = file["i"]
    assert np.array_equal(_first(data), SamDataset(IMAGES, MASKS)[0]["masks"])
    with pytest.raises(ValueError, match=r"Closed HDF5 dataset.*keep the file open"):
        SamDataset(closed, MASKS)


@pytest.mark.parametrize("shape", [(40, 56, 3), (56, 1, 40)])
def test_stacks_whose_images_stand_last_are_refused(shape: tuple[int, ...]) -> None:
    """As NIfTI and MATLAB have them: they would be many images of a few pixels."""
    stack = np.zeros(shape, np.uint8)
    stack[10:20] = 1
    with pytest.raises(ValueError, match="moveaxis"):
        SamDataset(stack * 200, stack)


def test_a_masked_array_is_refused_where_it_hides_values() -> None:
    """NumPy's own functions leave the hidden values out; a model would see them."""
    mask = np.ma.MaskedArray(MASKS[0], mask=MASKS[0] == 1)
    with pytest.raises(ValueError, match="filled"):
        SamDataset(IMAGES[:1], [mask])
    assert len(SamDataset(IMAGES[:1], [np.ma.MaskedArray(MASKS[0])])) == 1


@pytest.mark.parametrize("name", ["nibabel", "pydicom", "dict", "None"])
def test_objects_of_other_libraries_are_refused_by_their_type(name: str) -> None:
    """They would be arrays of objects, or of other axes; alone, or in a list."""
    volume = nibabel.Nifti1Image(MASKS[0].astype(np.uint8), np.eye(4))
    made: Any = {"nibabel": volume, "pydicom": Dataset(), "dict": {"counts": "a"}}.get(name)
    message = f"not {type(made).__name__}: pass the path of its file, or its pixels as an array"
    for images, masks in (([made], MASKS[:1]), (IMAGES[:1], [made]), (IMAGES[:1], [[made]])):
        with pytest.raises(TypeError, match=message):
            SamDataset(images, masks)
    with pytest.raises(TypeError, match=f"masks is a {type(made).__name__}, but must be a folder"):
        SamDataset(IMAGES, made)


@pytest.mark.parametrize("image", [IMAGES[0], np.dstack([IMAGES[0]] * 3), Image.fromarray(OBJECT)])
def test_a_single_image_needs_a_list(image: Any) -> None:
    """Its rows would be images; the error says so."""
    with pytest.raises((TypeError, ValueError), match=r"list"):
        SamDataset(image, MASKS[0])
    assert len(SamDataset([image], [MASKS[0]])) == 1


@pytest.mark.parametrize("pattern", ["*.png", "[0-9]?.png", "*/0.png"])
def test_pattern(tmp_path: Path, pattern: str) -> None:
    """The error of a pattern instead of a file says how to list what it matches."""
    with pytest.raises(FileNotFoundError, match=r"no such file: .*glob\.glob\('"):
        SamDataset(str(tmp_path / pattern), MASKS)


def test_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is the home directory: for folders, files in lists, and one file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    images(tmp_path / "images", ["0.png", "1.png"])
    masks(tmp_path / "masks", ["0.png", "1.png"])
    np.save(tmp_path / "masks.npy", MASKS[:1])
    for given in (
        ("~/images", Path("~/masks")),
        (["~/images/0.png", Path("~/images/1.png")], ["~/masks/0.png", "~/masks/1.png"]),
        ("~/images/0.png", "~/masks.npy"),
    ):
        data = SamDataset(*given)
        assert np.array_equal(data.instances(0), MASKS[0])


def _objects(folder: Path, names: list[str]) -> list[list[Path]]:
    """Save two files of one object each, for each name."""
    made = []
    for name in names:
        made.append([folder / f"{name}_obj{n}.png" for n in (10, 11)])
        for path, mask in zip(made[-1], (OBJECT, OTHER), strict=True):
            Image.fromarray(mask).save(path)
    return made


def test_files_of_objects_are_compared_with_their_images(tmp_path: Path) -> None:
    """By what the names of an image's files have in common."""
    files = images(tmp_path, ["img1.png", "img2.png"])
    stacks = _objects(tmp_path, ["img1", "img2"])
    assert len(SamDataset(files, stacks)[0]["masks"]) == 2
    with pytest.raises(ValueError, match=r"image 0 is .*img1\.png, but mask 0 is .*img2_obj"):
        SamDataset(files, stacks[::-1])
    bare = _objects(tmp_path, ["1", "2"])
    assert len(SamDataset(files, bare)) == 2
    with pytest.raises(ValueError, match=r"img1\.png, but mask 0 is .*2_obj"):
        SamDataset(files, bare[::-1])


def test_a_file_is_one_object_once(tmp_path: Path) -> None:
    files, ((one, two), *_) = images(tmp_path, ["a.png"]), _objects(tmp_path, ["a"])
    with pytest.raises(ValueError, match=r"masks\[0\] has a file twice, .*a_obj10\.png"):
        SamDataset(files, [[one, two, one]])


def test_named_axes_of_xarray_are_obeyed() -> None:
    """A square image (x, y) would be turned without a word."""
    named = type("DataArray", (np.ndarray,), {"__module__": "xarray.core.dataarray", "dims": ()})
    image: Any = IMAGES[0].view(named)
    image.dims = ("y", "x")
    assert len(SamDataset([image], MASKS[:1])) == 1
    image.dims = ("x", "y")
    with pytest.raises(ValueError, match=r"dimensions \('x', 'y'\): transpose it"):
        SamDataset([image], MASKS[:1])


def test_a_file_of_several_items_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be meant, but names are not compared then."""
    files = images(tmp_path, ["a.png", "b.png", "c.png"])
    of = masks(tmp_path, ["a_mask.png", "b_mask.png", "c_mask.png"])
    SamDataset(files, [of[0], of[2], of[2]])
    assert "c_mask.png is the mask of 2 items" in capsys.readouterr().out
    SamDataset([files[0], files[0]], of[:2])
    assert "a.png is the image of 2 items" in capsys.readouterr().out


def test_stacks_with_a_file_in_each_of_two_folders_have_no_file_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the left and the right lung of each picture."""
    files = images(tmp_path, ["a.png", "b.png"])
    of = masks(tmp_path, ["left/a.png", "left/b.png"]), masks(tmp_path, ["l/a.png", "l/b.png"])
    for path in (*of[0], *of[1]):
        Image.fromarray(OBJECT).save(path)
    SamDataset(files, [list(pair) for pair in zip(*of, strict=True)])
    assert "items" not in capsys.readouterr().out
    SamDataset(files, [list(of[0]), [of[0][0], of[1][1]]])
    assert "left/a.png is the mask of 2 items" in capsys.readouterr().out


@pytest.mark.parametrize("several", [False, True])
def test_folders_tell_files_apart_where_their_names_do_not(tmp_path: Path, several: bool) -> None:
    """As in the Data Science Bowl of 2018: ID/images/ID.png and ID/masks/HASH.png."""
    ids = ["9f1a", "03bc", "77e0"]
    files = images(tmp_path, [f"{each}/images/{each}.png" for each in ids])
    stacks = []
    for each, name in zip(ids, ("x4", "q7", "p1"), strict=True):
        (tmp_path / each / "masks").mkdir()
        stacks.append([tmp_path / each / "masks" / f"{name}{k}.png" for k in "de"[: 1 + several]])
        for path, mask in zip(stacks[-1], (OBJECT, OTHER), strict=False):
            Image.fromarray(mask).save(path)
    assert len(SamDataset(files, stacks)) == 3
    with pytest.raises(ValueError, match="sort both lists in the same way"):
        SamDataset(files, stacks[::-1])
