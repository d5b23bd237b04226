"""What `--pull` asks for."""

from __future__ import annotations

import pytest

from ddp_magic.kernel.pull import Pull, parse


def test_names_ranks_and_attributes() -> None:
    pulls = parse("a, b@all,c@2,trainer.state")
    assert pulls == (Pull("a", 0), Pull("b", None), Pull("c", 2), Pull("trainer.state", 0))
    assert [pull.name for pull in pulls] == ["a", "b", "c", "state"]
    assert ",".join(map(str, pulls)) == "a,b@all,c@2,trainer.state"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no name"),
        ("a,,b", "is no name"),
        ("1a", "is no name"),
        ("a.", "is no name"),
        ("a@", "after @ comes a rank"),
        ("a@-1", "after @ comes a rank"),
        ("a,x.a", "named twice"),
    ],
)
def test_what_is_no_list_of_names(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(text)
