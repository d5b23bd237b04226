"""The notebook's values in a rank."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from ddp_magic.errors import CaptureError
from ddp_magic.wire.commands import Captured
from ddp_magic.wire.memory import Segment
from ddp_magic.wire.pickling import Pickler
from ddp_magic.worker.inheritance import Inheritance
from ddp_magic.worker.values.notebook_values import NotebookValues


def _fail(*_: object) -> None:
    raise ValueError("not\nhere")


class Fails:
    """Cannot be made where it is read."""

    def __reduce__(self) -> Any:
        return _fail, ()


class FakeShell:
    """Remembers the text of the notebook's code."""

    def __init__(self) -> None:
        self.user_ns: dict[str, Any] = {}
        self.known: dict[str, list[Any]] = {}

    def know_sources(self, sources: dict[str, list[Any]]) -> None:
        self.known.update(sources)


def test_a_value_that_cannot_be_read_fails_at_a_known_line(
    tmp_path: Path,
) -> None:
    """The traceback of the value's own code is in a cell of the notebook's."""
    file = io.BytesIO()
    Pickler(file, on_buffer=lambda _: None).dump(("x", Fails()))
    segment = Segment.of([memoryview(file.getvalue())])
    values = NotebookValues(Inheritance(tmp_path / "inherited"))
    values.add_segment(0, segment.fd, segment.sizes)
    values.announce(Captured(names=("x",), stream=0, parts=(), sources={"f.py": ["text", 3]}))
    shell: Any = FakeShell()
    with pytest.raises(CaptureError) as caught:
        values.provide(shell)
    assert str(caught.value) == (
        "cannot read `x` of the notebook in this rank: ValueError: not here"
    )
    assert shell.known == {"f.py": ["text", 3]}
