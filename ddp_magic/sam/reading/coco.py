"""Masks in the JSON format of COCO: polygons and run lengths, decoded by pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from ddp_magic.sam.arrays.masks import Encoded
from ddp_magic.sam.process_group import print0
from ddp_magic.sam.reading.channels import require
from ddp_magic.sam.reading.names import common_folder
from ddp_magic.sam.reading.readers import header


def match_coco(
    files: list[Any] | None, root: Path | None, annotations: Path
) -> tuple[list[Path], list[Encoded]]:
    """Return the images that are in a COCO file, in their order, and one mask per annotation.

    Args:
        files: the files of the images.
        root: their folder, if it was listed: all images of the COCO file must be there.
        annotations: the JSON file. Its categories are not used; crowds are ignored pixels.

    Raises:
        ValueError: It is not a COCO file of masks, or an image has another size than it says.
        FileNotFoundError: An image does not exist.
        TypeError: The images are not files.
    """
    if files is None or not all(isinstance(each, Path) for each in files):
        raise TypeError("masks in a COCO file need images that are a folder or files")
    data, used, masks, twice = _indexed(annotations), dict[Path, str](), dict[Path, Encoded](), 0
    named: dict[str, list[tuple[Path, list[str]]]] = {}  # with folders, of which the first has all
    top = (root.absolute() if root else common_folder(files)).parent
    for path in files:
        parts = _parts(str(path.absolute().relative_to(top)))
        named.setdefault(parts[-1], []).append((path, parts))
    for number, record in sorted(data.imgs.items()):
        name, size = str(record["file_name"]), (int(record["height"]), int(record["width"]))
        if root is None and _parts(name)[-1] not in named:
            continue  # of another part of the images, such as the validation set
        path = _find(name, named, annotations)
        if path in used:
            raise ValueError(
                f"{annotations}: {path} is the image of two records, {used[path]} and {name}: "
                "correct file_name, or merge the records"
            )
        used[path] = name
        if (found := header(path).size) != size:
            raise ValueError(
                f"{path} has {found} pixels, but {annotations} says {size}: use the images that "
                "were annotated"
            )
        masks[path] = _encoded(data.imgToAnns[number], size, data, annotations)
        twice += len(data.imgToAnns[number]) - len(masks[path].codes) - len(masks[path].crowd)
    if files and not used:
        raise FileNotFoundError(f"{annotations} names none of the images, such as {files[0]}")
    if left := len(files) - len(used):
        print0(f"{annotations}: {left} of {len(files)} images are not in it, and are left out")
    if twice:
        print0(
            f"{annotations}: {twice} annotations repeat the mask of another, or have no pixel, and "
            "are left out"
        )
    order = [path for path in files if path in used]
    return order, [masks[path] for path in order]


def _indexed(annotations: Path) -> Any:  # noqa: ANN401 -- a COCO
    """Return a COCO file with an index, in which each annotation is of one image.

    Raises:
        ValueError: It is not so.
    """
    data = require("pycocotools.coco", "coco").COCO()
    try:
        data.dataset = json.loads(annotations.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{annotations} is not a JSON file: {error}") from error
    try:
        images, lines = data.dataset["images"], data.dataset["annotations"]
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            data.createIndex()
        for _, record in sorted(data.imgs.items()):
            _ = record["file_name"], int(record["height"]), int(record["width"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{annotations} is not in the format of COCO: {error!r}. It needs images with id, "
            "file_name, height and width, and annotations with id, image_id and category_id; the "
            "ids must be of one type"
        ) from error
    if len(data.imgs) < len(images):
        raise ValueError(f"{annotations}: two images have the same id: number them anew")
    lost = [each["image_id"] for each in lines if each["image_id"] not in data.imgs]
    if lost:
        raise ValueError(
            f"{annotations}: {len(lost)} annotations have an image_id that no image has, such as "
            f"{lost[0]!r}: the first ids of images are {list(data.imgs)[:3]}; correct them"
        )
    return data


def _find(name: str, named: dict[str, Any], annotations: Path) -> Path:
    """Return the file of an image that the JSON names, perhaps in a sub-folder.

    Raises:
        FileNotFoundError: There is none, or there are several, in the folders that the name says,
            as far as both are known.
    """
    wanted = _parts(name)
    known = named.get(wanted[-1], [])
    found = [each for each in known if each[1][-len(wanted) :] == wanted[-len(each[1]) :]]
    found = [each for each in found if each[1][1:] == wanted] or found
    if len(found) != 1:
        other = f", but {known[0][0]} is in another folder" if known and not found else ""
        raise FileNotFoundError(
            f"{annotations} names the image {name}, and {len(found)} of the images have this "
            f"name{other}: move or rename the image, or correct its file_name"
        )
    path: Path = found[0][0]
    return path


def _parts(name: str) -> list[str]:
    """Return the folders and the name of a file, perhaps of another system."""
    return normalize("NFC", name).replace("\\", "/").lstrip("./").split("/")


def _encoded(records: Any, size: tuple[int, int], data: Any, annotations: Path) -> Encoded:  # noqa: ANN401 -- of a COCO
    """Return the masks of an image, without repetitions and without those that have no pixel.

    Raises:
        ValueError: An annotation has no mask.
    """
    rle = require("pycocotools.mask", "coco")
    kinds: tuple[list[Any], list[Any]] = [], []  # objects, and crowds
    seen: set[bytes] = set()
    for record in records:
        name = f"{annotations}: annotation {record.get('id')}"
        try:
            _check_segmentation(record.get("segmentation"), size)
            code = data.annToRLE(record)
            box, found = np.array([record.get("bbox") or [0] * 4], float), rle.toBbox(code)[None]
            apart = min(*box[0, 2:], *found[0, 2:]) > 4 and rle.iou(found, box, [0]).item() < 0.3
            if not box.any() and (area := float(record.get("area") or 0)):
                apart = not area / 3 < rle.area(code) < area * 3
            is_crowd = int(record.get("iscrowd") or 0) != 0
        except Exception as error:  # pycocotools raises what it meets
            raise ValueError(
                f"{name} has no valid mask ({error}): segmentation must be polygons [[x, y, x, y, "
                "...]] in pixels, or run lengths; boxes and keypoints are not enough"
            ) from error
        if not rle.area(code):
            continue
        if apart:
            raise ValueError(
                f"{name} has a mask of {rle.area(code)} pixels in the box {found[0].tolist()}, but "
                f"bbox is {box[0].tolist()}, (x, y, width, height), and area {record.get('area')}: "
                "are x and y swapped, or is one of another size? Correct it, or remove bbox and "
                "area"
            )
        if code["counts"] not in seen:  # or an object would be prompted twice
            kinds[is_crowd].append(code)
        seen.add(code["counts"])
    return Encoded(kinds[0], size, kinds[1])


def _check_segmentation(given: Any, size: tuple[int, int]) -> None:  # noqa: ANN401 -- of JSON
    """Refuse what pycocotools decodes without an error, but not as it was meant.

    Raises:
        ValueError: A polygon has an x without y, or points so far away that they take all memory;
            run lengths are of another size.
    """
    if isinstance(given, list):
        points = [np.asarray(polygon, float) for polygon in given]
        top = max((float(np.abs(each).max(initial=0)) for each in points), default=0.0)
        if not (all(each.size % 2 == 0 for each in points) and top < 1e5):
            raise ValueError("a polygon that is not pairs of numbers below 100000")
        if 0 < top <= 1 < max(size):
            raise ValueError("a polygon of fractions, not of pixels")
        far = [each.reshape(-1, 2).max(0, initial=0) - (size[1], size[0]) for each in points]
        if np.max(far, initial=0) > 4 + 0.1 * max(size):
            raise ValueError(f"a polygon far outside its {size[0]} x {size[1]} pixels")
        return
    counts = given["counts"]
    runs = np.asarray(counts) if isinstance(counts, list) else _run_lengths(counts)
    if tuple(given["size"]) != size or runs.sum() != np.prod(size) or runs.min() < 0:
        raise ValueError(
            f"a mask of {tuple(given['size'])}, but its image has {size}, or run lengths that end "
            "early"
        )


def _run_lengths(text: str) -> NDArray[np.int64]:
    """Return the run lengths (n,) of a compressed mask, of which pycocotools checks nothing.

    Source:
        rleFrString of pycocotools: six bits a character, of which five are of a number, lowest
        first, and one says whether it goes on. From the third on, numbers are differences to the
        last but one.

    Raises:
        ValueError: The text is not such a code, or ends within a number.
    """
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    last = codes & 32 == 0
    starts = np.flatnonzero(np.append(True, last[:-1]))
    lengths = np.diff(starts, append=len(codes))
    wrong = not len(codes) or codes.min() < 0 or codes.max() > 63 or not last[-1]
    if wrong or lengths.max() > 7:  # 35 bits, more than any image
        raise ValueError("run lengths that are not in the encoding of COCO, or end early")
    places = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << places, starts)
    runs -= np.where(codes[last] & 16, 1 << 5 * lengths, 0)
    for first in (1, 2):  # the first run stands alone
        runs[first::2] = np.cumsum(runs[first::2])
    return runs
