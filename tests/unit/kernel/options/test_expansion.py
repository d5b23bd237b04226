"""How the notebook's variables get into the line."""

from __future__ import annotations

import json

import pytest

from ddp_magic.kernel.options.expansion import ExpansionError, split

JSON = json.dumps({"lr": 0.1, "name": "a b", "path": "C:\\x"})
NAMES = {
    "n": 4,
    "options": "-n 2 --seed 3",
    "text": "two words",
    "JSON": JSON,
    "quotes": """it's "so" """,
    "back": "C:\\new\\x",
    "empty": "",
    "items": [1, 2, 3],
    "table": {"key": "v w"},
}


@pytest.mark.parametrize("name", ["text", "JSON", "quotes", "back", "empty", "items", "table"])
def test_after_the_dashes_a_value_is_one_argument(name: str) -> None:
    """Whatever is in it, quoted or not, alone or within a word."""
    value = str(NAMES[name])
    line = f'-- {{{name}}} ${name} "{{{name}}}" "${name}" --x={{{name}}} a${name}'
    assert split(line, NAMES)[1:] == [value, value, value, value, f"--x={value}", f"a{value}"]


def test_in_the_options_a_value_is_text() -> None:
    """It may be several options; quotes of the line keep it together."""
    assert split("{options} --cold", NAMES) == ["-n", "2", "--seed", "3", "--cold"]
    assert split("-g '{items[0]}, {items[1]}'", NAMES) == ["-g", "1, 2"]
    assert split("-n$n --pull {','.join('ab')} -- {n}", NAMES) == [
        *("-n4", "--pull", "a,b"),
        *("--", "4"),
    ]


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("['a', 'b@all']", "a,b@all"),
        ("('a',)", "a"),
        ("range(3)", "0,1,2"),
        ("set([0])", "0"),
        ("frozenset([2])", "2"),
        ("items", "1,2,3"),
    ],
)
def test_in_the_options_a_list_is_its_items(expression: str, text: str) -> None:
    """As `--pull` and `--show` have them; after the dashes it is Python's text."""
    assert split(f"--pull {{{expression}}}", NAMES) == ["--pull", text]
    assert split("$items -- $items", NAMES) == ["1,2,3", "--", "[1, 2, 3]"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{n + 1} {items[0:2]} {text!r}", ["5", "[1, 2]", "'two words'"]),
        ("""{table["key"]} {table['key']}""", ["v w", "v w"]),
        ("'$n' $$n", ["$n", "$n"]),
        ("'{n}' '{text}'", ["4", "two words"]),
        ("{{n}} {{{n}}} {{literal}}", ["{n}", "{4}", "{literal}"]),
        ("""'{"a": 1}' '{"a": {"b": [1, 2]}}' {n}""", ['{"a": 1}', '{"a": {"b": [1, 2]}}', "4"]),
        ("$HOME {HOME} $HOME {} {1/0} {n}", ["$HOME", "{HOME}", "$HOME", "{}", "{1/0}", "4"]),
        ("a{ $n", ["a{", "$n"]),
        ("{n:>5} file.{jpg,png}", ["{n:>5}", "file.{jpg,png}"]),
        ("""a\\ b 'c d' "e\\"f" '' -- #""", ["a b", "c d", 'e"f', "", "--", "#"]),
    ],
)
def test_arguments(line: str, words: list[str]) -> None:
    """As a shell reads them; what cannot be expanded stays as it is."""
    assert split(f"-n 2 -- {line}", NAMES) == ["-n", "2", "--", *words]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("-n {1/0} -- x", "cannot expand {1/0}: ZeroDivisionError: division by zero"),
        ("-n {M}", "cannot expand {M}: NameError: name 'M' is not defined"),
        ("-n $M", "cannot expand $M: NameError: name 'M' is not defined"),
        ("-n {items[9]} -- {M}", "cannot expand {items[9]}: IndexError: list index out of range"),
    ],
)
def test_an_option_that_cannot_be_expanded_says_why(line: str, why: str) -> None:
    with pytest.raises(ExpansionError) as caught:
        split(line, NAMES)
    assert str(caught.value) == why


@pytest.mark.parametrize("line", ["-- 'open", "-n '2 -- x", "-n 2 \\"])
def test_an_open_quote_is_the_callers_to_explain(line: str) -> None:
    with pytest.raises(ValueError, match=r"No closing quotation|No escaped character"):
        split(line, NAMES)
