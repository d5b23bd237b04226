"""The committed notebooks: what they say, and whether they run. To run them, less data is enough:
what their training reaches is in the outputs that are committed, and `make demo` repeats it.
"""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.integration.kernel import plain
from tests.integration.slurm_cluster import SlurmCluster
from tests.limits import LONG_S

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def execute(
    name: str, folder: Path, *replaced: tuple[str, str], env: dict[str, str] | None = None
) -> NotebookNode:
    """Run a copy of a notebook; return it with its outputs.

    One thread for arithmetic: two beside another test's would wait for each other.

    Args:
        name: Its file.
        folder: Where it runs.
        replaced: Parts of its text, and what stands there in the copy.
        env: Variables of its kernel beside this process's own.
    """
    text = (NOTEBOOKS / name).read_text(encoding="utf-8")
    for old, new in replaced:
        assert old in text
        text = text.replace(old, new)
    notebook = nbformat.reads(text, as_version=4)
    place = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=2 * LONG_S, resources=place)
    client.execute(env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})})
    return notebook


def best_row(log: Path) -> dict[str, float]:
    """Return the epoch with the highest held-out Dice."""
    with log.open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return max(rows, key=lambda row: row["dice"])


def said_by(cell: NotebookNode) -> str:
    """Return the text that a cell has printed."""
    return "".join(out.text for out in cell.outputs if out.output_type == "stream")


def pictures_of(cell: NotebookNode) -> int:
    """Return the number of figures below a cell."""
    return sum("image/png" in out.get("data", {}) for out in cell.outputs)


@pytest.mark.slow
@pytest.mark.timeout(3 * LONG_S)
def test_sam_finetune(tmp_path: Path) -> None:
    """Two ranks learn real nuclei, heed their prompts, and show it."""
    less = ("crops=1600", "crops=480"), ("epochs=8", "epochs=3")
    answers = ("    assert is_true", "    del is_true")
    notebook = execute("sam_finetune.ipynb", tmp_path, *less, answers)
    best = best_row(tmp_path / "sam_checkpoints" / "log.csv")
    assert best["dice"] >= 0.5
    assert best["wrong_prompt_dice"] < best["dice"] / 2
    training = next(cell for cell in notebook.cells if "history = train(" in cell.source)
    assert pictures_of(training) == 3  # learning curve, training, held out
    assert "3/3" in said_by(training)
    whole = next(cell for cell in notebook.cells if "segment(model" in cell.source)
    assert pictures_of(whole) == 1
    table = table_of(whole)
    assert table["Otsu, watershed"][0] > 0.8
    assert table["fine-tuned SAM"][4] > 0.3


def table_of(cell: NotebookNode) -> dict[str, list[float]]:
    """Return the scores of the demo's table: AP50, AP75, AP, PQ and Dice, by method."""
    rows = re.findall(r"(Otsu, watershed|fine-tuned SAM) +((?:\d\.\d+ +){5})", said_by(cell))
    table = {name: [float(score) for score in scores.split()] for name, scores in rows}
    assert len(table) == 2
    return table


def test_what_the_demo_has_learned() -> None:
    """As it was committed, after all its epochs."""
    notebook = nbformat.read(NOTEBOOKS / "sam_finetune.ipynb", as_version=4)
    said = "".join(said_by(cell) for cell in notebook.cells if cell.get("outputs"))
    clicks = re.findall(r"clicks: Dice ([\d., ]+\d)", said)[0].split(", ")
    assert min(map(float, clicks)) >= 0.9
    assert float(re.findall(r"objects: Dice (0\.\d+)", said)[0]) >= 0.88
    assert said.count("? Yes: ") == 3
    whole = next(cell for cell in notebook.cells if "segment(model" in cell.source)
    table = table_of(whole)
    assert table["fine-tuned SAM"][3] > table["Otsu, watershed"][3]


def test_what_the_other_notebooks_have_learned() -> None:
    """As they were committed: held-out Dice of the loop, and of four prompts for one object."""
    loop, yours = (
        "".join(said_by(c) for c in nbformat.read(NOTEBOOKS / name, 4).cells if c.get("outputs"))
        for name in ("sam_loop.ipynb", "sam_your_data.ipynb")
    )
    assert float(re.findall(r"epoch 3: .* held-out Dice (0\.\d+)", loop)[0]) > 0.8
    prompted = [
        float(score) for score in re.findall(r"(?:click|off it|box|mask): Dice (\S+)", yours)
    ]
    assert len(prompted) == 4
    assert min(prompted) > 0.5


@pytest.mark.slow
@pytest.mark.timeout(3 * LONG_S)
def test_sam_your_data(tmp_path: Path) -> None:
    """Two folders of pictures become a trained model and a segmented picture."""
    less = ('"train\\", 400', '"train\\", 128'), ('"val\\", 48', '"val\\", 16')
    less += ("batch_size=8", "batch_size=4"), ("epochs=5", "epochs=4")
    answers = ("assert dice >= 0.85", "assert dice >= 0.5"), ("assert control < 0.1", "")
    areas = ("assert 12 <= len(areas) <= 100", "assert len(areas)")
    notebook = execute("sam_your_data.ipynb", tmp_path, *less, *answers, areas)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    training = next(cell for cell in code if "history = train(" in cell.source)
    assert pictures_of(training) == 2  # learning curve, held-out images
    prompted = next(cell for cell in code if "predict(model" in cell.source)
    scores = [float(score) for score in re.findall(r"Dice (\d\.\d+)", said_by(prompted))]
    assert len(scores) == 4
    assert min(scores) > 0.3


@pytest.mark.slow
@pytest.mark.timeout(3 * LONG_S)
def test_sam_loop(tmp_path: Path) -> None:
    """The flat loop learns, gives the numbers of `train`, and its three changes run."""
    notebook = execute("sam_loop.ipynb", tmp_path, ("cells(n=160)", "cells(n=48)"))
    flat, _, compared, changed = (c for c in notebook.cells[2:] if c.cell_type == "code")
    assert len(flat.source.splitlines()) <= 60
    assert float(re.findall(r"epoch 3: .* held-out Dice (0\.\d+)", said_by(flat))[0]) > 0.3
    differences = re.findall(r"differ by (\S+) at most", said_by(compared))
    assert len(differences) == 3
    assert max(map(float, differences)) < 1e-6
    assert "1/2" in said_by(changed)
    assert list((tmp_path / "loop_checkpoints" / "runs").iterdir())


EXPLAINED = [  # in the order of the cells
    r"rank 0 waits in all_reduce #1 \(line 6\).*ranks 1, 2 have not joined: each is at line 12, in",
    r"#1 differs between ranks: rank 0 called all_reduce.*ranks 1, 2 called broadcast",
    r"#4 differs between ranks: ranks 0, 2 called all_reduce of float32 \[10\].*1 called barrier",
    r"ranks 1, 2 wait in barrier #1.*rank 0 has not joined: it (computes|is) at line [34]",
    r"rank 2 waits in recv from rank 1 \(line 5\) for \d+ s; rank 1 is at line 7, in time\.sleep",
    r"warning: .*rank 1 called all_reduce of int32 \[4\]. What it returned is wrong",
]


@pytest.mark.slow
@pytest.mark.timeout(3 * LONG_S)
def test_deadlocks(tmp_path: Path) -> None:
    """Each mistake is explained; as it was committed, and as it runs here."""
    committed = nbformat.read(NOTEBOOKS / "deadlocks.ipynb", as_version=4)
    # The first cell starts while libraries are imported, which counts.
    first = '"%%ddp -n 3 --time-limit {} --no-raise-error\\n",\n    "import time'
    slow = first.format(9), first.format(25)
    for notebook in (committed, execute("deadlocks.ipynb", tmp_path, slow)):
        cells = [cell for cell in notebook.cells if cell.source.startswith("%%ddp")]
        for cell, explained in zip(cells, EXPLAINED, strict=True):
            assert re.search(explained, said_by(cell)), (explained, said_by(cell))


@pytest.mark.parametrize(
    "name", ["deadlocks.ipynb", "sam_finetune.ipynb", "sam_loop.ipynb", "sam_your_data.ipynb"]
)
def test_committed_outputs_are_of_this_source(name: str) -> None:
    """The notebook is committed with its outputs: every code cell has run, in order."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert any(said_by(cell) for cell in notebook.cells if cell.get("outputs"))


SLURM_SAYS = (
    "n1 4 idle", "local rank 1 of 4 on n2: 1111", "weight [1.0, 2.0, 3.0]",
    "rank 3 on n2 raised ValueError at line 3: a broken file",
    "rank 2 on n2 has not joined: it is at line 5, in time.sleep", "[ranks 0-3] from step 4",
    "restart 1 of 2", "103", "session lab (4 ranks) ended",
)  # fmt: skip


def test_what_the_notebook_of_slurm_shows() -> None:
    """As it was committed."""
    notebook = nbformat.read(NOTEBOOKS / "slurm.ipynb", as_version=4)
    assert [words for words in SLURM_SAYS if words not in _all_said(notebook)] == []


@pytest.mark.slow
def test_slurm(tmp_path: Path, slurm: SlurmCluster) -> None:
    """On a cluster of the tests it says the same."""
    notebook = execute("slurm.ipynb", tmp_path, env=slurm.env)
    assert [words for words in SLURM_SAYS if words not in _all_said(notebook)] == []


def _all_said(notebook: NotebookNode) -> str:
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    texts = [out.get("text") or out.get("data", {}).get("text/plain", "") for out in outputs]
    return plain("\n".join(texts))
