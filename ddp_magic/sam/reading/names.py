"""The names of images and masks: which files a folder contains, and which belong together."""

from __future__ import annotations

import os
import re
import unicodedata
import warnings
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ddp_magic.sam.process_group import print0
from ddp_magic.sam.reading.dicom import dicom_number
from ddp_magic.sam.reading.readers import kind_of

KINDS = "PNG, JPEG, TIFF, NIfTI, DICOM or .npy"
# Files beside images that are left out without a word, like hidden files.
OTHERS = {".txt", ".csv", ".tsv", ".json", ".xml", ".md", ".yaml", ".yml", ".log", ".db", ".ini"}
NAMES = {"README", "LICENSE", "DICOMDIR"}
# Parts of names that say whether a file is an image or a mask.
_WORDS = (
    "images?|imgs?|leftimg8bit|cp_masks?|masks?|labels?|segs?|segmentations?|gts?|gt(?:fine|coarse)|"
    "ground_?truths?|annotations?|instance_?ids?|man_(?:seg|track)"
)
# The Cell Tracking Challenge has t000 for the image of man_seg000.
_PREFIX = re.compile(rf"^(?:t(?=[0-9]{{3}})|(?:(?:{_WORDS})(?:[-_. ]+|(?=[0-9])))+)")
_SUFFIX = re.compile(rf"(?:[-_. ]?(?:{_WORDS}))+$")
# Some have two, such as a.nii.gz, a.ome.tif, and a.jpg.png for the mask of a.jpg.
_ENDING = re.compile(r"(\.(?:ome|jpe?g|png|tiff?|bmp))?\.(?![0-9]+$)[^.]+(\.gz)?$")


def list_folder(folder: Path) -> list[Path]:
    """List the images in a folder and its sub-folders, without hidden files.

    Raises:
        FileNotFoundError: There are none.
        ValueError: It contains files of other kinds.
    """
    walk = os.walk(folder, followlinks=True)
    found = [Path(root, name) for root, _, names in walk for name in names]
    found = [
        path
        for path in found
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.suffix.lower() not in OTHERS
        and path.name not in NAMES
    ]
    unknown = [path for path in found if not kind_of(path)]
    if unknown:
        raise ValueError(f"{unknown[0]} is not {KINDS}: convert it, or pass a list of other files")
    if not found:
        raise FileNotFoundError(f"no {KINDS} files in {folder}")
    keys = dict(zip(found, _keys(found, folder), strict=True))
    return sorted(found, key=keys.__getitem__)


def check_listing(folder: Path | None, files: list[Any]) -> None:
    """Check that a folder can have one order only, since arrays belong to its files.

    Raises:
        ValueError: Its numbers, its letters and DICOM contradict each other.
    """
    if folder is None:
        return
    orders = {"its letters": sorted(files), "DICOM": sorted(files, key=_instance_number)}
    for what, other in orders.items():
        if other != files:
            some, others = (", ".join(p.name for p in order[:11]) for order in (files, other))
            raise ValueError(
                f"the files of {folder} would be read in the order {some}, but by {what} it is "
                f"{others}: pass a list of files, in the order of the arrays that belong to them"
            )


def _instance_number(path: Path) -> int:
    return dicom_number(path) if kind_of(path) == "dicom" else 0


def _keys(files: list[Path], root: Path) -> list[tuple[Any, ...]]:
    """Return what a mask and its image have in common: names without words such as `_mask`.

    Numbers are integers, so that img2 comes before img10, and img_001 belongs to mask_1.
    Sub-folders of `root` count, too.
    """
    stems = [_bare(_ENDING.sub("", path.name.lower())) for path in files]
    if all(re.search("[-_. ]0000$", stem) for stem in stems):  # the first channel, in nnU-Net
        stems = [stem[:-5] for stem in stems]
    folders = [
        [_bare(part.lower()) for part in path.relative_to(root).parts[:-1]] for path in files
    ]
    return [
        tuple(
            (int(each), "") if re.fullmatch("[0-9]+", each) else (-1, each)
            for each in re.split("([0-9]+)", "/".join([*filter(None, folder), stem]))
        )
        for folder, stem in zip(folders, stems, strict=True)
    ]


def _bare(name: str) -> str:
    return _SUFFIX.sub("", _PREFIX.sub("", unicodedata.normalize("NFC", name)))


def common_folder(files: list[Path]) -> Path:
    """Return the absolute path of the deepest folder that contains all files."""
    return Path(os.path.commonpath([path.absolute().parent for path in files or [Path()]]))


def match(
    images: list[Path], root: Path, masks: list[Path], mask_root: Path
) -> tuple[list[Path], list[Path]]:
    """Return the images and masks of two folders in the same order.

    Raises:
        ValueError: A name is without its partner, or not unique.
    """
    exact = [
        [_ENDING.sub("", str(p.relative_to(r))) for p in g]
        for g, r in ((images, root), (masks, mask_root))
    ]
    if sorted(exact[0]) == sorted(exact[1]) and len(set(exact[0])) == len(images):
        partner = dict(zip(exact[1], masks, strict=True))
        return images, [partner[name] for name in exact[0]]
    keyed: list[dict[Any, Path]] = []
    for given, folder, other in ((images, root, mask_root), (masks, mask_root, root)):
        # Those of a sub-folder of the other kind are not of this one.
        inside = os.path.join(os.path.abspath(other), "")  # noqa: PTH100, PTH118 -- without ".."
        files = [each for each in given if not os.path.abspath(each).startswith(inside)] or given  # noqa: PTH100
        keyed.append({})
        for path, key in zip(files, _keys(files, folder), strict=True):
            first = keyed[-1].setdefault(key, path)
            if first != path:
                raise ValueError(
                    f"{first} and {path} would belong to the same image: pass two lists, one of "
                    "images and one of their masks; [[a, b], ...] for one file per object"
                )
    ours, theirs = keyed
    without = [ours[key].name for key in ours if key not in theirs]
    spare = [theirs[key].name for key in theirs if key not in ours]
    if without or spare:
        raise ValueError(
            f"the names in {root} and {mask_root} do not match: {len(without)} images without a "
            f"mask ({', '.join(without[:3])}), {len(spare)} masks without an image "
            f"({', '.join(spare[:3])}). Rename or move them, or pass two lists in the same order, "
            f"such as sorted(Path({str(root)!r}).rglob('*{images[0].suffix}')) and "
            f"sorted(Path({str(mask_root)!r}).rglob('*{masks[0].suffix}')); with one file per "
            "object, [[a, b], ...] as masks"
        )
    return list(ours.values()), [theirs[key] for key in ours]


def check_order(images: list[Any], masks: list[Any]) -> None:
    """Check that masks are in the order of their images, as far as their names say it.

    Raises:
        ValueError: They are not, or an image is its own mask.
    """
    for image, mask in zip(images, masks, strict=True):
        if isinstance(image, Path) and isinstance(mask, Path) and image.samefile(mask):
            raise ValueError(f"{image} is both an image and its mask")
    for kind, side in (("image", images), ("mask", masks)):
        for path, times in Counter(files_of(side)).most_common(1):
            if times > 1:
                print0(f"{path} is the {kind} of {times} items")
    ours, theirs = ([_place(each) for each in side] for side in (images, masks))
    folders = ([path and path.parent for path in side] for side in (ours, theirs))
    for some, others in ((ours, theirs), tuple(folders)):
        places = _places(some, others)
        if places.count(None) < len(places):
            break
    wrong = [n for n, place in enumerate(places) if place not in {None, n}]
    if wrong:
        raise ValueError(
            f"image {wrong[0]} is {ours[wrong[0]]}, but mask {wrong[0]} is {theirs[wrong[0]]}: "
            "sort both lists in the same way, or rename the files"
        )
    if 0 < places.count(None) < len(places) / 2:
        warnings.warn(
            f"{ours[places.index(None)]} has another name than its mask, while those of "
            "most other images and masks agree: check that they belong together",
            stacklevel=2,
        )


def files_of(given: list[Any]) -> list[Path]:
    """Return the files in a list of images or masks, also those of stacks."""
    every = [one for each in given for one in (each if isinstance(each, list) else [each])]
    return [one for one in every if isinstance(one, Path)]


def _places(images: list[Path | None], masks: list[Path | None]) -> list[int | None]:
    """Return for each image the index of the mask with its name; None: none, or it is not known."""
    keys, others = _marks(images), _marks(masks)
    at = {key: n for n, key in enumerate(others)}
    if len(set(keys)) < len(images) or len(at) < len(masks):
        return [None] * len(images)  # they do not tell the files apart
    return [at.get(key) for key in keys]


def _place(given: Any) -> Path | None:  # noqa: ANN401 -- of `files`
    """Return the file of an image or a mask, or None; for a stack, what its files share."""
    if not isinstance(given, list):
        return given if isinstance(given, Path) else None
    if not all(isinstance(each, Path) for each in given) or len(given) == 1:
        return given[0] if given and isinstance(given[0], Path) else None
    shared = os.path.commonprefix([str(each) for each in given])  # noqa: RUF071 -- of names
    if all(str(each)[len(shared) : len(shared) + 1].isdigit() for each in given):
        shared = shared.rstrip("0123456789")  # of 10 and 11
    return Path(shared + "x") if shared.endswith("/") else Path(shared)


def _marks(files: list[Path | None]) -> list[Any]:
    """Return what tells the files of a list apart: the words and numbers that differ."""
    paths = [path.absolute() for path in files if path]
    if not paths or len(paths) < len(files):
        return []
    rows = [
        [word for number, text in key for word in re.findall("[^/_. -]+", text) or [number]]
        for key in _keys(paths, common_folder(paths))
    ]
    columns = dict.fromkeys(zip_longest(*rows))  # a folder may repeat the name
    return list(zip(*(each for each in columns if len(set(each)) > 1), strict=True))
