"""The names of images and masks: which files a folder contains, and which belong together."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ddp_magic.sam.readers import kind_of

KINDS = "PNG, JPEG, TIFF, NIfTI, DICOM or .npy"
# Files beside images that are left out without a word, like hidden files.
OTHERS = {".txt", ".csv", ".tsv", ".json", ".xml", ".md", ".yaml", ".yml", ".log", ".db", ".ini"}
TEXTS = {"README", "LICENSE"}
# Parts of names that say whether a file is an image or a mask, or the first channel (_0000).
_WORDS = (
    "images?|imgs?|(?:cp_)?masks?|labels?|segs?|segmentations?|gts?|ground_?truths?|annotations?"
)
_PREFIX, _SUFFIX = re.compile(rf"^(?:{_WORDS})[-_. ]+"), re.compile(rf"[-_. ]?(?:{_WORDS}|0000)$")


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
    ]
    kinds = {path: kind_of(path) for path in found}
    unknown = [path for path in found if not kinds[path] and path.name not in TEXTS]
    if unknown:
        raise ValueError(
            f"{unknown[0]} is not {KINDS} ({len(unknown)} such files): convert it, or pass a list "
            "of files without it"
        )
    files = [path for path in found if kinds[path]]
    if not files:
        raise FileNotFoundError(f"no {KINDS} files in {folder}")
    return sorted(files, key=lambda path: _key(path, folder))


def _key(path: Path, root: Path | None = None) -> tuple[Any, ...]:
    """Return what a mask and its image have in common: the name without words such as `_mask`.

    Numbers are integers, so that img2 comes before img10, and img_001 belongs to mask_1. In a
    folder, sub-folders count, too.
    """
    stem = re.sub(r"(\.ome)?\.(?![0-9]+$)[^.]+(\.gz)?$", "", path.name.lower())
    stem = _SUFFIX.sub("", _PREFIX.sub("", stem))
    parts = [*path.relative_to(root).parts[:-1], stem] if root else [stem]
    return tuple(
        (int(each), "") if re.fullmatch("[0-9]+", each) else (-1, each)
        for each in re.split("([0-9]+)", "/".join(parts))
    )


def match(
    images: list[Path], root: Path, masks: list[Path], mask_root: Path
) -> tuple[list[Path], list[Path]]:
    """Return the images and masks of two folders in the same order.

    Raises:
        ValueError: A name is without its partner, or not unique.
    """
    keyed: list[dict[Any, Path]] = []
    for files, folder in ((images, root), (masks, mask_root)):
        keyed.append({})
        for path in files:
            other = keyed[-1].setdefault(_key(path, folder), path)
            if other != path:
                raise ValueError(
                    f"{other} and {path} would belong to the same image: pass two lists, one of "
                    "images and one of their masks; [[a, b], ...] for one file per object"
                )
    ours, theirs = keyed
    without = [ours[key].name for key in ours if key not in theirs]
    spare = [theirs[key].name for key in theirs if key not in ours]
    if without or spare:
        raise ValueError(
            f"the names in {root} and {mask_root} do not match: {len(without)} images without a "
            f"mask{_some(without)}, {len(spare)} masks without an image{_some(spare)}. Rename or "
            "move them, or pass two lists of files in the same order; with one file "
            "per object, [[a, b], ...] as masks"
        )
    return list(ours.values()), [theirs[key] for key in ours]


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f" ({shown}{', ...' if len(names) > 3 else ''})" if names else ""


def check_order(images: list[Any], masks: list[Any]) -> None:
    """Check that there is a mask for each image, and, if their names agree, that the order does.

    Raises:
        ValueError: It is not so, or an image is its own mask.
    """
    if len(images) != len(masks):
        raise ValueError(f"{len(images)} images but {len(masks)} masks")
    keys = [[_key(x) if isinstance(x, Path) else None for x in each] for each in (images, masks)]
    place = {key: n for n, key in enumerate(keys[1])}
    unique = len(set(keys[0])) == len(images) == len(place)
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        if isinstance(image, Path) and isinstance(mask, Path) and image.samefile(mask):
            raise ValueError(f"{image} is both an image and its mask")
        at = place.get(keys[0][number], number)
        if unique and at != number:
            raise ValueError(
                f"image {number} is {image}, but mask {number} is {mask}, and mask {at} is "
                f"{masks[at]}: sort both lists in the same way"
            )
