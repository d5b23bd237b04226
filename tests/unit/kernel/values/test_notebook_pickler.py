"""Names of classes and of annotations that the notebook's pickler relies on."""

from __future__ import annotations

import importlib
import typing
from typing import Any

import pytest

from ddp_magic.kernel.values.notebook_pickler import annotated_names, refuse_single_process
from ddp_magic.wire.pickling import Refused


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.nn.parallel", "DistributedDataParallel"),
        ("torch.distributed", "ProcessGroup"),
        ("torch.utils.tensorboard", "SummaryWriter"),
        ("accelerate", "Accelerator"),
        ("accelerate", "PartialState"),
        ("transformers", "Trainer"),
        ("transformers", "TrainingArguments"),
    ],
)
def test_classes_of_a_single_process_are_known_by_name(module: str, name: str) -> None:
    """A version that moves one of these classes fails here."""
    if not module.startswith("torch"):
        pytest.importorskip(module)
    try:
        kind = getattr(importlib.import_module(module), name)
    except ImportError as error:  # tensorboard, which torch does without
        pytest.skip(str(error))
    with pytest.raises(Refused, match="set up for a single process"):
        refuse_single_process(kind.__new__(kind))


@pytest.mark.parametrize(
    ("module", "name", "remedy"),
    [
        (
            "ddp_magic.kernel.execution.run",
            "Run",
            "keep what you need of it: `results = run.results`",
        ),
        ("ddp_magic.kernel.background.run", "BackgroundRun", "keep what you need of it"),
        ("IPython.core.interactiveshell", "InteractiveShell", "call get_ipython() in the cell"),
    ],
)
def test_parts_of_the_notebooks_process_are_known_by_name(
    module: str, name: str, remedy: str
) -> None:
    """A `Run` that `--out` has bound, and what `get_ipython()` returns."""
    kind = getattr(importlib.import_module(module), name)
    with pytest.raises(Refused, match="a part of the notebook's process") as refused:
        refuse_single_process(kind.__new__(kind))
    assert remedy in refused.value.remedy


def _annotated(text: str) -> Any:
    names: dict[str, Any] = {"typing": typing}
    exec(compile(text, "f.py", "exec", dont_inherit=True), names)
    return names["f"]


@pytest.mark.parametrize(
    ("annotation", "names"),
    [
        ("'Part'", {"Part"}),
        ("'dict[str, Part] | Other'", {"dict", "str", "Part", "Other"}),
        ("typing.Optional['Part']", {"Part"}),
        ("list['Part']", {"Part"}),
        ("typing.Callable[['Part'], 'Other']", {"Part", "Other"}),
        ("int", set()),
    ],
)
def test_names_in_annotations(annotation: str, names: set[str]) -> None:
    """`ForwardRef.__forward_arg__` and `__args__` of typing's objects."""
    assert annotated_names(_annotated(f"def f(x: {annotation}): ...")) == names
    assert annotated_names(_annotated(f"class f:\n    x: {annotation}")) == names
