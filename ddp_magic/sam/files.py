"""Images and masks from files: PNG, JPEG, TIFF (pages), NIfTI (slices). Read when asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
VOLUMES = (".nii", ".nii.gz")

Entry = tuple[Path, int]  # a file, and the number of a page or slice in it


class Files(Sequence[NDArray[Any]]):
    """Pictures in files, each read anew whenever it is indexed; of volumes the last one is kept."""

    def __init__(self, entries: Sequence[Entry], *, labels: bool) -> None:
        """Remember what to read.

        Args:
            entries: files with the numbers of their pages or slices.
            labels: whether the values are labels, so that a palette's numbers are kept.
        """
        self.entries, self.labels = list(entries), labels
        self._volume: tuple[Path, NDArray[Any]] | None = None

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.entries)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 -- Sequence has slices too; nobody slices here
        """Read one picture, (H, W) or (H, W, 3)."""
        path, page = self.entries[index]
        if path.name.endswith(VOLUMES):
            if self._volume is None or self._volume[0] != path:
                self._volume = (path, read_volume(path))
            return self._volume[1][..., page].T  # NIfTI's first axis runs to the right
        return read_picture(path, page, labels=self.labels)

    def __getstate__(self) -> dict[str, Any]:
        """Travel to another process without the volume."""
        return {"entries": self.entries, "labels": self.labels, "_volume": None}


def read_picture(path: Path, page: int = 0, *, labels: bool = False) -> NDArray[Any]:
    """Read a page of a picture file with Pillow, (H, W) or (H, W, 3).

    Raises:
        ValueError: A mask in colors.
    """
    from PIL import Image

    with Image.open(path) as file:
        if page:
            file.seek(page)
        if file.mode in {"P", "PA"} and labels:
            return np.asarray(file)  # a palette's numbers are the labels, as in PASCAL VOC
        gray = file.mode in {"1", "L", "F"} or file.mode.startswith("I")
        pixels: NDArray[Any] = np.asarray(file if gray else file.convert("RGB"))
    if labels and pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            raise ValueError(f"{path} holds colors, not labels; save masks with one channel")
        pixels = pixels[..., 0]
    return pixels


def read_volume(path: Path) -> NDArray[Any]:
    """Read a NIfTI volume with MONAI, (X, Y, Z).

    Raises:
        ValueError: It has more than three dimensions.
    """
    from monai.transforms import LoadImage

    volume = np.asarray(LoadImage(image_only=True, reader="NibabelReader", dtype=None)(path))
    if volume.ndim not in {2, 3}:
        raise ValueError(f"{path} has shape {volume.shape}, not (X, Y, Z)")
    return volume.reshape(*volume.shape[:2], -1)


def open_files(paths: str | Path | Sequence[str | Path], *, labels: bool) -> Files:
    """List the pictures in files, or in all files of a folder.

    Args:
        paths: a folder, a file, or files in order.
        labels: whether they are masks.

    Raises:
        FileNotFoundError: A file or folder is missing, or a folder has no picture in it.
    """
    if isinstance(paths, (str, Path)):
        folder = Path(paths)
        if folder.is_dir():
            files = sorted(filter(_is_picture, folder.iterdir()), key=_natural)
            if not files:
                raise FileNotFoundError(f"no pictures in {folder}: PNG, JPEG, TIFF or NIfTI")
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
    """Refuse folders whose files do not belong together by name.

    Raises:
        ValueError: A mask's name is not its image's, perhaps with `_mask` or the like after it.
    """
    for (image, _), (mask, _) in zip(images.entries, masks.entries, strict=False):
        if _stem(image) != _stem(mask):
            raise ValueError(
                f"{image.name} and {mask.name} do not belong together by name; "
                "pass two lists of files to pair them yourself"
            )


def _stem(path: Path) -> str:
    stem = path.name.removesuffix(".gz").rpartition(".")[0].lower()
    return re.sub(r"[-_. ]?(masks?|labels?|seg|segmentation|gt|image|img)$", "", stem)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort img2 before img10, and a mask as its image."""
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
