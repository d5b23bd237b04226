"""Scripts, written and run in this process: they find what a rank would."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ddp_magic.errors import CaptureError
from ddp_magic.kernel.options.option import OptionError
from tests.unit.kernel.script.notebooks import FakeNotebook, run_script
from tests.unit.kernel.script.programs import PROGRAMS


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The scripts are written here. Modules are found without the folder of the tests."""
    monkeypatch.chdir(tmp_path)
    roots = (sys.prefix, sys.base_prefix)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path.startswith(roots)])
    return tmp_path


def _printed(cells: list[str], text: str, line: str = "--no-init -g none") -> str:
    FakeNotebook(*cells).write(text, line)
    return run_script(Path("s.py"))[1].rstrip("\n")


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_script_does_what_the_cell_does(name: str) -> None:
    cells, text, printed = PROGRAMS[name]
    only = " --capture f" if name == "a subset of the names" else ""
    assert _printed(cells, text, "--no-init -g none" + only) == printed


def test_it_reads_as_a_person_would_write_it() -> None:
    notebook = FakeNotebook(
        "import functools\nfrom torch import nn\nscale = 2.0",
        "class Net(nn.Module):\n    # Scaled.\n    def forward(self, x):\n        return x * scale",
        "def loss(x, k=scale):\n    return x * k\nunused = object()",
    )
    text = """
        # One step.
        model = DDP(Net().to(device))
        for step in range(3):  # times
            total = loss(model(torch.ones(1)))
        if rank == 0:
            print(total)
        """
    said = notebook.write(text, "-n 2 --timeout 30 --seed 1 -- --lr '0 1'")
    assert said == ["s.py: torchrun --nproc-per-node 2 s.py --lr '0 1'"]
    assert (
        Path("s.py").read_text()
        == '''\
"""A cell, written by %%ddp --write.

torchrun --nproc-per-node 2 s.py --lr '0 1'
"""

import os
import random
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

rank = int(os.environ["RANK"])
if torch.cuda.is_available():
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
else:
    device = torch.device("cpu")

scale = 2.0


class Net(nn.Module):
    # Scaled.
    def forward(self, x):
        return x * scale


def loss(x, k=scale):
    return x * k


if __name__ == "__main__":
    if torch.cuda.is_available():
        torch.cuda.set_device(device)
    os.environ["TORCH_DIST_INIT_BARRIER"] = "1"  # no rank goes on before all are there
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", \
timeout=timedelta(seconds=30))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)

    # One step.
    model = DDP(Net().to(device))
    for step in range(3):  # times
        total = loss(model(torch.ones(1)))
    if rank == 0:
        print(total)
    dist.destroy_process_group()
'''
    )


def test_what_can_be_text_is_text() -> None:
    """Imports are the notebook's own, even of what another module calls otherwise."""
    notebook = FakeNotebook(
        "from threading import Lock\nfrom enum import Flag, IntEnum, auto\nimport functools\n"
        "class I(IntEnum):\n    X = 1\nclass F(Flag):\n    A = auto()\n"
        "class A:\n    __p: int = 1\n    @property\n    def x(self): return self.__p\n"
        "    @x.setter\n    def x(self, value, *, more=None): pass\n"
        "    @functools.lru_cache(maxsize=2)\n    def f(self): return F.A\n"
        "    class Inner:\n        y = 1\n"
        "import dataclasses\nk = {}\n@dataclasses.dataclass\nclass D:\n"
        "    x: dict = dataclasses.field(default_factory=lambda: dict(k))"
    )
    notebook.write("print(Lock, I.X, A, D)")
    assert not Path("s.pkl").exists()
    assert "from threading import Lock\n" in Path("s.py").read_text()


def test_the_environment_is_set_before_the_imports() -> None:
    FakeNotebook().write("import os\nos.environ['HF_HOME'] = '/x'\nimport numpy as np\nnp.ones(1)")
    text = Path("s.py").read_text()
    at = [
        text.index(words)
        for words in ("import os\n", "os.environ['HF_HOME'] = '/x'", "import torch")
    ]
    assert at == sorted(at)


def test_the_environment_of_other_cells_is_the_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that torchrun starts does not inherit it from the notebook."""
    for name in ("KEPT", "CHANGED", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "before")
    notebook = FakeNotebook(
        "import os\nos.environ['KEPT'] = 'a'\nos.environ['CHANGED'] = 'b'\n"
        "os.environ['CUDA_VISIBLE_DEVICES'] = ''",
        "os.environ.pop('CHANGED')",
    )
    notebook.write("print(rank)")
    assert "\nos.environ['KEPT'] = 'a'\nos.environ['CUDA_" in Path("s.py").read_text()
    notebook.write("print(rank)", "-g none")
    assert re.findall("os.environ.*=.*", Path("s.py").read_text()) == ["os.environ['KEPT'] = 'a'"]


def test_a_cell_that_reaches_no_torch_has_no_process_group() -> None:
    FakeNotebook("import math\ndef f(x: int): return math.sqrt(x)").write("print(f(rank))")
    assert "torch" not in Path("s.py").read_text().split('"""')[2]


def test_the_seed_is_for_every_cell() -> None:
    printed = {_printed([], "import random\nprint(random.random())", "--seed 3") for _ in range(2)}
    assert len(printed) == 1


@pytest.mark.parametrize(
    ("text", "ours", "end"),
    [
        ("x = torch.ones(1)", True, "    dist.destroy_process_group()\n"),
        ("dist.init_process_group('gloo')", False, "    if dist.is_initialized():\n        dist"),
        ("begin()\nprint(1)", False, "    if dist.is_initialized():\n        dist"),
        (
            "dist.destroy_process_group()\nnn",
            True,
            "    if dist.is_initialized():\n        dist",
        ),
        ("cleanup()\ntorch", True, "    if dist.is_initialized():\n        dist"),
        ("# init_process_group\ntorch.ones(1)", True, "    dist.destroy_process_group()\n"),
    ],
)
def test_there_is_one_process_group(text: str, ours: bool, end: str) -> None:
    """A cell, or a function that it calls, may create it, and destroy it, itself."""
    begin = "import torch.distributed as dist\ndef begin(): dist.init_process_group('gloo')"
    FakeNotebook(begin).write(text)
    script = Path("s.py").read_text()
    assert ('dist.init_process_group("cpu' in script) == ours
    assert end in script


def test_a_child_has_the_definitions_and_the_values_and_does_not_run_the_cell() -> None:
    notebook = FakeNotebook("offset = object()\ndef f(): return offset, SIZE")
    notebook.write("SIZE = 3\nclass A:\n    def g(self): return f()\nprint(A().g(), rank)\n")
    names, printed = run_script(Path("s.py"), as_child=True)
    assert not printed
    assert names["A"]().g() == (names["offset"], 3)


def test_in_a_child_no_class_is_registered_again() -> None:
    base = "names = []\nclass Base:\n    def __init_subclass__(cls): names.append(cls.__name__)\n"
    FakeNotebook(base + "class A(Base): pass").write("print(A, names)")
    assert run_script(Path("s.py"), as_child=True)[0]["names"] == ["A"]


def test_tensors_that_share_memory_still_do() -> None:
    notebook = FakeNotebook(
        "import torch\na = torch.zeros(4)\nb = a[1:3]\nc = a.view(torch.int32)\n"
        "layer = torch.nn.Linear(2, 2)\nopt = torch.optim.SGD(layer.parameters(), 0.1)\n"
        "u = torch.ones(2, dtype=torch.uint16)\nempty = torch.empty(0)\nh = a.half()"
    )
    text = "b += 1\nprint(a.tolist(), opt.param_groups[0]['params'][0] is layer.weight)\n"
    text += "print(c[1].item() == c[2].item() != 0, u, empty, h.dtype)"
    said = notebook.write(text, "--no-init -g none")
    assert re.match(r"s\.py, with s\.pkl \(\d KB\): CUDA_VISIBLE_DEVICES= torchrun", said[0])
    assert run_script(Path("s.py"))[1].splitlines() == [
        "[0.0, 1.0, 1.0, 0.0] True",
        "True tensor([1, 1], dtype=torch.uint16) tensor([]) torch.float16",
    ]


# --- what is refused ------------------------------------------------------------------------------


def _refusal(text: str = "1", line: str = "", to: str = "s.py", *cells: str) -> str:
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    with pytest.raises((OptionError, CaptureError)) as caught:
        FakeNotebook(*cells).write(text, line, to=to)
    after = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    assert before == after
    return str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "-s lab",
        "--pull a",
        "-o run",
        "--show 0",
        "-q",
        "--bg",
        "--detach",
        "--time-limit 3",
        "--profile",
        "--trace t.json",
        "--cold",
        "--engine slurm",
        "--engine-args '-p x'",
        "--debug",
        "--no-raise-error",
        "--engine torchrun",
    ],
)
def test_options_that_a_script_cannot_obey(line: str) -> None:
    refusal = _refusal(line=line)
    assert refusal.endswith(
        ": a script for torchrun has no equivalent: omit this option or --write"
    )


@pytest.mark.parametrize("line", ["-g free", "-g free:2"])
def test_idle_gpus_are_chosen_by_no_script(line: str) -> None:
    assert _refusal(line=line).startswith("gpus: a script does not choose idle GPUs")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("train", "invalid file name 'train': use a path such as train.py"),
        ("train.txt", "invalid file name 'train.txt'"),
        (".py", "invalid file name '.py'"),
        (".", "is a directory: use another name"),
        ("folder.py", "is a directory: use another name"),
        ("/proc/a.py", "'/proc/a.py' cannot be written ("),
        ("missing/a.py", "is not a directory: create it, or use another file"),
        ("mine.py", "'mine.py' exists, and --write has not written it: use another name"),
        ("empty.py", "'empty.py' exists, and --write has not written it: use another name"),
        ("data.py", "data.pkl', where its values would be, exists: use another name"),
        ("random.py", "random.py would hide the module random from all imports"),
        ("math.py", "math.py would hide the module math"),
        ("cloudpickle.py", "cloudpickle.py would hide the module cloudpickle"),
        ("folder.py/local.py", "local.py would hide the module local"),
    ],
)
def test_files_that_are_not_written(
    name: str, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    Path("folder.py").mkdir()
    Path("mine.py").write_text("mine")
    Path("empty.py").touch()
    Path("data.pkl").write_bytes(b"mine")
    Path("local.py").touch()
    assert words in _refusal(to=name)


def test_its_own_files_are_replaced() -> None:
    notebook = FakeNotebook("x = object()\ny = object()")
    notebook.write("print(x)")
    notebook.write("print(x, y, 2)")
    assert "print(x, y, 2)" in Path("s.py").read_text()
    assert Path("s.pkl").exists()
    notebook.write("print(3)")
    assert sorted(path.name for path in Path().iterdir()) == ["s.py"]  # no values any more


def test_a_script_may_be_called_as_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    Path("train").mkdir()
    for _ in range(2):  # nor does it hide itself
        FakeNotebook().write("print(rank)", to="train.py")


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (
            "x = open('/dev/null')",
            "cannot send `x` (TextIOWrapper) to the ranks: it is an open",
        ),
        ("x = (i for i in [1])", "cannot send `x` (generator) to the ranks: it is a generator"),
        ("def x():\n    get_ipython().system('ls')", "`x` uses IPython (%, ! or get_ipython())"),
    ],
)
def test_values_that_cannot_travel(cell: str, words: str) -> None:
    assert words in _refusal("print(x)", "", "s.py", cell)


def test_a_line_of_ipython_is_named_by_its_number_in_the_notebook() -> None:
    assert _refusal("x = 1\n!ls").startswith("write: line 3 is a shell command (!ls)")


def test_a_cell_that_runs_imports_none_of_this() -> None:
    code = "import sys, ddp_magic.kernel.api, ddp_magic.kernel.notebook.magics; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ddp_magic.kernel.api" in done.stdout
    assert "ddp_magic.kernel.script" not in done.stdout
