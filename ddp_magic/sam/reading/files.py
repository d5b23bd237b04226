"""Images and masks in files: which there are, and which belong together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from ddp_magic.sam.arrays.checks import check_sizes
from ddp_magic.sam.process_group import print0
from ddp_magic.sam.reading.dicom import check_places
from ddp_magic.sam.reading.names import check_order, list_folder, match
from ddp_magic.sam.reading.pictures import Page, Pictures
from ddp_magic.sam.reading.pil import from_pil, turn_of
from ddp_magic.sam.reading.readers import DICOM, NIFTI, header, kind_of, read
from ddp_magic.sam.reading.stored import Stored, as_stored, to_numpy
from ddp_magic.sam.reading.volumes import Header, check_affines

OPENED = {
    ".zarr": "zarr.open_array(path, mode='r')",
    ".h5": "h5py.File(path)[name]",
    ".hdf5": "h5py.File(path)[name]",
    ".npz": "numpy.load(path)[name]",
}


def open_pair(images: Any, masks: Any, ignore_label: int | None = None) -> tuple[Any, Any]:  # noqa: ANN401 -- whatever SamDataset takes
    """Return two sequences of images and masks; files are listed, not decoded.

    Args:
        images: see `SamDataset`.
        masks: see `SamDataset`.
        ignore_label: the label of pixels that are left out.

    Raises:
        ValueError: Images and masks do not belong together, or a file cannot be read.
        FileNotFoundError: A file does not exist, or a folder contains no images.
        TypeError: An argument is not a sequence.
    """
    if isinstance(images, (str, Path)) and str(images) == str(masks):
        raise ValueError(f"images and masks are the same, {images}: pass two folders or two lists")
    images, masks = _loaded(images), _loaded(masks)
    (files, root), (mask_files, mask_root) = _listed(images, "images"), _listed(masks, "masks")
    if files is not None and mask_files is not None:
        if root and mask_root:
            files, mask_files = match(files, root, mask_files, mask_root)
        check_order(files, mask_files)
    heads = _headers(files or [], labels=False)
    mask_heads = _headers(mask_files or [], labels=True)
    like: list[Path | None] = [None] * len(mask_files or [])
    if files is not None and mask_files is not None:
        for number, (image, mask) in enumerate(zip(files, mask_files, strict=True)):
            if _check_files(image, heads[number], mask, mask_heads[number]):
                like[number], mask_heads[number] = image, heads[number]
    turns = [_turn(*each) for each in zip(files or [], heads, strict=True)]
    others = [_turn(*each) for each in zip(mask_files or turns, mask_heads or turns, strict=True)]
    turned = [number for number, turn in enumerate(turns) if turn != others[number]]
    if turned and files:  # the mask may have been drawn on it before or after
        first = files[turned[0]]
        print0(
            f"{len(turned)} images are turned as their metadata says, but their masks are not: "
            f"compare {first if isinstance(first, Path) else f'image {turned[0]}'} with its mask"
        )
    _check_dtypes(files or [], heads)
    if files is not None:
        images = _pictures(files, heads, [None] * len(files), labels=False)
    if mask_files is not None:
        masks = _pictures(mask_files, mask_heads, like, labels=True)
        masks.ignore_label = ignore_label
    return _decoding(as_stored(images), labels=False), _decoding(as_stored(masks), labels=True)


def _decoding(pictures: Any, *, labels: bool) -> Any:  # noqa: ANN401 -- a sequence
    """Return a sequence, of another library, whose items may be PIL images, as arrays."""
    known = in_memory(pictures) or isinstance(pictures, (Pictures, Stored, np.memmap))
    return pictures if known else Pictures(pictures, labels=labels)


def _loaded(given: Any) -> Any:  # noqa: ANN401 -- whatever SamDataset takes
    """Return the array of an .npy file with all images, or of tensors; a list for pandas."""
    if isinstance(given, (str, Path)) and Path(given).suffix.lower() == ".npy":
        return np.load(given, mmap_mode="r", allow_pickle=False)
    given = given.tolist() if type(given).__module__.startswith("pandas") else to_numpy(given)
    return [to_numpy(each) for each in given] if isinstance(given, (list, tuple)) else given


def _listed(given: Any, name: str) -> tuple[list[Any] | None, Path | None]:  # noqa: ANN401 -- whatever SamDataset takes
    """Return a list of files, PIL images and arrays, and the folder that was listed.

    The list is None for arrays. A list of files instead of a file is a stack of masks.

    Raises:
        FileNotFoundError: A file does not exist.
        TypeError: It is not a sequence.
    """
    if isinstance(given, (str, Path)):
        path = Path(given)
        _check_opened(path)
        if path.is_dir():
            return list(list_folder(path)), path
        given = [path]
    if not hasattr(given, "__getitem__") or hasattr(given, "keys"):
        raise TypeError(
            f"{name} is a {type(given).__name__}, but must be a folder, or a sequence of files or "
            "arrays: pass a list, for example sorted(folder.glob('*.png'))"
        )
    if isinstance(given, np.ndarray) and given.ndim == 1 and given.dtype.kind in "OUT":
        given = given.tolist()
    if not isinstance(given, (list, tuple)):  # another sequence may read what it returns
        return None, None
    items = [_item(each) for each in given]
    for number, each in enumerate(items):
        if isinstance(each, list) and (name == "images" or not each):
            raise ValueError(
                f"{name}[{number}] is {'a' if each else 'an empty'} list: only masks can be lists, "
                "with one mask per object; without objects, pass np.zeros((height, width))"
            )
    if not any(isinstance(each, (Path, list, Image.Image, Stored)) for each in items):
        return None, None
    return items, None


def _check_opened(path: Path) -> None:
    """Refuse a file or folder of arrays, which must be opened by its library.

    Raises:
        ValueError: It is one.
    """
    is_zarr = any((path / name).exists() for name in ("zarr.json", ".zarray", ".zgroup"))
    suffix = ".zarr" if is_zarr else path.suffix.lower()
    if suffix in OPENED:
        raise ValueError(f"{path}: open it and pass the array: {OPENED[suffix]}")


def _item(given: Any) -> Any:  # noqa: ANN401 -- whatever SamDataset takes
    """Return a file as Path, several as a list, a PIL image that is not loaded as its file."""
    if isinstance(given, (str, Path)):
        path = Path(given)
        _check_opened(path)
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}")
        return path
    if isinstance(given, (list, tuple)):
        return [_item(each) for each in given]
    # Processes that share an open file would read from wrong places, so each opens it.
    if isinstance(given, ImageFile.ImageFile) and given.tile:
        path = Path(str(given.filename))
        frames = getattr(given, "n_frames", 1)
        if frames > 1 and given.format != "MPO":  # the later frames of MPO are previews
            raise ValueError(
                f"{path} is open at one of its {frames} frames: pass the path for all of them, or "
                "file.copy() for one"
            )
        if path.is_file():
            return path
    return as_stored(given)


def _headers(items: list[Any], *, labels: bool) -> list[Header | None]:
    """Read the headers of files; of a stack, that of its first mask."""
    first = [each[0] if isinstance(each, list) else each for each in items]
    return [header(each, labels=labels) if isinstance(each, Path) else None for each in first]


def _check_files(image: Any, head: Header | None, mask: Any, mask_head: Header | None) -> bool:  # noqa: ANN401 -- of `_listed`
    """Check the sizes of an image and its mask.

    Returns:
        Whether both are NIfTI files, so that the mask gets the axes of the image.

    Raises:
        ValueError: They are different.
    """
    if head is None or mask_head is None:
        return False
    if isinstance(mask, list):
        mask = mask[0]
    elif kind_of(image) == kind_of(mask) == NIFTI:
        check_affines(image, mask)
        return True
    elif kind_of(image) == kind_of(mask) == DICOM:
        check_places(image, mask)
    elif {kind_of(image), kind_of(mask)} == {DICOM, NIFTI}:
        raise ValueError(
            f"{image} and {mask} are DICOM and NIfTI, whose rows may be in the opposite order: "
            "convert both to NIfTI, for example with dcm2niix"
        )
    if head.pages != mask_head.pages:
        raise ValueError(
            f"{image} contains {head.pages} images, but {mask} contains {mask_head.pages} masks: "
            "save the same number of pages; channels with photometric='rgb'; one mask per object "
            "as a stack (N, H, W) in an .npy file"
        )
    if head.size != mask_head.size:
        pixels, labels = read(image, labels=False), read(mask, labels=True)
        turned = f", turned by EXIF orientation {head.turn}" if head.turn > 1 else ""
        check_sizes(f"{image}{turned}", pixels.shape, str(mask), labels)
    return False


def _turn(item: Any, head: Any) -> int:  # noqa: ANN401 -- of `_listed`
    if isinstance(item, Image.Image):
        return turn_of(item)
    return head.turn if isinstance(head, Header) else 1


def _check_dtypes(files: list[Any], heads: list[Header | None]) -> None:
    """Check that all images have the same dtype, since one rule scales them all.

    Raises:
        ValueError: They do not.
    """
    kinds: dict[Any, Any] = {}
    for path, head in zip(files, heads, strict=True):
        if head:
            kinds.setdefault(head.dtype, path)
    if len(kinds) > 1:
        some = ", ".join(f"{dtype} ({path})" for dtype, path in list(kinds.items())[:3])
        raise ValueError(f"images have different dtypes, {some}: convert them to one dtype")


def _pictures(
    items: list[Any], heads: list[Header | None], like: list[Path | None], *, labels: bool
) -> Pictures:
    """Return each page of each file."""
    entries: list[Any] = []
    sizes: list[Any] = []
    for item, head, axes in zip(items, heads, like, strict=True):
        pages = head.pages if head and isinstance(item, Path) else 1
        size = head.size if head else None
        if isinstance(item, Image.Image):
            size = item.size if turn_of(item) > 4 else item.size[::-1]
        sizes += [size] * pages
        if isinstance(item, Path):
            entries += [Page(item, page, axes) for page in range(pages)]
        else:
            entries.append(item)
    return Pictures(entries, labels=labels, sizes=sizes)


def to_array(image: Any) -> NDArray[Any]:  # noqa: ANN401 -- a path, a PIL image, or an array
    """Return an image, (H, W) or (H, W, 3), from a file, a PIL image, or an array.

    Raises:
        ValueError: The file contains several images, or may mean something else.
    """
    if isinstance(image, (str, Path)):
        pages = header(Path(image)).pages
        if pages > 1:
            raise ValueError(f"{image} contains {pages} images: pass one of them as an array")
        return read(Path(image), labels=False)
    if isinstance(image, Image.Image):
        page = _item(image)  # an image that is not decoded is read from its file
        return to_array(page) if isinstance(page, Path) else from_pil(image, labels=False)
    return np.asarray(to_numpy(image))


def in_memory(pictures: Any) -> bool:  # noqa: ANN401 -- of `open_pair`
    """Return whether images are arrays in memory, so that looking at all of them is cheap."""
    return isinstance(pictures, (list, tuple, np.ndarray)) and not isinstance(pictures, np.memmap)


def looked_at(pictures: Any, number: int) -> range:  # noqa: ANN401 -- of `open_pair`
    """Return the indices of about `number` images, evenly spaced."""
    return range(0, len(pictures), max(1, -(-len(pictures) // max(1, number))))


def size_of_item(pictures: Any, index: int) -> tuple[int, ...] | None:  # noqa: ANN401 -- of `open_pair`
    """Return the shape of an image, if it is known without reading it."""
    if isinstance(pictures, Pictures):
        return pictures.sizes[index] if pictures.sizes else None
    if hasattr(pictures, "shape"):
        return tuple(pictures.shape[1:])
    return np.shape(pictures[index]) if in_memory(pictures) else None


def name_of(pictures: Any, kind: str, index: int) -> str:  # noqa: ANN401 -- of `open_pair`
    """Return the name of an image or a mask for messages, with its file if it has one."""
    file = pictures.name(index) if isinstance(pictures, Pictures) else ""
    return f"{kind} {index} ({file})" if file else f"{kind} {index}"
