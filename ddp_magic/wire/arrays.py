"""Reductions that keep the bytes of arrays and tensors out of the pickle stream.

Neither NumPy nor torch is imported to write: where they are not imported, there is no array or
tensor. The functions at the end run in the process that reads the stream.

Private names, each with a test in tests/unit/wire/test_arrays.py: NumPy's `memmap._mmap` and
`byte_bounds`, which has moved once (NumPy 1.26 to 2.x); torch's `UntypedStorage._cdata`,
`torch._conj` and `torch._neg_view` (torch 2.6 to 2.13).
"""

from __future__ import annotations

import mmap
import pickle
import sys
from typing import Any

_GRANULARITY = mmap.ALLOCATIONGRANULARITY


def reduce_array(array: Any) -> Any:  # noqa: ANN401 -- of any shape and dtype
    """Return pickle's reduction of a NumPy array; NotImplemented for pickle's own."""
    np = sys.modules["numpy"]
    if isinstance(array, np.memmap):
        file = _mapped_file(array)
        if file is not None:
            return memmap, file
    if type(array) in (np.ndarray, np.memmap) and not array.dtype.hasobject:
        contiguous = array.flags.c_contiguous or array.flags.f_contiguous
        # A contiguous copy: NumPy would put any other array into the stream.
        plain = np.asarray(array) if contiguous else np.ascontiguousarray(array)
        return plain.__reduce_ex__(5)
    return NotImplemented


def _mapped_file(array: Any) -> tuple[Any, ...] | None:  # noqa: ANN401 -- a numpy.memmap
    """Return the arguments with which `memmap` opens the same part of the same file."""
    if array._mmap is None or array.filename is None:
        return None
    np = sys.modules["numpy"]
    numpy2 = hasattr(np.lib, "array_utils")
    low, high = (np.lib.array_utils if numpy2 else np).byte_bounds(array)
    whole = np.frombuffer(array._mmap, np.uint8)
    base = whole.__array_interface__["data"][0]
    if not base <= low <= high <= base + whole.size:
        return None  # computed from a memmap, and not a view of it
    mapping_offset = array.offset - array.offset % _GRANULARITY  # in the file
    return (
        str(array.filename),
        "r+" if array.mode == "w+" else array.mode,  # "w+" would empty the file
        (mapping_offset + (low - base), high - low),
        (array.__array_interface__["data"][0] - low, array.shape, array.dtype, array.strides),
    )


class Storage:
    """The memory of one or more tensors, in the process that writes the stream."""

    def __init__(self, storage: Any) -> None:  # noqa: ANN401 -- a torch.UntypedStorage
        self._storage = storage

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:  # noqa: ANN401 -- pickle's
        torch = sys.modules["torch"]
        if not self._storage.nbytes():
            return storage_of, (b"",)
        flat = torch.empty(0, dtype=torch.uint8).set_(self._storage.cpu())
        return storage_of, (pickle.PickleBuffer(flat.numpy()),)


def has_plain_storage(tensor: Any) -> bool:  # noqa: ANN401 -- a torch.Tensor
    """Return whether `reduce_tensor` can take this tensor apart."""
    torch = sys.modules["torch"]
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
    return plain and not tensor.is_quantized and tensor.device.type != "meta"


def storage_key(tensor: Any) -> int:  # noqa: ANN401 -- a torch.Tensor
    """Return a number that tensors with the same memory share."""
    return int(tensor.untyped_storage()._cdata)


def reduce_tensor(tensor: Any, storage: Storage) -> tuple[Any, ...]:  # noqa: ANN401 -- a torch.Tensor
    """Return pickle's reduction of a tensor whose memory is `storage`."""
    torch = sys.modules["torch"]
    return make_tensor, (
        storage,
        tensor.dtype,
        (tensor.storage_offset(), tuple(tensor.size()), tensor.stride()),
        tensor.requires_grad,
        type(tensor) is torch.nn.Parameter,
        (tensor.is_conj(), tensor.is_neg()),
        dict(tensor.__dict__) if tensor.__dict__ else None,
    )


# --- called by the stream, in the process that reads it -------------------------------------------


def memmap(filename: str, mode: Any, span: tuple[int, int], view: tuple[Any, ...]) -> Any:  # noqa: ANN401 -- NumPy's own
    """Map a part of a file.

    Args:
        filename: The file.
        mode: Of `numpy.memmap`.
        span: Where the part begins in the file, and its size, in bytes.
        view: Offset in the part in bytes, shape, dtype and strides of the array.
    """
    import numpy as np

    offset, nbytes = span
    part = np.memmap(filename, np.uint8, mode, offset, (nbytes,))
    first, shape, dtype, strides = view
    array = np.ndarray.__new__(np.memmap, shape, dtype, part, first, strides)
    array.__array_finalize__(part)
    return array


def storage_of(buffer: Any) -> Any:  # noqa: ANN401 -- a buffer to a torch.UntypedStorage
    """Make a storage of a buffer, without a copy."""
    import torch

    if len(buffer) == 0:
        return torch.empty(0, dtype=torch.uint8).untyped_storage()
    return torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage()


def make_tensor(
    storage: Any,  # noqa: ANN401 -- torch's, which is not imported here
    dtype: Any,  # noqa: ANN401
    place: tuple[int, tuple[int, ...], tuple[int, ...]],
    requires_grad: bool,
    is_parameter: bool,
    flipped: tuple[bool, bool],
    attributes: dict[str, Any] | None,
) -> Any:  # noqa: ANN401
    """Make a tensor that views a storage.

    Args:
        storage: A `torch.UntypedStorage`.
        dtype: Of the tensor.
        place: Storage offset, size and stride.
        requires_grad: Whether it requires a gradient.
        is_parameter: Whether it is a `torch.nn.Parameter`.
        flipped: Its conjugate bit and its negative bit.
        attributes: What the user has set on it.
    """
    import torch

    tensor = torch.empty(0, dtype=dtype).set_(storage, *place)
    conjugated, negated = flipped
    if conjugated:
        tensor = torch._conj(tensor)
    if negated:
        tensor = torch._neg_view(tensor)
    if is_parameter:
        tensor = torch.nn.Parameter(tensor, requires_grad)
    else:
        tensor.requires_grad_(requires_grad)
    if attributes:
        tensor.__dict__.update(attributes)
    return tensor
