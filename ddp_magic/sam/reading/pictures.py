"""Sequences of images and masks in files, and arrays that are not in memory: read when indexed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ddp_magic.sam.reading.channels import Array, require
from ddp_magic.sam.reading.pil import from_pil
from ddp_magic.sam.reading.readers import header, kind_of, naming, read


class Stored:
    """An array of zarr, h5py or dask, of which only what is indexed is read.

    Processes cannot share an open HDF5 file, so each opens it.
    """

    def __init__(self, array: Any) -> None:  # noqa: ANN401 -- of one of these libraries
        self.array, self.shape, self.dtype = array, array.shape, np.dtype(array.dtype)
        self.ndim, self._pid, self._hdf5 = len(array.shape), os.getpid(), None
        if type(array).__module__.startswith("h5py"):
            self._hdf5 = (array.file.filename, array.name)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, key: Any) -> Array:  # noqa: ANN401 -- as of an array
        if self._hdf5 and (self._pid != os.getpid() or not self.array):  # or it was closed
            self.array, self._pid = _open_hdf5(*self._hdf5), os.getpid()
        return np.asarray(self.array[key])

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        return state | {"array": None, "_pid": 0} if self._hdf5 else state


def _open_hdf5(file: str, name: str) -> Any:  # noqa: ANN401 -- an h5py.Dataset
    try:
        return require("h5py", "sam").File(file, "r")[name]
    except OSError as error:
        raise OSError(
            f"{file}: {error}. A process that loads data opens the file again: write it, close it, "
            "and open it with h5py.File(path, 'r')"
        ) from error


def as_stored(array: Any) -> Any:  # noqa: ANN401 -- any value
    """Wrap an array that is not in memory, and return anything else unchanged."""
    if type(array).__module__.startswith("h5py") and not array:
        raise ValueError(f"{array!r}: keep the file open until the data set is made")
    is_array = hasattr(array, "shape") and hasattr(array, "dtype") and hasattr(array, "__getitem__")
    in_memory = isinstance(array, (np.ndarray, np.generic)) or hasattr(array, "detach")
    return Stored(array) if is_array and not in_memory and len(array.shape) else array


def to_numpy(array: Any) -> Any:  # noqa: ANN401 -- any value
    """Return a tensor of torch as an array of NumPy, and anything else unchanged.

    Raises:
        ValueError: It is a masked array of NumPy: what it hides would be read; or one of xarray
            whose axes are not (y, x).
    """
    axes = array.dims if type(array).__module__.startswith("xarray") else ()
    if {"x", "y"} <= set(axes) and axes.index("x") < axes.index("y"):
        raise ValueError(f"an array has the dimensions {axes}: transpose it to (..., 'y', 'x')")
    if isinstance(array, np.ma.MaskedArray):
        if np.ma.is_masked(array):
            raise ValueError("a masked array has hidden values: fill them first, array.filled(0)")
        return array.data
    if not (hasattr(array, "detach") and hasattr(array, "cpu")):
        return array
    tensor = array.detach().cpu()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


class Page(NamedTuple):
    """An image in a file."""

    path: Path
    number: int = 0  # of the page, slice or frame


class Pictures(Sequence[Any]):
    """Images or masks in files, read when they are indexed; also PIL images and arrays."""

    def __init__(self, entries: Sequence[Any], *, labels: bool, heads: Sequence[Any] = ()) -> None:
        """Store the entries, without reading files.

        Args:
            entries: for each image a `Page`, a PIL image or an array; for a stack of masks also a
                list of files, PIL images or arrays, with one mask each.
            labels: whether they are masks.
            heads: for each its `Header`; empty if they are not known.
        """
        self.entries, self.labels, self.heads = entries, labels, heads

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.entries)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 -- Sequence allows slices, which are not used
        """Read an image, (H, W) or (H, W, 3), or a mask, (H, W) or (N, H, W)."""
        entry = self.entries[index]
        return self._stack(index) if isinstance(entry, list) else self._read(entry, index)

    def _read(self, entry: Any, index: int) -> Array:  # noqa: ANN401 -- of `entries`
        if isinstance(entry, Page):
            return read(*entry, labels=self.labels)
        if isinstance(entry, Stored):
            return entry[...]
        if isinstance(entry, Image.Image):
            with naming(f"{'mask' if self.labels else 'image'} {index}, a PIL image"):
                return from_pil(entry, labels=self.labels)
        return np.asarray(to_numpy(entry))

    def _stack(self, index: int) -> Array:
        """Read a list of masks, one per object, (N, H, W).

        Raises:
            ValueError: One is not the mask of one object, or they have different sizes.
        """
        masks: list[Array] = []
        for entry in self.entries[index]:
            name = f"masks[{index}][{len(masks)}]"
            if isinstance(entry, Path):
                name += f" ({entry})"
                if kind_of(entry) == "nifti" or header(entry, labels=True).pages > 1:
                    raise ValueError(f"{name} may contain several masks: pass it without a list")
            mask = self._read(Page(entry) if isinstance(entry, Path) else entry, index)
            one = mask.ndim == 2 and not ((mask != 0) & (mask != mask.max())).any()
            if not one or (masks and mask.shape != masks[0].shape):
                raise ValueError(
                    f"{name} has shape {mask.shape} and {len(np.unique(mask))} values: in a list, "
                    "each is the mask of one object, all of one size; pass mask > 127 for gray "
                    "levels, a label map without a list"
                )
            masks.append(mask)
        return np.stack(masks)

    def __getstate__(self) -> dict[str, Any]:
        entries = self.entries
        if isinstance(entries, list):  # Pillow would pickle decoded images, with 8 of 16 bits
            entries = [self[n] if isinstance(e, Image.Image) else e for n, e in enumerate(entries)]
        return vars(self) | {"entries": entries}

    def name(self, index: int) -> str:
        """Return the name of a file for messages, or "" for an image in memory."""
        entry = self.entries[index]
        entry = Page(entry[0]) if isinstance(entry, list) and isinstance(entry[0], Path) else entry
        if not isinstance(entry, Page):
            return ""
        return f"{entry.path}, page {entry.number}" if entry.number else str(entry.path)
