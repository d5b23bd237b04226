"""`--write`: the scripts do under plain torchrun what the cells do in the notebook."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.kernel import Kernel, Result
from tests.limits import HANG_S

TRAINING = """
from dataclasses import dataclass
import torch
from torch import nn
from torch.utils.data import Dataset
@dataclass
class Config:
    lr: float = 0.1
    factor: int = 2
class Points(Dataset):
    def __len__(self): return 8
    def __getitem__(self, i): return torch.full((3,), float(i) * config.factor)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 1)
        nn.init.constant_(self.last.weight, 0.5)
        nn.init.zeros_(self.last.bias)
    def forward(self, x): return self.last(x) * scale[0]
config, net, scale = Config(factor=3), Net(), torch.ones(1)
optimizer = torch.optim.SGD(net.parameters(), lr=config.lr)
"""

# Cells above, the line, the cell.
PROGRAMS = {
    "a training": (
        TRAINING,
        "-n 2 --seed 1 --timeout 60",
        """
# The model and its optimizer are the notebook's.
class Stacked(Points):
    '''Points,
as they are.'''
loader = DataLoader(
    Stacked(), batch_size=2, num_workers=1, multiprocessing_context="spawn",
    sampler=DistributedSampler(Stacked(), shuffle=True, seed=int(torch.randint(9, (1,)))),
)
model = DDP(net)
for x in loader:
    loss = F.mse_loss(model(x), torch.zeros(2, 1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"{rank} {loss.item():.4f} {net.last.bias.item():.4f}", isinstance(net, Net), config)
f"{rank} {device}"
""",
    ),
    "a script of its own": (
        "def described(parts, sep=', '):\n    return sep.join(map(str, parts))\n",
        "-n 2 -- --lr 0.1 --name 'a b'",
        """
import argparse
import torch.distributed as dist
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--name")
args = parser.parse_args()
dist.init_process_group("gloo")
every = [None] * dist.get_world_size()
dist.all_gather_object(every, described([dist.get_rank(), args.lr, args.name]))
print(every)
dist.destroy_process_group()
""",
    ),
    "names of the prelude": (
        "rank = 16\n",
        "-n 2 -g none --backend gloo",
        """
total = torch.ones(2, device=device) * rank
dist.all_reduce(total)
picture, mask = cells(n=1, seed=0)[0][0], cells(n=1, seed=0)[1][0]
print(rank, world_size, total, np.shape(picture), pixel_accuracy.__name__, np.sum(mask) > 0)
""",
    ),
}


def _by_torchrun(said: str, folder: Path) -> list[str]:
    """Run the command that was printed, in a process that knows nothing of the notebook."""
    words = shlex.split(said.partition(": ")[2])
    at = words.index("torchrun")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= dict(word.split("=", 1) for word in words[:at])
    # A file for each rank: in one pipe their lines mix.
    run = ["-m", "torch.distributed.run", "--standalone", "--log-dir", "logs", "--redirects", "3"]
    subprocess.run(
        [sys.executable, *run, *words[at + 1 :]], cwd=folder, env=env, timeout=HANG_S, check=False
    )
    errors = [path.read_text() for path in (folder / "logs").rglob("stderr.log")]
    texts = [path.read_text() for path in (folder / "logs").rglob("stdout.log")]
    assert len(texts) == 2, errors
    assert not any("Traceback" in error for error in errors), errors
    return sorted(line for text in texts for line in text.splitlines())


def _of_ranks(result: Result) -> list[str]:
    """Return what the ranks of a cell printed, and the values of their last expressions."""
    lines = [line for line in result.lines if line.startswith("[rank ")]
    return sorted(re.sub(r"^\[rank \d+\] ", "", line) for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_script_prints_what_the_cell_prints(kernel: Kernel, tmp_path: Path, name: str) -> None:
    above, line, text = PROGRAMS[name]
    assert kernel.run(above).status == "ok"
    *options, arguments = line.partition(" -- ")
    options[1] = f" --write {tmp_path}/made.py -- " if arguments else f" --write {tmp_path}/made.py"
    written = kernel.run(f"%%ddp {''.join(options)}{arguments}\n{text}")
    assert written.status == "ok", written.traceback
    cell = kernel.run(f"%%ddp {line}\n{text}")
    assert cell.status == "ok", cell.traceback
    printed = _by_torchrun(written.lines[-1], tmp_path)
    assert len(printed) >= 2
    assert printed == _of_ranks(cell)


def test_it_starts_nothing(kernel: Kernel, tmp_path: Path) -> None:
    """Neither a rank nor a run; defaults that a script has no use for do not matter."""
    setup = "%config DDPMagics.quiet = True\n%config DDPMagics.gpus = 'free:2'"
    kernel.run(setup + "\n%config DDPMagics.nproc_per_node = 3")
    result = kernel.run(f"%%ddp --write {tmp_path}/made.py\nprint(rank)")
    path = tmp_path / "made.py"
    assert result.text == f"{path}: torchrun --nproc-per-node 3 {path}\n"
    assert path.read_text().startswith('"""Cell In[')
    assert "made" not in kernel.run("%ddp_status").text
    again = kernel.run("import ddp_magic\n" + f"ddp_magic.run('rank', write='{path}')")
    assert again.text == f"{path}: torchrun --nproc-per-node 2 {path}\n"
    assert path.read_text().startswith('"""A cell, written by')
    wrong = kernel.run("ddp_magic.launch(print, write='a.py')")
    assert wrong.error["evalue"].startswith("launch has no option write: run writes")
    wrong = kernel.run("ddp_magic.run('1', write='-')")
    assert wrong.error["evalue"] == "write: invalid file name '-': use a path such as train.py"
    wrong = kernel.run(f"%%ddp --write {path} --session lab\n1")
    assert "%%ddp --session: a script for torchrun has no equivalent" in wrong.text
    wrong = kernel.run(f"%%ddp --write {path}\n!ls")
    assert "%%ddp --write: line 2 is a shell command (!ls): use subprocess.run(" in wrong.text
