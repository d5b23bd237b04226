"""Arrays and tensors beside the pickle stream; the private names of NumPy and torch for that."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddp_magic.wire import arrays
from ddp_magic.wire.pickling import Pickler, Refused, load


def _sent(*values: Any) -> tuple[bytes, list[bytearray]]:
    """Return the stream of some values, and its buffers."""
    file, buffers = io.BytesIO(), []
    pickler = Pickler(file, on_buffer=lambda buffer: buffers.append(bytearray(buffer.raw())))
    for value in values:
        pickler.dump(value)
    return file.getvalue(), buffers


def _received(*values: Any) -> list[Any]:
    return list(load(*_sent(*values)))


_TABLE = np.arange(12).reshape(3, 4)


@pytest.mark.parametrize(
    "array",
    [
        _TABLE,
        _TABLE[::2, ::3],
        _TABLE.T,
        np.ones((0, 3)),
        np.array(["x", "yy"]),
        np.zeros(2, [("x", "i4"), ("y", "f8")]),
        np.array([{}, None]),
        np.float32(3),
    ],
    ids=["plain", "strided", "fortran", "empty", "text", "record", "objects", "scalar"],
)
def test_an_array_arrives(array: Any) -> None:
    """In any order, of any type."""
    (found,) = _received(array)
    assert found.dtype == array.dtype
    assert found.tolist() == array.tolist()


@pytest.mark.parametrize("array", [np.ones(10**5), np.ones((10**3, 200))[:, ::2]])
def test_the_bytes_of_an_array_stay_out_of_the_stream(array: Any) -> None:
    stream, buffers = _sent(array)
    assert len(stream) < 1000
    assert sum(map(len, buffers)) == array.nbytes


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, dtype=torch.bfloat16),
        torch.ones(0, 3),
        torch.tensor(2.5),
        torch.ones(2, dtype=torch.cfloat).conj(),
        torch.ones(2, dtype=torch.cfloat).conj().imag,
        torch.eye(2).to_sparse(),
        torch.ones(2, requires_grad=True),
        torch.nn.Parameter(torch.ones(1), requires_grad=False),
    ],
    ids=["bfloat16", "empty", "scalar", "conjugated", "negated", "sparse", "grad", "parameter"],
)
def test_a_tensor_arrives(tensor: torch.Tensor) -> None:
    (found,) = _received(tensor)
    assert type(found) is type(tensor)
    assert found.is_conj() == tensor.is_conj()
    assert found.is_neg() == tensor.is_neg()
    assert found.requires_grad == tensor.requires_grad
    assert found.is_sparse == tensor.is_sparse
    assert torch.equal(found.detach().to_dense(), tensor.detach().to_dense())


def test_the_bytes_of_a_tensor_stay_out_of_the_stream() -> None:
    stream, buffers = _sent(torch.ones(10**5))
    assert len(stream) < 1000
    assert [len(buffer) for buffer in buffers] == [4 * 10**5]


def test_tensors_share_their_memory_as_before() -> None:
    """In one value and in several."""
    base = torch.arange(6)
    views, again = _received([base[1:3], base.view(2, 3).T], base)
    again[1] = 100
    assert views[0].tolist() == [100, 2]
    assert views[1].tolist() == [[0, 3], [100, 4], [2, 5]]
    assert arrays.storage_key(base) == arrays.storage_key(base[1:])


def test_attributes_of_a_tensor_arrive() -> None:
    parameter: Any = torch.nn.Parameter(torch.ones(1))
    parameter.tag = "mine"
    assert _received(parameter)[0].tag == "mine"


def test_a_sharded_tensor_is_rejected() -> None:
    """By the name of its class, with what to write."""
    sharded = torch.ones(1).as_subclass(type("DTensor", (torch.Tensor,), {}))
    with pytest.raises(Refused, match="a sharded tensor") as caught:
        _sent(sharded)
    assert "it.full_tensor()" in caught.value.remedy


# --- memory-mapped arrays -------------------------------------------------------------------------


@pytest.fixture
def mapped(tmp_path: Path) -> Any:
    array = np.memmap(str(tmp_path / "big"), np.float32, "w+", offset=12, shape=(100, 1000))
    array[:] = np.arange(100)[:, None]
    return array


def test_a_view_of_a_file_arrives_as_its_place(mapped: Any) -> None:
    """Not its bytes: NumPy's `_mmap` and `byte_bounds` say where it is."""
    part = mapped[10:20:3, ::2]
    stream, buffers = _sent(part)
    assert buffers == []
    assert len(stream) < 1000
    (found,) = load(stream, buffers)
    assert isinstance(found, np.memmap)
    assert found.filename == part.filename
    assert found.shape == (4, 500)
    assert found[:, 0].tolist() == [10, 13, 16, 19]


def test_what_a_reader_writes_is_in_the_file(mapped: Any) -> None:
    (found,) = _received(mapped[5:])
    found[0, 0] = 7
    assert mapped[5, 0] == 7


def test_what_was_computed_from_a_file_arrives_whole(mapped: Any) -> None:
    (found,) = _received(mapped + 1)
    assert found[:3, 0].tolist() == [1, 2, 3]
