"""When a rank that raises stops in the debugger."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ddp_magic.kernel.notebook import post_mortem
from ddp_magic.kernel.options.arguments import parse_keywords


def shell(*, pdb: bool) -> Any:
    """A notebook's shell in which a person can answer."""
    kernel = SimpleNamespace(_allow_stdin=True)
    return SimpleNamespace(call_pdb=pdb, kernel=kernel)


@pytest.mark.parametrize(
    ("options", "pdb", "expected"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"debug": True}, False, True),
        ({"debug": False}, True, False),
        ({"bg": True}, True, False),
        ({"detach": True}, True, False),
    ],
)
def test_pdb_counts_where_the_options_say_nothing(
    options: dict[str, bool], pdb: bool, expected: bool
) -> None:
    asked = parse_keywords(options)
    assert post_mortem.wants_debugger(asked, shell(pdb=pdb)) == expected


def test_a_script_has_no_pdb() -> None:
    assert not post_mortem.wants_debugger(parse_keywords({}), None)
