"""Cells become Python files with the notebook's line numbers."""

from __future__ import annotations

import ast
import warnings

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from ddp_magic.kernel.cell import Cell, lines_above, prepare, transformer_like


def _prepare(raw: str) -> Cell:
    body = raw.partition("%%ddp\n")[2]
    return prepare(
        body,
        above=lines_above(raw, body),
        filename=lambda: "cell",
        transformer=transformer_like(TransformerManager()),
    )


@pytest.mark.parametrize(
    "raw",
    [
        "%%ddp\nx = 1\nMARK = 2\n",
        "%%ddp\n\n\n\nMARK = 2",
        "\n\n%%ddp\n\nMARK = 2\n\n",
        "%%time\n%%ddp\nMARK = 2",
        "# Train.\n\n  # x\n%%ddp\n  MARK = 2",
        "%%ddp\n    x = 1\n    MARK = 2\n",
        "%%ddp\n!ls \\\n  -l \\\n  /\nMARK = 2\n",
        "%%ddp\nif 1:\n    files = !ls \\\n      -l\n    x = 1\nMARK = 2\n",
        "%%ddp\n%timeit \\\n pass\nx = 1\nMARK = 2\n",
        "%%ddp\ntext = '''\n!no\n%no\n'''\nMARK = 2",
        "%%ddp\nx = [\n  1,\n]\nprint?\nMARK = 2",
        "%%ddp\nfrom __future__ import annotations\nMARK = 2",
    ],
)
def test_every_line_keeps_its_number(raw: str) -> None:
    """MARK stands where it stands in the notebook, whatever IPython makes of the lines above."""
    source = _prepare(raw).source
    number = next(
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name) and node.id == "MARK"
    )
    assert number == raw.splitlines().index(next(s for s in raw.splitlines() if "MARK" in s)) + 1


def test_comments_above_the_magic_stay_as_they_are() -> None:
    """They are in the lines that a traceback shows."""
    assert _prepare("# Train.\n%%ddp\nx").source == "# Train.\n# %%ddp\nx\n"


def test_a_cell_magic_in_the_cell() -> None:
    """`%%time` below `%%ddp` is run, not a syntax error."""
    assert "run_cell_magic('time'" in _prepare("%%ddp\n%%time\nx = 1\n").source


def test_a_warning_of_the_compiler_is_left_to_the_ranks() -> None:
    """They name the cell; here it would be a file that does not exist."""
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        _prepare("%%ddp\nx = 1 is 1\ny = '\\d'")
    assert shown == []


def test_top_level_await_is_allowed() -> None:
    """As in any notebook cell."""
    assert "await" in _prepare("%%ddp\nimport asyncio\nawait asyncio.sleep(0)").source


@pytest.mark.parametrize(
    ("raw", "line"),
    [("%%ddp\nx = 1\nx = = 2", 3), ("\n%%ddp\nreturn 1", 3), ("%%ddp\nif x:\ny", 3)],
)
def test_a_syntax_error_has_the_notebooks_line(raw: str, line: int) -> None:
    """Found by compiling, so also what parsing alone lets pass."""
    with pytest.raises(SyntaxError) as caught:
        _prepare(raw)
    assert caught.value.lineno == line
    assert caught.value.filename == "cell"


def test_a_body_that_is_not_in_the_raw_cell() -> None:
    """A magic called by code has one line above its body."""
    assert lines_above("run_cell_magic('ddp', '', 'x')", "x = 1\n") == ["%%ddp"]


@pytest.mark.parametrize(
    ("text", "environment"),
    [
        ("import os\nos.environ['HF_HOME'] = '/data'\nimport transformers", {"HF_HOME": "/data"}),
        ("from os import environ\nimport os as o\no.environ['A'] = 'b'", {"A": "b"}),
        ("%env A=b c", {"A": "b c"}),
        ("%env A={x}", {}),
        ("%env A", {}),
        ("if x:\n    os.environ['A'] = 'b'", {}),
        ("os.environ['A'] = f'{x}'", {}),
        ("settings['A'] = 'b'", {}),
    ],
)
def test_the_environment_that_a_cell_sets(text: str, environment: dict[str, str]) -> None:
    """What its top level sets for certain, to a literal: libraries may read it at import."""
    assert _prepare("%%ddp\n" + text).environment == environment
