"""Images and masks in files: which there are, and which belong together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddp_magic.sam.process_group import print0
from ddp_magic.sam.reading.channels import UNKNOWN, Array, Header
from ddp_magic.sam.reading.coco import match_coco
from ddp_magic.sam.reading.names import check_listing, check_order, files_of, list_folder, match
from ddp_magic.sam.reading.pictures import Page, Pictures, Stored, as_stored, to_numpy
from ddp_magic.sam.reading.pil import from_pil, is_encoded, turn_of
from ddp_magic.sam.reading.readers import header, kind_of, naming, read, read_npy
from ddp_magic.sam.reading.volumes import check_places

OPENED = {
    ".zarr": "zarr.open_array(path, mode='r')",
    ".h5": "h5py.File(path)[name]",
    ".hdf5": "h5py.File(path)[name]",
    ".npz": "numpy.load(path)[name]",
}


def open_pair(images: Any, masks: Any) -> tuple[Any, Any]:  # noqa: ANN401 -- whatever SamDataset takes
    """Return two sequences of images and masks; files are listed, not decoded.

    Raises:
        ValueError: Images and masks do not belong together, or a file cannot be read.
        FileNotFoundError: A file does not exist, or a folder contains no images.
        TypeError: An argument is not a sequence.
    """
    images, masks = _path(images), _path(masks)
    if isinstance(images, Path) and isinstance(masks, Path) and images == masks:
        raise ValueError(f"images and masks are the same, {images}: pass two folders or two lists")
    images = _loaded(images)
    files, root = _listed(images, "images")
    mask_files = None
    if isinstance(masks, Path) and masks.suffix.lower() == ".json":
        files, masks = match_coco(files, root, masks)
    else:
        masks = _loaded(masks)
        mask_files, mask_root = _listed(masks, "masks")
        if files is not None and mask_files is not None:
            if root and mask_root:
                files, mask_files = match(files, root, mask_files, mask_root)
            if len(files) == len(mask_files):  # the data set refuses others
                check_order(files, mask_files)
        else:
            check_listing(root or mask_root, files or mask_files or [])
    heads = [_header(each, labels=False) for each in files or []]
    mask_heads = [_header(each, labels=True) for each in mask_files or []]
    for pair in zip(files or [], mask_files or [], heads, mask_heads, strict=False):
        _check_pair(*pair)
    _note_axes(files or [], mask_files or [], heads, mask_heads)
    if files is not None:
        images = _pictures(files, heads, labels=False)
    if mask_files is not None:
        masks = _pictures(mask_files, mask_heads, labels=True)
    return _decoding(as_stored(images), labels=False), _decoding(as_stored(masks), labels=True)


def _decoding(pictures: Any, *, labels: bool) -> Any:  # noqa: ANN401 -- a sequence
    """Return a sequence, of another library, whose items may be PIL images, as arrays."""
    known = in_memory(pictures) or isinstance(pictures, (Pictures, Stored, np.memmap))
    return pictures if known else Pictures(pictures, labels=labels)


def _loaded(given: Any) -> Any:  # noqa: ANN401 -- whatever SamDataset takes
    """Return the array of an .npy file with all images, or of tensors; a list for pandas."""
    if isinstance(given, Path) and given.suffix.lower() == ".npy":
        with naming(given):
            return read_npy(given, "r")
    is_series = type(given).__module__.startswith("pandas") and hasattr(given, "tolist")
    given = given.tolist() if is_series else to_numpy(given)
    return [to_numpy(each) for each in given] if isinstance(given, (list, tuple)) else given


def _listed(given: Any, name: str) -> tuple[list[Any] | None, Path | None]:  # noqa: ANN401 -- whatever SamDataset takes
    """Return a list of files, PIL images and arrays, and the folder that was listed.

    The list is None for arrays. A list of files instead of a file is a stack of masks.

    Raises:
        FileNotFoundError: A file does not exist.
        TypeError: It is not a sequence.
    """
    if isinstance(given, Path):
        _check_opened(given)
        if given.is_dir():
            return list_folder(given), given
        given = [given]
    has_length = hasattr(given, "__len__") or hasattr(given, "dtype")  # arrays of zarr have none
    if not (hasattr(given, "__getitem__") and has_length) or hasattr(given, "keys"):
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
        paths = [one for one in (each if isinstance(each, list) else ()) if isinstance(one, Path)]
        if len(set(paths)) < len(paths):
            twice = next(path for path in paths if paths.count(path) > 1)
            raise ValueError(f"{name}[{number}] has a file twice, {twice}: each is one object")
    if not any(isinstance(each, (Path, list, Image.Image, Stored)) for each in items):
        return None, None
    return items, None


def _path(given: Any) -> Any:  # noqa: ANN401 -- whatever SamDataset takes
    """Return a path, in which `~` is the home directory, for the name of a file or a folder."""
    return Path(given).expanduser() if isinstance(given, (str, Path)) else given


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
    given = _path(given)
    if isinstance(given, Path):
        _check_opened(given)
        if not given.is_file():
            is_pattern = any(each in str(given) for each in "*?")
            hint = f": pass a list, sorted(glob.glob({str(given)!r}))" if is_pattern else ""
            raise FileNotFoundError(f"no such file: {given}{hint}")
        return given
    if isinstance(given, (list, tuple)):
        return [_item(each) for each in given]
    # Processes that share an open file would read from wrong places, so each opens it.
    if isinstance(given, Image.Image) and is_encoded(given):
        path, frames = Path(str(given.filename)), getattr(given, "n_frames", 1)
        if frames > 1 and given.format != "MPO":  # the later frames of MPO are previews
            raise ValueError(
                f"{path} is open at one of its {frames} frames: pass the path for all of them, or "
                "file.copy() for one"
            )
        return path if path.is_file() else given
    is_array = hasattr(given, "__array__") and not hasattr(given, "keys")  # as those of pydicom
    if not (is_array or isinstance(given, Image.Image)):
        raise TypeError(
            f"images and masks are files or arrays, not {type(given).__name__}: pass the path of "
            "its file, or its pixels as an array (height, width)"
        )
    return as_stored(given)


def _header(item: Any, *, labels: bool) -> Header:  # noqa: ANN401 -- of `_listed`
    """Return the header of a file or a PIL image; of a stack, that of its first mask."""
    item = item[0] if isinstance(item, list) else item
    if isinstance(item, Path):
        return header(item, labels=labels)
    if not isinstance(item, Image.Image):
        return UNKNOWN
    turn = turn_of(item)
    return Header(1, item.size if turn > 4 else item.size[::-1], np.dtype(object), turn)


def _check_pair(image: Any, mask: Any, head: Header, mask_head: Header) -> None:  # noqa: ANN401 -- of `_listed`
    """Check that an image and its mask have the same number of pages, and lie in the same place.

    Raises:
        ValueError: They do not.
    """
    mask = mask[0] if isinstance(mask, list) else mask
    if not (isinstance(image, Path) and isinstance(mask, Path)):
        return
    kinds = {kind_of(image), kind_of(mask)}
    if kinds == {"dicom", "nifti"}:
        raise ValueError(
            f"{image} and {mask} are DICOM and NIfTI, whose rows may be in the opposite order: "
            "convert both to NIfTI, for example with dcm2niix"
        )
    check_places(image, mask, head, mask_head)
    if head.pages != mask_head.pages:
        raise ValueError(
            f"{image} contains {head.pages} images, but {mask} contains {mask_head.pages} masks: "
            "save the same number of pages; channels with photometric='rgb'; one mask per object "
            "as a stack (N, H, W) in an .npy file"
        )
    both = zip(zip(*head.axes, strict=True), zip(*mask_head.axes, strict=True), strict=False)
    if any(own != other and sorted(own) == sorted(other) for own, other in both):
        raise ValueError(
            f"{image} has pages along {head.axes}, but {mask} along {mask_head.axes}: save the "
            "mask with the axes in the order of the image"
        )


def _note_axes(
    files: list[Any], mask_files: list[Any], heads: list[Header], mask_heads: list[Header]
) -> None:
    """Print a line where a mask may be turned against its image, which only a person can see."""
    theirs = mask_heads or [UNKNOWN] * len(heads)
    both = zip(heads, theirs, strict=False)
    turned = [n for n, (own, other) in enumerate(both) if own.turn != other.turn]
    if turned and files:  # the mask may have been drawn on it before or after
        first = files[turned[0]]
        print0(
            f"{len(turned)} images are turned as their metadata says, but their masks are not: "
            f"compare {first if isinstance(first, Path) else f'image {turned[0]}'} with its mask"
        )
    nifti, other = (
        any(kind_of(path) == "nifti" for path in files_of(side)) for side in (files, mask_files)
    )
    if nifti != other:
        one, others = ("images", "masks") if nifti else ("masks", "images")
        print0(
            f"{one} are NIfTI files, {others} are not: check that they match, for example by "
            "show_predictions. Arrays from nibabel are (x, y): transpose them"
        )


def _pictures(items: list[Any], heads: list[Header], *, labels: bool) -> Pictures:
    """Return each page of each file."""
    entries: list[Any] = []
    every: list[Header] = []
    for item, head in zip(items, heads, strict=True):
        own = [Page(item, n) for n in range(head.pages)] if isinstance(item, Path) else [item]
        entries += own
        every += [head] * len(own)
    return Pictures(entries, labels=labels, heads=every)


def to_array(image: Any) -> Array:  # noqa: ANN401 -- a path, a PIL image, or an array
    """Return an image, (H, W) or (H, W, 3), from a file, a PIL image, or an array.

    Raises:
        ValueError: The file contains several images, or may mean something else.
    """
    image = _item(image) if isinstance(image, (str, Path, Image.Image)) else image
    if isinstance(image, Path):
        if (pages := header(image).pages) > 1:
            raise ValueError(f"{image} contains {pages} images: pass one of them as an array")
        return read(image, labels=False)
    if isinstance(image, Image.Image):
        return from_pil(image, labels=False)
    return np.asarray(to_numpy(image))


def in_memory(pictures: Any) -> bool:  # noqa: ANN401 -- of `open_pair`
    """Return whether images are arrays in memory, so that looking at all of them is cheap."""
    return isinstance(pictures, (list, tuple, np.ndarray)) and not isinstance(pictures, np.memmap)


def looked_at(pictures: Any, number: int) -> list[int]:  # noqa: ANN401 -- of `open_pair`
    """Return the indices of at most `number` images, the first among them, in no fixed steps."""
    if len(pictures) <= number:
        return list(range(len(pictures)))
    others = np.random.default_rng(0).permutation(len(pictures) - 1)[: number - 1] + 1
    return [0, *sorted(others.tolist())]


def size_of_item(pictures: Any, index: int) -> tuple[int, ...] | None:  # noqa: ANN401 -- of `open_pair`
    """Return the shape of an image, if it is known without reading it."""
    if isinstance(pictures, Pictures):
        return pictures.heads[index].size if pictures.heads else None
    if hasattr(pictures, "shape"):
        return tuple(pictures.shape[1:])
    return np.shape(pictures[index]) if in_memory(pictures) else None


def dtype_of_item(pictures: Any, index: int) -> np.dtype[Any]:  # noqa: ANN401 -- of `open_pair`
    """Return the dtype of an image; object if it is not known without reading it."""
    if isinstance(pictures, Pictures):
        return pictures.heads[index].dtype if pictures.heads else UNKNOWN.dtype
    known = in_memory(pictures)
    return np.asarray(pictures[index]).dtype if known else getattr(pictures, "dtype", UNKNOWN.dtype)


def name_of(pictures: Any, kind: str, index: int) -> str:  # noqa: ANN401 -- of `open_pair`
    """Return the name of an image or a mask for messages, with its file if it has one."""
    file = pictures.name(index) if isinstance(pictures, Pictures) else ""
    return f"{kind} {index} ({file})" if file else f"{kind} {index}"
