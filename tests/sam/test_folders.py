"""Which images and masks of two folders belong together, by their names."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from PIL import Image

from ddp_magic.prelude import SamDataset
from tests.sam.test_lists import IMAGES, MASKS, images, masks


@pytest.mark.parametrize(
    ("names", "mask_names"),
    [
        (["1.png", "2.png", "10000.png"], ["1.png", "2.png", "10000.png"]),
        (["c_0000.png", "c_0001.png"], ["c_0000_mask.png", "c_0001_mask.png"]),
        (["c_0000.png"], ["c_0000_mask.png"]),
        (["zell\u00e9.png"], ["zelle\u0301_mask.png"]),
        (["e\u0301/1.png", "a/1.png"], ["\u00e9/1.png", "a/1.png"]),
        (["a1.jpg", "a2.jpg"], ["a1.jpg.png", "a2.jpg.png"]),
        (["t000.tif", "t001.tif"], ["man_seg000.tif", "man_seg001.tif"]),
        (["t000.tif", "t012.tif"], ["mask000.tif", "mask012.tif"]),
        (["t000.tif", "t001.tif"], ["t000_mask.tif", "t001_mask.tif"]),
        (["image01.png", "image2.png"], ["label01.png", "label2.png"]),
        (["image1.png", "image2.png"], ["1.png", "2.png"]),
        (["img_001.png", "img_002.png"], ["seg_001.png", "seg_002.png"]),
        (["x_image.png", "y_image.png"], ["seg_mask_x.png", "seg_mask_y.png"]),
        (
            [f"a/a_000000_00001{n}_leftImg8bit.png" for n in (1, 2)],
            [f"a/a_000000_00001{n}_gtFine_instanceIds.png" for n in (1, 2)],
        ),
    ],
)
def test_names_in_folders_match(tmp_path: Path, names: list[str], mask_names: list[str]) -> None:
    """Numbers of four digits and more, both forms of Unicode, and two suffixes."""
    images(tmp_path / "i", names)
    masks(tmp_path / "m", mask_names)
    data = SamDataset(tmp_path / "i", tmp_path / "m")
    assert len(data) == len(names)


@pytest.mark.parametrize(
    ("names", "mask_names"),
    [
        (["aachen_1.png", "aachen_2.png"], ["bonn_1.png", "bonn_2.png"]),
        (["p1_s1.png", "p1_s2.png"], ["p2_s1_mask.png", "p2_s2_mask.png"]),
        (["x1.png", "x2.png"], ["1.png", "2.png"]),
        (["image1.png", "image2.png"], ["image1_gtFine_color.png", "image2_gtFine_color.png"]),
    ],
)
def test_other_names_in_folders_are_refused_with_two_lists_to_pass(
    tmp_path: Path, names: list[str], mask_names: list[str]
) -> None:
    """They may be of other images, as a city, a patient, or one color for each class."""
    files, mask_files = images(tmp_path / "i", names), masks(tmp_path / "m", mask_names)
    with pytest.raises(ValueError, match="do not match: 2 images without a mask") as caught:
        SamDataset(tmp_path / "i", tmp_path / "m")
    found = re.findall(r"sorted\(Path\('(.*?)'\)\.rglob\('(.*?)'\)\)", str(caught.value))
    lists = [sorted(Path(folder).rglob(pattern)) for folder, pattern in found]
    assert lists == [files, mask_files]
    assert len(SamDataset(*lists)) == 2


@pytest.mark.parametrize(("ours", "theirs"), [("", "masks"), ("", "x/y"), ("img", ""), ("a", "b")])
def test_one_folder_may_be_in_the_other(tmp_path: Path, ours: str, theirs: str) -> None:
    """The images of the one are not of the other, whose path may be relative."""
    images(tmp_path / ours, ["1.png", "s/2.png"])
    masks(tmp_path / theirs, ["1.tif", "s/2.tif"])
    relative = Path(os.path.relpath(tmp_path / theirs))
    data = SamDataset(tmp_path / ours, relative)
    assert [np.unique(data.instances(n)).tolist() for n in range(2)] == [
        np.unique(mask).tolist() for mask in MASKS[:2]
    ]


@pytest.mark.parametrize("names", [["a1.png", "a2.png", "a10.png"], ["B.png", "a.png", "c.png"]])
def test_a_folder_beside_arrays_must_have_one_order(tmp_path: Path, names: list[str]) -> None:
    """The arrays may have been read in the order of the letters, or of the numbers."""
    files, mask_files = images(tmp_path / "i", names), masks(tmp_path / "m", names)
    for both in ((tmp_path / "i", MASKS), (IMAGES, tmp_path / "m")):
        with pytest.raises(ValueError, match=r"in the order .* by its letters .* pass a list"):
            SamDataset(*both)
    assert len(SamDataset(files, MASKS)) == len(SamDataset(IMAGES, mask_files)) == 3
    files[names.index(sorted(names)[1])].unlink()
    assert len(SamDataset(tmp_path / "i", MASKS[:2])) == 2


def test_a_folder_of_dicom_beside_arrays_has_the_order_of_the_series(tmp_path: Path) -> None:
    """Scanners number the names of the files as they like."""
    data = pydicom.dcmread(str(pydicom.data.get_testdata_file("CT_small.dcm")))
    arrays = np.ones((3, data.Rows, data.Columns), bool)
    for numbers in ((3, 1, 2), (1, 2, 3)):
        for name, number in zip("abc", numbers, strict=True):
            data.InstanceNumber = number
            data.save_as(tmp_path / f"{name}.dcm")
        if numbers[0] == 3:
            with pytest.raises(ValueError, match=r"order a.dcm.* by DICOM it is b.dcm, c.dcm, a"):
                SamDataset(tmp_path, arrays)
    assert len(SamDataset(tmp_path, arrays)) == 3


def test_the_index_of_dicom_files_is_left_out(tmp_path: Path) -> None:
    """A folder from a scanner contains a DICOMDIR, which is a DICOM file without an image."""
    images(tmp_path / "i", ["1.png"])
    (tmp_path / "i" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    assert len(SamDataset(tmp_path / "i", MASKS[:1])) == 1


def test_ten_thousand_is_not_one(tmp_path: Path) -> None:
    """`_0000` is the first channel in nnU-Net only after a separator."""
    images(tmp_path / "i", ["2.png", "10000.png"])
    masks(tmp_path / "m", ["1.png", "2.png"])
    with pytest.raises(ValueError, match=r"without a mask \(10000.png\)"):
        SamDataset(tmp_path / "i", tmp_path / "m")


@pytest.mark.parametrize(
    "names", [["dose_0.5", "dose_0.05"], ["1", "01"], ["a", "A"], ["seg_1", "1"]]
)
def test_equal_names_match_whatever_they_mean(tmp_path: Path, names: list[str]) -> None:
    """Read as numbers and words, two of them would belong to the same image."""
    for kind, pictures in (("images", IMAGES), ("masks", MASKS)):
        (tmp_path / kind).mkdir()
        for name, picture in zip(names, pictures, strict=False):
            Image.fromarray(picture.astype(np.uint8)).save(tmp_path / kind / f"{name}.png")
    data = SamDataset(tmp_path / "images", tmp_path / "masks")
    for i in range(2):
        which = 0 if f"/{names[0]}.png" in data.name(i) else 1
        assert f"/{names[which]}.png" in data.name(i, "image")
        assert np.array_equal(data.instances(i), MASKS[which])
