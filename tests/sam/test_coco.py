"""COCO files that other programs wrote, with names and ids that do not fit the images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from ddp_magic.prelude import SamDataset

SQUARE = [[5, 5, 20, 5, 20, 20, 5, 20]]


def picture(path: Path) -> Path:
    """Save an image of 40 x 40 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 40), 77, np.uint8)).save(path)
    return path


def coco(
    folder: Path, names: list[str], ids: Any = None, of: Any = None, mask: Any = SQUARE
) -> Path:
    """Write a COCO file with one annotation per image, of the images `of`."""
    ids = ids or list(range(1, len(names) + 1))
    data = {
        "images": [
            {"id": i, "file_name": name, "height": 40, "width": 40}
            for i, name in zip(ids, names, strict=True)
        ],
        "annotations": [
            {"id": n, "image_id": i, "category_id": 1, "segmentation": mask}
            for n, i in enumerate(of or ids)
        ],
        "categories": [],
    }
    (folder / "coco.json").write_text(json.dumps(data))
    return folder / "coco.json"


def test_a_name_with_folders_is_found(tmp_path: Path) -> None:
    """As far as its folders are known, also with those of another computer."""
    path = picture(tmp_path / "set" / "b" / "1.png")
    picture(tmp_path / "set" / "2.png")
    for name in ("1.png", "./b/1.png", "/x/set/b/1.png", "C:\\x\\set\\b\\1.png"):
        for images in (tmp_path / "set", [str(path), str(tmp_path / "set" / "2.png")]):
            data = SamDataset(images, coco(tmp_path, [name]))
            assert str(path) in data.name(0, "image")


@pytest.mark.parametrize("name", ["a/1.png", "a\\1.png", "/x/a/1.png", "set/a/1.png"])
def test_an_image_in_another_folder_is_not_used(tmp_path: Path, name: str) -> None:
    """Such as the validation image of the same name, if that of the training set is missing."""
    path = picture(tmp_path / "set" / "b" / "1.png")
    picture(tmp_path / "set" / "2.png")
    for images in (tmp_path / "set", tmp_path / "set" / "b", [path, tmp_path / "set" / "2.png"]):
        with pytest.raises(FileNotFoundError, match=r"b/1.png is in another folder"):
            SamDataset(images, coco(tmp_path, [name]))


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    """Not an image in it."""
    with pytest.raises(FileNotFoundError, match=r"no such file: .*nothing"):
        SamDataset(tmp_path / "nothing", coco(tmp_path, ["1.png"]))


def test_a_list_of_files_is_a_part_of_the_images(tmp_path: Path) -> None:
    """Such as the training set, in its order: clicks have its numbers. A folder must be whole."""
    paths = [picture(tmp_path / "set" / f"{n}.png") for n in range(4)]
    names, ids = [path.name for path in paths], [9, 7, 5, 3]
    squares = [[[n, n, n + 9, n, n + 9, n + 9, n, n + 9]] for n in range(4)]
    data = json.loads(coco(tmp_path, names, ids).read_text())
    for record, square in zip(data["annotations"], squares, strict=True):
        record["segmentation"] = square
    (tmp_path / "coco.json").write_text(json.dumps(data))
    for part in ([0, 1, 2, 3], [2, 0], [3]):
        found = SamDataset([paths[n] for n in part], tmp_path / "coco.json")
        assert [found.name(i, "image").split("/")[-1] for i in range(len(found))] == [
            f"{n}.png)" for n in part
        ]
        tops = [
            int(item["masks"][0].any(1).nonzero()[0]) for item in map(found.item, range(len(part)))
        ]
        assert tops == part
    assert "0.png" in SamDataset(tmp_path / "set", tmp_path / "coco.json").name(0, "image")
    with pytest.raises(FileNotFoundError, match="names none of the images, such as"):
        SamDataset([picture(tmp_path / "other.png")], tmp_path / "coco.json")
    paths[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"names the image 1\.png"):
        SamDataset(tmp_path / "set", tmp_path / "coco.json")


def test_polygons_of_another_size_are_refused(tmp_path: Path) -> None:
    """pycocotools cuts them at the border; a few pixels outside are drawn by hand."""
    picture(tmp_path / "set" / "1.png")
    for end, fits in ((42, True), (80, False)):
        square = [[5, 5, 20, 5, 20, end, 5, end]]
        path = coco(tmp_path, ["1.png"], mask=square)
        if fits:
            assert SamDataset(tmp_path / "set", path)[0]["masks"].sum() == 15 * 35
        else:
            with pytest.raises(
                ValueError, match=r"annotation 0 .*a polygon far outside its 40 x 40"
            ):
                SamDataset(tmp_path / "set", path)


def test_names_in_either_form_of_unicode_are_found(tmp_path: Path) -> None:
    """The same letters, composed by Linux and decomposed by macOS."""
    picture(tmp_path / "set" / "zelle\u0301.png")
    assert len(SamDataset(tmp_path / "set", coco(tmp_path, ["zell\u00e9.png"]))) == 1


@pytest.mark.parametrize(
    ("names", "ids", "of", "message"),
    [
        (["1.png", "b/1.png"], None, None, "two records, 1.png and b/1.png"),
        (["1.png", "2.png"], [1, 1], None, "two images have the same id"),
        (["1.png", "2.png"], [0, 1], [1, 2], "1 annotations have an image_id .* as 2: .*0, 1"),
        (["1.png", "2.png"], [1, 2], ["1", "2"], "2 annotations have an image_id .* as '1'"),
        (["1.png", "2.png"], [1, "2"], None, "ids must be of one type"),
    ],
)
def test_ids_that_do_not_fit_are_refused(
    tmp_path: Path, names: list[str], ids: Any, of: Any, message: str
) -> None:
    """Files merged without new ids, ids that begin at 0 and 1, and ids as text."""
    picture(tmp_path / "set" / "b" / "1.png")
    picture(tmp_path / "set" / "2.png")
    with pytest.raises(ValueError, match=rf"coco.json.*{message}"):
        SamDataset(tmp_path / "set", coco(tmp_path, names, ids, of))


@pytest.mark.parametrize("field", ["file_name", "height"])
def test_a_record_without_a_field_is_refused(tmp_path: Path, field: str) -> None:
    """The error names the file and the field."""
    picture(tmp_path / "set" / "1.png")
    path = coco(tmp_path, ["1.png"])
    data = json.loads(path.read_text())
    del data["images"][0][field]
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=rf"coco.json is not in the format of COCO: .*'{field}'"):
        SamDataset(tmp_path / "set", path)


def test_several_pages_are_refused(tmp_path: Path) -> None:
    """The masks would be of the first page only."""
    (tmp_path / "set").mkdir()
    tifffile.imwrite(
        tmp_path / "set" / "1.tif", np.zeros((3, 40, 40), np.uint8), photometric="minisblack"
    )
    with pytest.raises(ValueError, match=r"3 images but 1 masks, .*1.tif"):
        SamDataset(tmp_path / "set", coco(tmp_path, ["1.tif"]))


@pytest.mark.parametrize(
    "mask",
    [
        {"size": [40, 40], "counts": [5, 10]},
        [[5, 5, 20, 5, 20, 20, 7]],
        [[5, 5, 20, 5, 20, float("nan")]],
        {"counts": [5, 10, 1585]},
        {"size": [40, 40], "counts": "!!"},
    ],
)
def test_masks_that_pycocotools_would_make_up_are_refused(tmp_path: Path, mask: Any) -> None:
    """Run lengths that end early are decoded to what is in memory, and NaN takes all memory."""
    picture(tmp_path / "set" / "1.png")
    with pytest.raises(ValueError, match="annotation 0 has no valid mask"):
        SamDataset(tmp_path / "set", coco(tmp_path, ["1.png"], mask=mask))


def test_compressed_masks_that_were_cut_or_changed_are_refused(tmp_path: Path) -> None:
    """Wherever the code ends, and whichever character is another one."""
    picture(tmp_path / "set" / "1.png")
    disk = np.hypot(*np.mgrid[-20:20, -20:20]) < 11
    encode = pytest.importorskip("pycocotools.mask").encode
    code = encode(np.asfortranarray(disk, np.uint8))["counts"].decode()
    cut = [code[:end] for end in range(len(code))]
    changed = [code[:at] + "7" + code[at + 1 :] for at in range(len(code)) if code[at] != "7"]
    for counts in [*cut, *changed, code + "0", code + "\u00e9", "P" * 20]:
        path = coco(tmp_path, ["1.png"], mask={"size": [40, 40], "counts": counts})
        with pytest.raises(ValueError, match=r"coco\.json: annotation 0 has no valid mask"):
            SamDataset(tmp_path / "set", path)
    path = coco(tmp_path, ["1.png"], mask={"size": [40, 40], "counts": code})
    assert np.array_equal(SamDataset(tmp_path / "set", path)[0]["masks"][0], disk)


def test_a_crowd_as_text_is_read(tmp_path: Path) -> None:
    """`"iscrowd": "0"` is an object."""
    picture(tmp_path / "set" / "1.png")
    path = coco(tmp_path, ["1.png"])
    path.write_text(path.read_text().replace('"category_id"', '"iscrowd": "0", "category_id"'))
    data = SamDataset(tmp_path / "set", path)
    item = data[0]
    assert torch.equal(data.instances(0) == 1, item["masks"][0])
    assert "ignored" not in item


def test_an_orientation_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the size is the same, only a person can see whether it was annotated before it."""
    exif = Image.Exif()
    exif[0x0112] = 3
    path = picture(tmp_path / "set" / "1.jpg")
    Image.open(path).save(path, exif=exif)
    SamDataset(tmp_path / "set", coco(tmp_path, ["1.jpg"]))
    assert "1 images are turned as their metadata says" in capsys.readouterr().out


@pytest.mark.parametrize(("box", "message"), [([5, 25, 10, 10], "swapped"), ([25, 5, 10, 10], "")])
def test_a_mask_that_is_not_in_its_box_is_refused(
    tmp_path: Path, box: list[int], message: str
) -> None:
    """Polygons in (y, x) order, or of another size, are not where the box is."""
    picture(tmp_path / "set" / "1.png")
    path = coco(tmp_path, ["1.png"], mask=[[25, 5, 35, 5, 35, 15, 25, 15]])
    path.write_text(path.read_text().replace('"category_id"', f'"bbox": {box}, "category_id"'))
    if message:
        with pytest.raises(
            ValueError, match=f"annotation 0 has a mask of .*, but bbox .*{message}"
        ):
            SamDataset(tmp_path / "set", path)
    else:
        assert SamDataset(tmp_path / "set", path)[0]["masks"].sum() == 100


@pytest.mark.parametrize("box", ["", '"bbox": [0, 0, 0, 0], '])
@pytest.mark.parametrize(("area", "fits"), [(100, True), (40, True), (400, False), (1, False)])
def test_a_mask_without_a_box_is_compared_with_its_area(
    tmp_path: Path, box: str, area: int, fits: bool
) -> None:
    """It tells a polygon of another size, as the box does where there is one."""
    picture(tmp_path / "set" / "1.png")
    path = coco(tmp_path, ["1.png"], mask=[[25, 5, 35, 5, 35, 15, 25, 15]])
    text = path.read_text().replace('"category_id"', f'{box}"area": {area}, "category_id"')
    path.write_text(text)
    if fits:
        assert SamDataset(tmp_path / "set", path)[0]["masks"].sum() == 100
        return
    with pytest.raises(ValueError, match=f"a mask of 100 pixels .*, and area {area}"):
        SamDataset(tmp_path / "set", path)


def test_a_mask_that_is_repeated_is_one_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files that were merged have annotations twice; their other masks stay."""
    picture(tmp_path / "set" / "1.png")
    path = coco(tmp_path, ["1.png"], of=[1, 1, 1])
    data = json.loads(path.read_text())
    data["annotations"][1]["segmentation"] = [[5, 5, 20, 5, 20, 20]]
    path.write_text(json.dumps(data))
    assert len(SamDataset(tmp_path / "set", path)[0]["masks"]) == 2
    assert "coco.json: 1 annotations repeat the mask of another" in capsys.readouterr().out


@pytest.mark.parametrize("polygon", [[0.1, 0.1, 0.5, 0.1, 0.5, 0.5], [0, 0, 1, 0, 1, 1]])
def test_polygons_of_fractions_are_refused(tmp_path: Path, polygon: list[float]) -> None:
    """Each would be an object of one pixel."""
    picture(tmp_path / "set" / "1.png")
    with pytest.raises(ValueError, match=r"annotation 0 has .*a polygon of fractions"):
        SamDataset(tmp_path / "set", coco(tmp_path, ["1.png"], mask=[polygon]))


def test_a_file_of_windows_is_read(tmp_path: Path) -> None:
    """Its text begins with a byte order mark."""
    picture(tmp_path / "set" / "1.png")
    path = coco(tmp_path, ["1.png"])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(SamDataset(tmp_path / "set", path)[0]["masks"]) == 1


def test_an_annotation_without_a_pixel_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tools write them by a slip of the mouse."""
    picture(tmp_path / "set" / "1.png")
    path = coco(tmp_path, ["1.png"], mask=[[25, 5, 35, 5, 35, 15, 25, 15]])
    data = json.loads(path.read_text())
    small = data["annotations"][0] | {"id": 99, "segmentation": [[40, 40, 40.4, 40.2, 40.1, 40.5]]}
    data["annotations"].append(small)
    path.write_text(json.dumps(data))
    assert len(SamDataset(tmp_path / "set", path)[0]["masks"]) == 1
    assert "1 annotations repeat the mask of another, or have no pixel" in capsys.readouterr().out
