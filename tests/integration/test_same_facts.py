"""One notebook shows the same facts in nbclient, in nbconvert's HTML and in a terminal.

`tests/browser/test_notebook.py` compares JupyterLab with the notebook that it saved.
"""

from __future__ import annotations

import base64
import html
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from tests.integration.kernel import plain
from tests.limits import LONG_S

CELLS = [
    "%load_ext ddp_magic",
    """%%ddp -n 4 --pull total
import time
print('hello from', rank)
print('the same for all')
for epoch in tqdm(range(2), desc='epochs'):
    for step in tqdm(range(3), desc='steps', leave=False):
        time.sleep(0.01)
if rank < 3:
    plt.figure(figsize=(2, 1))
    plt.plot([rank, 1])
    plt.show()
total = torch.tensor(float(rank))
dist.all_reduce(total)
total = total.item()
""",
    "print(f'pulled {total}')",
    """%%ddp -n 4
def inner(x):
    return x / 0
dist.barrier()
if rank == 2:
    inner(rank)
dist.barrier()
""",
    "print('Run All goes on')",
]


@dataclass
class Facts:
    """What a person learns.

    Attributes:
        lines: The lines of the ranks, of the cells and of the bars, without times.
        endings: The closing lines, without times.
        error: The traceback and the last line of the error, without the cell's name. What the
            other ranks did meanwhile is left to chance.
        figures: The content of the figures.
    """

    lines: set[str]
    endings: list[str]
    error: list[str]
    figures: set[bytes]


def _facts(text: str, figures: set[bytes]) -> Facts:
    lines = [line.strip() for line in plain(text).splitlines()]
    shown = {re.sub(r" \[\d\d:.*", "", line) for line in lines if re.match(r"\[rank|pulled", line)}
    error = [re.sub(r'Cell (In\[\d+\]|"[^"]+")', "Cell", line) for line in lines]
    error = error[error.index("rank 2 of 4 raised:") :]
    raised = error.index("ZeroDivisionError: division by zero")
    last = next(line for line in error if line.startswith("WorkerError: "))
    return Facts(
        lines={line for line in shown if "<Figure" not in line and not line.endswith("]")},
        endings=re.findall(r"^4 ranks · [\d.]+ s(?: · [\d:]+)? · ((?:ok|failed).*)$", text, re.M),
        error=[*filter(None, error[: raised + 1]), last],
        figures=figures,
    )


def _in_nbclient(notebook: NotebookNode, folder: Path) -> Facts:
    resources = {"metadata": {"path": str(folder)}}
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        NotebookClient(notebook, timeout=LONG_S, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    texts = {
        "stream": lambda output: output.text,
        "error": lambda output: "\n".join(output.traceback) + "\n",
        "display_data": lambda output: output.data["text/plain"] + "\n",
    }
    bundles = [output.get("data", {}) for output in outputs]
    images = [data["image/png"] for data in bundles if "image/png" in data]
    text = "".join(texts[output.output_type](output) for output in outputs)
    return _facts(text, set(map(base64.b64decode, images)))


def _in_html(notebook: NotebookNode) -> Facts:
    page, _ = HTMLExporter().from_notebook_node(notebook)
    outputs = page.partition("<main>")[2].split('<div class="jp-Cell-outputWrapper">')[1:]
    shown = "\n".join(each.split('<div class="jp-Cell-inputWrapper')[0] for each in outputs)
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', shown)
    text = html.unescape(re.sub(r"<[^>]+>", "", shown))
    return _facts(text, set(map(base64.b64decode, images)))


def _in_terminal(done: str) -> Facts:
    files = re.findall(r"^figure: (.*)$", done, re.MULTILINE)
    return _facts(done, {Path(file).read_bytes() for file in files})


def test_a_notebook_shows_the_same_facts_everywhere(tmp_path: Path) -> None:
    """Lines, last states of bars, figures, a pulled value, the error, how each run ended."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS])
    nbformat.write(notebook, tmp_path / "facts.ipynb")
    terminal = subprocess.Popen(
        [sys.executable, "-m", "IPython", "--no-banner", "--simple-prompt", "facts.ipynb"],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "IPYTHONDIR": str(tmp_path / "ipython")},
    )
    try:
        saved = _in_nbclient(notebook, tmp_path)
        printed, _ = terminal.communicate(timeout=LONG_S)
    finally:
        terminal.kill()
    assert {f"[rank {rank}] hello from {rank}" for rank in range(4)} < saved.lines
    assert {"[ranks 0-3] the same for all", "pulled 6.0"} < saved.lines
    assert sum("epochs: 100%" in line for line in saved.lines) == 4
    assert len(saved.figures) == 3
    assert notebook.cells[-1].outputs == []  # a failed run fails its cell
    assert saved.endings[0].startswith("ok")
    assert saved.endings[1].startswith("failed · rank 2 raised ZeroDivisionError at line 3")
    assert _in_html(notebook) == saved
    assert _in_terminal(printed) == saved
