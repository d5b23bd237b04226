"""The file in which a rank writes down what it calls."""

from __future__ import annotations

import pytest

from ddp_magic.wire.calls import CollectiveCall, first_line, next_line, read_line

CALL = CollectiveCall(
    name="all_to_all_single",
    group="1",
    ranks=(2, 0),
    inputs=((4, 3), ()),
    dtypes=("float32",),
    sends=(6, 6),
    line=3,
    via="Tensor.backward",
)


def test_a_call_is_read_as_it_was_written() -> None:
    for number in (0, 17):
        line = first_line(number, CALL)
        assert line.count(b"\n") == 1
        assert read_line(line.rstrip(b"\n")) == (number, CALL)
        assert read_line(next_line(number).rstrip(b"\n")) == (number, None)


@pytest.mark.parametrize(
    "line", [b"", b"x", b"1 []x", b"1 {", b'1 {"name": "a"}', b'1 {"other": 1}']
)
def test_another_line_is_an_error(line: bytes) -> None:
    with pytest.raises(ValueError, match="invalid description of a call"):
        read_line(line)
