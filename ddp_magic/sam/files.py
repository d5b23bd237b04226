"""Reading images and masks from files: PNG, JPEG, TIFF (pages) and NIfTI (slices)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
VOLUMES = (".nii", ".nii.gz")

Entry = tuple[Path, int]  # a file, and the index of a page or slice in it


class Files(Sequence[NDArray[Any]]):
    """A sequence of images in files. Indexing reads the file; only the last volume is cached."""

    def __init__(self, entries: Sequence[Entry], *, labels: bool) -> None:
        """Store the file names, without reading the files.

        Args:
            entries: files with the indices of their pages or slices.
            labels: whether the images are label maps; then palette indices are the labels.
        """
        self.entries, self.labels = list(entries), labels
        self._volume: tuple[Path, NDArray[Any]] | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.entries)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 -- Sequence allows slices, which are not used
        """Read one image, (H, W) or (H, W, 3)."""
        path, page = self.entries[index]
        if path.name.endswith(VOLUMES):
            if self._volume is None or self._volume[0] != path:
                self._volume = (path, read_volume(path))
            return self._volume[1][..., page].T  # the first axis of NIfTI is x
        return read_picture(path, page, labels=self.labels)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the cached volume."""
        return {"entries": self.entries, "labels": self.labels, "_volume": None}


def read_picture(path: Path, page: int = 0, *, labels: bool = False) -> NDArray[Any]:
    """Read a page of an image file with Pillow, (H, W) or (H, W, 3).

    Raises:
        ValueError: A mask has colors.
    """
    from PIL import Image

    with Image.open(path) as file:
        if page:
            file.seek(page)
        if file.mode in {"P", "PA"} and labels:
            return np.asarray(file)  # palette indices are the labels, as in PASCAL VOC
        gray = file.mode in {"1", "L", "F"} or file.mode.startswith("I")
        pixels: NDArray[Any] = np.asarray(file if gray else file.convert("RGB"))
    if labels and pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            raise ValueError(f"{path} contains colors, not labels: save masks with one channel")
        pixels = pixels[..., 0]
    return pixels


def read_volume(path: Path) -> NDArray[Any]:
    """Read a NIfTI volume with MONAI, (X, Y, Z).

    Raises:
        ValueError: The volume does not have two or three dimensions.
    """
    from monai.transforms import LoadImage

    volume = np.asarray(LoadImage(image_only=True, reader="NibabelReader", dtype=None)(path))
    if volume.ndim not in {2, 3}:
        raise ValueError(f"{path} has shape {volume.shape}, but must have (X, Y) or (X, Y, Z)")
    return volume.reshape(*volume.shape[:2], -1)


def open_files(paths: str | Path | Sequence[str | Path], *, labels: bool) -> Files:
    """List the images in files, or in all files of a folder.

    Args:
        paths: a folder, a file, or a list of files.
        labels: whether the images are masks.

    Raises:
        FileNotFoundError: A file or folder does not exist, or a folder contains no images.
    """
    if isinstance(paths, (str, Path)):
        folder = Path(paths)
        if folder.is_dir():
            files = sorted(filter(_is_picture, folder.iterdir()), key=_natural)
            if not files:
                raise FileNotFoundError(f"no PNG, JPEG, TIFF or NIfTI files in {folder}")
        else:
            files = [folder]
    else:
        files = [Path(path) for path in paths]
    entries: list[Entry] = []
    for path in files:
        if not path.exists():
            raise FileNotFoundError(f"no such file: {path}")
        entries += [(path, page) for page in range(_pages(path))]
    return Files(entries, labels=labels)


def check_names(images: Files, masks: Files) -> None:
    """Check that images and masks have matching names.

    Raises:
        ValueError: The name of a mask is not the name of its image, up to a suffix such as `_mask`.
    """
    for (image, _), (mask, _) in zip(images.entries, masks.entries, strict=False):
        if _stem(image) != _stem(mask):
            raise ValueError(
                f"the names of image {image.name} and mask {mask.name} do not match: rename the "
                "files, or pass two lists of files in the same order"
            )


def _stem(path: Path) -> str:
    stem = path.name.removesuffix(".gz").rpartition(".")[0].lower()
    return re.sub(r"[-_. ]?(masks?|labels?|seg|segmentation|gt|image|img)$", "", stem)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return a sort key with img2 before img10, equal for a mask and its image."""
    return [
        (int(part), "") if part.isdigit() else (-1, part)
        for part in re.split(r"(\d+)", _stem(path))
    ]


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES or path.name.endswith(VOLUMES)


def _pages(path: Path) -> int:
    if path.name.endswith(VOLUMES):
        return int(read_volume(path).shape[-1])
    from PIL import Image

    with Image.open(path) as file:
        return int(getattr(file, "n_frames", 1)) if path.suffix.lower().startswith(".tif") else 1
