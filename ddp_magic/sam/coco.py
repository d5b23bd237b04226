"""Masks in the JSON format of COCO: polygons and run lengths, decoded by pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from ddp_magic.sam.masks import Encoded
from ddp_magic.sam.names import list_folder
from ddp_magic.sam.pictures import Page, Pictures
from ddp_magic.sam.process_group import print0
from ddp_magic.sam.readers import header
from ddp_magic.sam.volumes import require


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
    data = require("pycocotools.coco", "coco").COCO()
    try:
        data.dataset = json.loads(annotations.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{annotations} is not a JSON file: {error}") from error
    if not isinstance(data.dataset, dict) or not {"images", "annotations"} <= data.dataset.keys():
        raise ValueError(f"{annotations} is not in the format of COCO, with images and annotations")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            data.createIndex()
    except (KeyError, TypeError) as error:
        raise ValueError(f"{annotations} is not in the format of COCO: {error!r}") from error
    files = _files(images)
    pages, masks = [], []
    for number in sorted(data.imgs):
        record = data.imgs[number]
        path = _find(record["file_name"], images, files, annotations)
        size, named = header(path).size, (int(record["height"]), int(record["width"]))
        if size != named:
            turned = ": turn it, or" if size == named[::-1] else ": "
            raise ValueError(
                f"{path} has {size} pixels, but {annotations} says {named}{turned} use the images "
                "that were annotated"
            )
        pages.append(Page(path))
        masks.append(_encoded(data, number, named, annotations))
    left = len({path.resolve() for path in files} - {page.path.resolve() for page in pages})
    if left:
        print0(f"{annotations}: {left} of {len(files)} images are not in it, and are left out")
    return Pictures(pages, labels=False), masks


def _files(images: Any) -> list[Path]:  # noqa: ANN401 -- whatever SamDataset takes
    if isinstance(images, (str, Path)):
        found = Path(images)
        return list_folder(found) if found.is_dir() else [found]
    if not all(isinstance(each, (str, Path)) for each in images):
        raise TypeError("masks in a COCO file need images that are a folder or files, for names")
    return [Path(each) for each in images]


def _find(name: str, images: Any, files: list[Path], annotations: Path) -> Path:  # noqa: ANN401 -- as above
    """Return the file of an image that the JSON names, perhaps in a sub-folder."""
    if isinstance(images, (str, Path)) and (Path(images) / name).is_file():
        return Path(images) / name
    found = [path for path in files if path.name == Path(name).name]
    if len(found) != 1:
        raise FileNotFoundError(
            f"{annotations} names the image {name}, of which there are {len(found)} in {images}"
            if isinstance(images, (str, Path))
            else f"{annotations} names the image {name}, which is {len(found)} times in the list"
        )
    return found[0]


def _encoded(data: Any, image: int, size: tuple[int, int], annotations: Path) -> Encoded:  # noqa: ANN401 -- a COCO
    """Return the masks of an image.

    Raises:
        ValueError: An annotation has no mask.
    """
    rle = require("pycocotools.mask", "coco")
    codes: list[Any] = []
    crowd: list[Any] = []
    for record in data.imgToAnns[image]:
        name = f"{annotations}: annotation {record.get('id')}"
        given = record.get("segmentation")
        stated = tuple(given["size"]) if isinstance(given, dict) else size
        if stated != size:
            raise ValueError(f"{name} has a mask of {stated}, but its image has {size}")
        try:
            code = data.annToRLE(record) if given else None
            area = int(rle.area(code))
        except Exception as error:  # pycocotools raises what it meets
            raise ValueError(
                f"{name} has no valid mask: segmentation must be polygons or run lengths; boxes "
                "and keypoints are not enough"
            ) from error
        if not area:
            raise ValueError(
                f"{name} has a mask without pixels: polygons are (x, y) in pixels, not fractions "
                "of the image; remove annotations smaller than a pixel"
            )
        (crowd if record.get("iscrowd") else codes).append(code)
    return Encoded(codes, size, crowd)
