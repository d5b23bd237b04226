"""The values that a rank sends to the notebook; the private names of torch for that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.pickling import Refused, load
from ddp_magic.worker.values.sent_values import send, unwrapped


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def _ddp(module: torch.nn.Module) -> Any:
    """Return DDP around a module, without the process group that its `__init__` needs."""
    made: Any = DistributedDataParallel.__new__(DistributedDataParallel)
    torch.nn.Module.__init__(made)
    made.module = module
    return made


def _sent(namespace: dict[str, Any], directory: RunDirectory) -> dict[str, Any]:
    event, segment = send(0, list(namespace), namespace, directory)
    assert event.failed == {}
    assert segment is not None
    stream, *buffers = segment.views()
    segment.close()
    return dict(load(stream, buffers))


def test_ddp_and_compile_are_unwrapped() -> None:
    """`torch._dynamo`'s `OptimizedModule._orig_mod`, and the classes' names."""
    linear = torch.nn.Linear(1, 1)
    assert unwrapped(torch.compile(linear, backend="eager")) is linear
    assert unwrapped(_ddp(linear)) is linear
    assert unwrapped(torch.compile(_ddp(linear), backend="eager")) is linear
    assert unwrapped(linear) is linear


def test_an_optimizer_still_points_at_its_unwrapped_model(directory: RunDirectory) -> None:
    model = _ddp(torch.nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = _sent({"model": model, "optimizer": optimizer, "best": [model]}, directory)
    assert type(found["model"]) is torch.nn.Linear
    assert found["best"][0] is found["model"]
    assert found["optimizer"].param_groups[0]["params"][0] is found["model"].weight


def test_a_sharded_module_is_rejected_with_what_to_write() -> None:
    sharded = FullyShardedDataParallel.__new__(FullyShardedDataParallel)
    with pytest.raises(Refused, match="a sharded module") as caught:
        unwrapped(sharded)
    assert "get_model_state_dict(it" in caught.value.remedy


def test_what_cannot_be_sent_is_saved_for_torch_load(directory: RunDirectory) -> None:
    """A module with a generator in it: its state; the others are sent."""
    model: Any = torch.nn.Linear(1, 1)
    model.batches = (i for i in ())
    event, segment = send(0, ["model", "ok"], {"model": model, "ok": 1}, directory)
    assert event.names == ("ok",)
    assert segment is not None
    segment.close()
    file = directory.saved_value("model", 0, ".pt")
    assert event.failed == {
        "model": "cannot be pulled: it holds a generator; convert it to "
        f"a list; saved for torch.load: {file}"
    }
    assert torch.load(file).keys() == {"weight", "bias"}


def test_or_its_text_is_saved(directory: RunDirectory) -> None:
    event, segment = send(2, ["gen"], {"gen": {"x": 5, "g": (i for i in ())}}, directory)
    assert segment is None
    text = directory.saved_value("gen", 2, ".txt")
    assert event.failed["gen"].endswith(f"; its text is in {text}")
    assert "'x': 5" in text.read_text()
    assert not directory.saved_value("gen", 2, ".pt").exists()


class _Odd:
    def __reduce__(self) -> Any:
        raise ValueError("no")

    def __repr__(self) -> str:
        raise ValueError("no")

    @property
    def broken(self) -> int:
        raise ZeroDivisionError("x")


class _Attributes(dict[str, Any]):
    """Of many config libraries: a name that is not there is a KeyError."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # Python 3.10 looks up `__getstate__` to pickle it
        return self[name]


def test_the_values_own_code_may_raise(directory: RunDirectory) -> None:
    event, _ = send(0, ["a", "a.broken", "b"], {"a": _Odd()}, directory)
    assert event.failed == {
        "a": "cannot be pulled: ValueError: no",
        "a.broken": "cannot be read: ZeroDivisionError: x",
        "b": "was never set",
    }


def test_a_lookup_that_raises_is_no_error_of_the_rank(directory: RunDirectory) -> None:
    """The value is asked for a `state_dict`, and answers by another error than AttributeError."""
    event, _ = send(0, ["config"], {"config": _Attributes(rows=(i for i in ()))}, directory)
    text = directory.saved_value("config", 0, ".txt")
    assert event.failed == {
        "config": "cannot be pulled: it holds a generator; convert it to a list; "
        f"its text is in {text}"
    }
