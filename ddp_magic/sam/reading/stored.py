"""Arrays that are not in memory, of zarr, h5py and numpy.memmap: read in parts."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_magic.sam.reading.channels import require


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

    def __getitem__(self, key: Any) -> NDArray[Any]:  # noqa: ANN401 -- as of an array
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
        ValueError: It is a masked array of NumPy: what it hides would be read.
    """
    if isinstance(array, np.ma.MaskedArray):
        if np.ma.is_masked(array):
            raise ValueError("a masked array has hidden values: fill them first, array.filled(0)")
        return array.data
    if not (hasattr(array, "detach") and hasattr(array, "cpu")):
        return array
    tensor = array.detach().cpu()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
