"""tqdm in a rank, in a process of its own: it is changed when it is imported."""

from __future__ import annotations

import subprocess
import sys

from tests.limits import HANG_S


def _run(code: str, before: str = "") -> str:
    program = f"{before}\nfrom ddp_magic.worker.console import bars\nbars.use_text()\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG_S, check=True
    )
    return done.stdout + done.stderr


def test_the_bars_of_a_notebook_are_text() -> None:
    """With all arguments that a widget takes."""
    code = "from tqdm.notebook import trange\nfor _ in trange(2, ncols='80%', colour='red'): pass"
    assert "2/2" in _run(code)


def test_bars_that_are_for_terminals_are_shown() -> None:
    """`disable=None`, as huggingface_hub has it; also if torch has imported tqdm before."""
    for before in ("", "import tqdm"):
        code = "from tqdm import tqdm\nfor _ in tqdm(range(2), disable=None): pass"
        assert "2/2" in _run(code, before)


def test_they_are_not_written_to_files() -> None:
    code = (
        "import io\nfrom tqdm import tqdm\nfile = io.StringIO()\n"
        "for _ in tqdm(range(2), disable=None, file=file): pass\nprint(repr(file.getvalue()))"
    )
    assert _run(code) == "''\n"
