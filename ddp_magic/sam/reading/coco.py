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
from ddp_magic.sam.reading.names import common_folder, list_folder
from ddp_magic.sam.reading.pictures import Page, Pictures
from ddp_magic.sam.reading.readers import header
from ddp_magic.sam.reading.volumes import require

_Files = dict[str, list[tuple[Path, list[str]]]]


def open_coco(images: Any, annotations: Path) -> tuple[Pictures, list[Encoded]]:  # noqa: ANN401 -- whatever SamDataset takes
    """Return the images of a COCO file in its order, and their masks, one per annotation.

    Args:
        images: the folder with the images, or a list of their files.
        annotations: the JSON file. Its categories are not used; crowds are ignored pixels.

    Raises:
        ValueError: It is not a COCO file of masks, or an image has another size than it says.
        FileNotFoundError: An image does not exist.
        TypeError: The images are not files.
    """
    data, files = _indexed(annotations), _files(images)
    pages, masks, turned, twice = [], [], [], 0
    used: dict[Path, str] = {}
    for number in sorted(data.imgs):
        record = data.imgs[number]
        name = str(record["file_name"])
        path = _find(name, files, annotations)
        if path in used:
            raise ValueError(
                f"{annotations}: {path} is the image of two records, {used[path]} and {name}: "
                "correct file_name, or merge the records"
            )
        used[path] = name
        head, named = header(path), (int(record["height"]), int(record["width"]))
        if head.pages > 1:
            raise ValueError(f"{path} contains {head.pages} images: save each as a file")
        if head.size != named:
            hint = "turn it, or " if head.size == named[::-1] else ""
            raise ValueError(
                f"{path} has {head.size} pixels, but {annotations} says {named}: {hint}use the "
                "images that were annotated"
            )
        turned += [path] * (head.turn > 1)
        pages.append(Page(path))
        masks.append(_encoded(data, number, named, annotations))
        twice += len(data.imgToAnns[number]) - len(masks[-1].codes) - len(masks[-1].crowd)
    number = sum(map(len, files.values()))
    if number > len(pages):
        left = f"{number - len(pages)} of {number} images"
        print0(f"{annotations}: {left} are not in it, and are left out")
    if twice:
        print0(f"{annotations}: {twice} annotations repeat the mask of another, and are left out")
    if turned:  # where the size is the same, they may have been annotated before or after
        print0(
            f"{len(turned)} images are turned as their metadata says: compare {turned[0]} with its "
            "masks"
        )
    return Pictures(pages, labels=False), masks


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
    if not isinstance(data.dataset, dict) or not {"images", "annotations"} <= data.dataset.keys():
        raise ValueError(f"{annotations} is not in the format of COCO, with images and annotations")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            data.createIndex()
        for _, record in sorted(data.imgs.items()):
            _ = record["file_name"], int(record["height"]), int(record["width"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{annotations} is not in the format of COCO: {error!r}. Each image needs id, "
            "file_name, height and width; each annotation needs id and image_id; the ids must be "
            "of one type"
        ) from error
    if len(data.imgs) < len(data.dataset["images"]):
        raise ValueError(f"{annotations}: two images have the same id: number them anew")
    lost = [each for each in data.dataset["annotations"] if each["image_id"] not in data.imgs]
    if lost:
        raise ValueError(
            f"{annotations}: {len(lost)} annotations have an image_id that no image has, such as "
            f"{lost[0]['image_id']!r}: the first ids of images are {list(data.imgs)[:3]}; correct "
            "them, or remove these annotations"
        )
    return data


def _files(images: Any) -> _Files:  # noqa: ANN401 -- whatever SamDataset takes
    """Return the images by their names, with their folders, the first of which contains all.

    Raises:
        FileNotFoundError: An image does not exist.
        TypeError: The images are not files.
    """
    if isinstance(images, (str, Path)) and Path(images).is_dir():
        files, root = list_folder(Path(images)), Path(images).absolute()
    else:
        given = [images] if isinstance(images, (str, Path)) else list(images)
        if not all(isinstance(each, (str, Path)) for each in given):
            raise TypeError("masks in a COCO file need images that are a folder or files")
        files = [Path(each) for each in given]
        root = common_folder(files)
    named: _Files = {}
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}")
        parts = _parts(str(path.absolute().relative_to(root.parent)))
        named.setdefault(parts[-1], []).append((path, parts))
    return named


def _find(name: str, files: _Files, annotations: Path) -> Path:
    """Return the file of an image that the JSON names, perhaps in a sub-folder.

    Raises:
        FileNotFoundError: There is none, or there are several, in the folders that the name says,
            as far as both are known.
    """
    wanted = _parts(name)
    known = files.get(wanted[-1], [])
    found = [
        (path, parts)
        for path, parts in known
        if all(a == b for a, b in zip(reversed(parts), reversed(wanted), strict=False))
    ]
    found = [each for each in found if each[1][1:] == wanted] or found
    if len(found) != 1:
        other = f", but {known[0][0]} is in another folder" if known and not found else ""
        raise FileNotFoundError(
            f"{annotations} names the image {name}, and {len(found)} of the images have this "
            f"name{other}: move or rename the image, or correct its file_name"
        )
    return found[0][0]


def _parts(name: str) -> list[str]:
    """Return the folders and the name of a file, perhaps of another system."""
    return normalize("NFC", name).replace("\\", "/").lstrip("./").split("/")


def _encoded(data: Any, image: int, size: tuple[int, int], annotations: Path) -> Encoded:  # noqa: ANN401 -- a COCO
    """Return the masks of an image, without repetitions.

    Raises:
        ValueError: An annotation has no mask.
    """
    rle = require("pycocotools.mask", "coco")
    codes: list[Any] = []
    crowd: list[Any] = []
    seen: set[bytes] = set()
    for record in data.imgToAnns[image]:
        name = f"{annotations}: annotation {record.get('id')}"
        try:
            _check_segmentation(record.get("segmentation"), size)
            code = data.annToRLE(record)
            area, is_crowd = int(rle.area(code)), int(record.get("iscrowd") or 0)
            box, found = np.array([record.get("bbox") or [0] * 4], float), rle.toBbox(code)[None]
            apart = min(*box[0, 2:], *found[0, 2:]) > 4 and rle.iou(found, box, [0]).item() < 0.3
        except Exception as error:  # pycocotools raises what it meets
            raise ValueError(
                f"{name} has no valid mask ({error}): segmentation must be polygons [[x, y, x, y, "
                "...]] or run lengths; boxes and keypoints are not enough"
            ) from error
        if not area:
            raise ValueError(
                f"{name} has a mask without pixels: polygons are (x, y) in pixels, not fractions "
                "of the image; remove annotations smaller than a pixel"
            )
        if apart:
            raise ValueError(
                f"{name} has a mask in the box {found[0].tolist()}, but bbox is {box[0].tolist()}, "
                "(x, y, width, height): are x and y swapped, or is one of them of another size? "
                "Correct it, or remove bbox"
            )
        if code["counts"] not in seen:  # or an object would be prompted twice
            (crowd if is_crowd else codes).append(code)
        seen.add(code["counts"])
    return Encoded(codes, size, crowd)


def _check_segmentation(given: Any, size: tuple[int, int]) -> None:  # noqa: ANN401 -- of JSON
    """Refuse what pycocotools decodes without an error, but not as it was meant.

    Raises:
        ValueError: A polygon has an x without y, or points so far away that they take all memory;
            run lengths are of another size.
    """
    if isinstance(given, list):
        points = [np.asarray(polygon, float) for polygon in given]
        if not all(each.size % 2 == 0 and np.abs(each).max(initial=0) < 1e5 for each in points):
            raise ValueError("a polygon that is not pairs of numbers below 100000")
        if 0 < max((np.abs(each).max(initial=0) for each in points), default=0) <= 1 < max(size):
            raise ValueError("a polygon of fractions, not of pixels")
    elif tuple(given["size"]) != size:
        raise ValueError(f"a mask of {tuple(given['size'])}, but its image has {size}")
    else:
        counts = given["counts"]
        runs = np.asarray(counts if isinstance(counts, list) else _run_lengths(counts))
        if runs.sum() != np.prod(size) or runs.min() < 0:
            raise ValueError(f"run lengths of {runs.sum()} pixels, but its image has {size}")


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
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise ValueError("run lengths that are not in the encoding of COCO, or end early")
    starts = np.flatnonzero(np.append(True, last[:-1]))
    lengths = np.diff(starts, append=len(codes))
    if lengths.max() > 7:  # 35 bits, more than any image
        raise ValueError("run lengths that are not in the encoding of COCO")
    places = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << places, starts)
    runs -= np.where(codes[last] & 16, 1 << 5 * lengths, 0)
    for first in (1, 2):  # the first run stands alone
        runs[first::2] = np.cumsum(runs[first::2])
    return runs
