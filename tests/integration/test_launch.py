"""Starts: beside each other, under hostile environments, and with the cell's own process group."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.integration.kernel import Kernel

ALL_REDUCE = "t = torch.ones(1); dist.all_reduce(t); print('sum', t.item())"


def test_an_outer_launchers_environment_does_not_leak_in(new_kernel: Callable[..., Kernel]) -> None:
    """A notebook that was itself started by torchrun or srun launches as any other."""
    kernel = new_kernel(
        {
            "RANK": "5", "LOCAL_RANK": "5", "WORLD_SIZE": "9", "MASTER_ADDR": "nowhere.invalid",
            "MASTER_PORT": "1", "NODE_RANK": "3", "GROUP_RANK": "3", "TORCHELASTIC_RUN_ID": "x",
            "TORCHELASTIC_USE_AGENT_STORE": "False",
        }
    )  # fmt: skip
    result = kernel.run(
        f"%%ddp -n 2\n{ALL_REDUCE}\nprint(rank, world_size, os.environ.get('NODE_RANK'))"
    )
    assert result.lines.count("[rank 1] 1 2 None") == 1, result


def test_two_kernels_and_ten_starts_at_once(
    kernel: Kernel, new_kernel: Callable[..., Kernel]
) -> None:
    """Ten runs of two kernels overlap; each all_reduce sums its own two ranks."""
    kernels = [kernel, new_kernel()]

    def five_runs(kernel: Kernel) -> list[str]:
        return [kernel.run(f"%%ddp -n 2\n{ALL_REDUCE}").text for _ in range(5)]

    with ThreadPoolExecutor(2) as pool:
        texts = [text for texts in pool.map(five_runs, kernels) for text in texts]
    assert len(texts) == 10
    assert all(text.count("sum 2.0") == 2 for text in texts), texts


def test_ten_agents_start_at_once(tmp_path: Path) -> None:
    """Ten groups started at once each find their own two ranks, on ports of their own."""
    script = tmp_path / "ten.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, sys, time
            from ddp_magic.system.storage import process_storage
            from ddp_magic.wire.kernel_events import Stream
            from ddp_magic.wire.commands import Exit, RunCell
            from ddp_magic.engines.local import LocalEngine
            from ddp_magic.engines.torchrun import Torchrun
            from ddp_magic.system.environment import rank_environment
            from ddp_magic.kernel.worker_group.group import WorkerGroup

            engine = LocalEngine(fallback=Torchrun())
            groups = []
            for _ in range(10):
                directory = process_storage.new_run_directory()
                cell = directory.cell
                cell.write_text("import torch, torch.distributed as dist\\n" + sys.argv[1])
                group = WorkerGroup(directory, nproc=2, device="cpu")
                group.start(engine, rank_environment(os.environ, None, 2), sys.path, ())
                group.send(RunCell(path=str(cell)))
                group.send(Exit())
                groups.append(group)
            deadline = time.monotonic() + 250
            texts = [{0: "", 1: ""} for _ in groups]  # of each rank: lines of two may mix
            while not all(g.ended for g in groups) and time.monotonic() < deadline:
                for i, group in enumerate(groups):
                    if not group.ended:
                        for event in group.poll(0.01):
                            if isinstance(event, Stream):
                                texts[i][event.rank] += event.text
            for group in groups:
                group.close()
            engine.close()
            assert texts == [{0: "sum 2.0\\n", 1: "sum 2.0\\n"}] * 10, texts
            print("ten of ten")
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script), ALL_REDUCE],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout == "ten of ten\n", done.stderr


def test_the_cells_own_process_group(kernel: Kernel) -> None:
    """init ... destroy as under torchrun, a MASTER_PORT of the cell's own, and once more."""
    result = kernel.run(
        "%%ddp -n 2\n"
        "os.environ['MASTER_ADDR'] = 'localhost'; os.environ['MASTER_PORT'] = '12355'\n"
        "for _ in range(3):\n"
        "    dist.init_process_group('gloo', rank=rank, world_size=world_size)\n"
        f"    {ALL_REDUCE}\n"
        "    dist.destroy_process_group()\n"
    )
    assert result.status == "ok", result
    assert result.text.count("sum 2.0") == 6


def test_a_modules_own_process_group(kernel: Kernel) -> None:
    """A module that the cell imports, with its names bound at import, gets its own group too."""
    cwd = kernel.value("__import__('os').getcwd()")
    Path(cwd, "their_training.py").write_text(
        "import torch\nfrom torch.distributed import init_process_group, all_reduce\n"
        "from torch.distributed import destroy_process_group\n"
        "def main():\n    init_process_group(backend='gloo')\n    t = torch.ones(1)\n"
        "    all_reduce(t)\n    destroy_process_group()\n    return t.item()\n"
    )
    result = kernel.run("%%ddp -n 2\nfrom their_training import main\nprint(main())")
    assert sorted(result.lines) == ["[rank 0] 2.0", "[rank 1] 2.0"], result


def test_a_second_group_after_traffic_is_refused(kernel: Kernel) -> None:
    """Silently replacing a group that is in use would lose what was said on it."""
    result = kernel.run(f"%%ddp -n 2\n{ALL_REDUCE}\ndist.init_process_group('gloo')")
    assert "after it has used the default process group" in result.error["evalue"]
    assert "--no-init" in result.error["evalue"]


def test_backend(kernel: Kernel) -> None:
    """--backend goes to torch, whose own error about one that it lacks is shown."""
    given = kernel.run("%%ddp -n 2 --backend cpu:gloo\nprint(dist.get_backend_config())")
    assert sorted(given.lines) == ["[rank 0] cpu:gloo", "[rank 1] cpu:gloo"], given
    wrong = kernel.run("%%ddp -n 2 --backend mpi\n1")
    assert wrong.error["ename"] == "WorkerError"
    assert "MPI" in wrong.error["evalue"]


def test_no_init(kernel: Kernel) -> None:
    """--no-init leaves the process group to the cell."""
    result = kernel.run(
        "%%ddp -n 2 --no-init\nprint(dist.is_initialized())\n"
        f"dist.init_process_group()\n{ALL_REDUCE}"
    )
    assert result.text.count("] False") == 2, result
    assert result.text.count("sum 2.0") == 2


def test_the_timeout_of_collectives(kernel: Kernel) -> None:
    """--timeout ends a collective that a rank does not join."""
    result = kernel.run(
        "%%ddp -n 2 --timeout 2\nimport time\n"
        "if rank == 0:\n    dist.all_reduce(torch.ones(1))\nelse:\n    time.sleep(1000)"
    )
    assert result.error["ename"] == "WorkerError", result
    assert result.error["evalue"].startswith("rank 0 raised")


def test_pytorchs_basic_ddp_tutorial(kernel: Kernel) -> None:
    """The torchrun example of PyTorch's "Getting Started with DDP", word for word but nccl."""
    result = kernel.run(
        textwrap.dedent(
            """\
            %%ddp -n 2
            import os
            import torch
            import torch.distributed as dist
            import torch.nn as nn
            import torch.optim as optim

            from torch.nn.parallel import DistributedDataParallel as DDP

            class ToyModel(nn.Module):
                def __init__(self):
                    super(ToyModel, self).__init__()
                    self.net1 = nn.Linear(10, 10)
                    self.relu = nn.ReLU()
                    self.net2 = nn.Linear(10, 5)

                def forward(self, x):
                    return self.net2(self.relu(self.net1(x)))


            def demo_basic():
                dist.init_process_group("gloo")
                rank = dist.get_rank()
                print(f"Start running basic DDP example on rank {rank}.")
                model = ToyModel()
                ddp_model = DDP(model)
                loss_fn = nn.MSELoss()
                optimizer = optim.SGD(ddp_model.parameters(), lr=0.001)

                optimizer.zero_grad()
                outputs = ddp_model(torch.randn(20, 10))
                labels = torch.randn(20, 5)
                loss_fn(outputs, labels).backward()
                optimizer.step()
                dist.destroy_process_group()
                print(f"Finished running basic DDP example on rank {rank}.")

            if __name__ == "__main__":
                demo_basic()
            """
        )
    )
    assert result.status == "ok", result
    assert result.text.count("Finished running basic DDP example") == 2


def test_pytorchs_torchrun_training_script(kernel: Kernel) -> None:
    """The script of PyTorch's "Fault-tolerant Training with torchrun" lesson, on the CPU.

    argparse, a Trainer class, DistributedSampler, snapshots, its own process group.
    """
    script = textwrap.dedent(
        """\
        import torch
        import torch.nn.functional as F
        from torch.utils.data import Dataset, DataLoader
        import torch.multiprocessing as mp
        from torch.utils.data.distributed import DistributedSampler
        from torch.nn.parallel import DistributedDataParallel as DDP
        from torch.distributed import init_process_group, destroy_process_group
        import os


        class MyTrainDataset(Dataset):
            def __init__(self, size):
                self.size = size
                self.data = [(torch.rand(20), torch.rand(1)) for _ in range(size)]

            def __len__(self):
                return self.size

            def __getitem__(self, index):
                return self.data[index]


        def ddp_setup():
            init_process_group(backend="gloo")


        class Trainer:
            def __init__(self, model, train_data, optimizer, save_every, snapshot_path):
                self.rank = int(os.environ["RANK"])
                self.model = model
                self.train_data = train_data
                self.optimizer = optimizer
                self.save_every = save_every
                self.epochs_run = 0
                self.snapshot_path = snapshot_path
                if os.path.exists(snapshot_path):
                    print("Loading snapshot")
                    self._load_snapshot(snapshot_path)
                self.model = DDP(self.model)

            def _load_snapshot(self, snapshot_path):
                snapshot = torch.load(snapshot_path)
                self.model.load_state_dict(snapshot["MODEL_STATE"])
                self.epochs_run = snapshot["EPOCHS_RUN"]
                print(f"Resuming training from snapshot at Epoch {self.epochs_run}")

            def _run_batch(self, source, targets):
                self.optimizer.zero_grad()
                output = self.model(source)
                loss = F.cross_entropy(output, targets)
                loss.backward()
                self.optimizer.step()

            def _run_epoch(self, epoch):
                b_sz = len(next(iter(self.train_data))[0])
                print(f"Epoch {epoch} | Batchsize: {b_sz} | Steps: {len(self.train_data)}")
                self.train_data.sampler.set_epoch(epoch)
                for source, targets in self.train_data:
                    self._run_batch(source, targets)

            def _save_snapshot(self, epoch):
                snapshot = {
                    "MODEL_STATE": self.model.module.state_dict(),
                    "EPOCHS_RUN": epoch,
                }
                torch.save(snapshot, self.snapshot_path)
                print(f"Epoch {epoch} | Training snapshot saved at {self.snapshot_path}")

            def train(self, max_epochs):
                for epoch in range(self.epochs_run, max_epochs):
                    self._run_epoch(epoch)
                    if self.rank == 0 and epoch % self.save_every == 0:
                        self._save_snapshot(epoch)


        def main(save_every, total_epochs, batch_size, snapshot_path="snapshot.pt"):
            ddp_setup()
            train_set = MyTrainDataset(2048)
            model = torch.nn.Linear(20, 1)
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
            train_data = DataLoader(
                train_set, batch_size=batch_size, shuffle=False,
                sampler=DistributedSampler(train_set),
            )
            trainer = Trainer(model, train_data, optimizer, save_every, snapshot_path)
            trainer.train(total_epochs)
            destroy_process_group()


        if __name__ == "__main__":
            import argparse
            parser = argparse.ArgumentParser(description='simple distributed training job')
            parser.add_argument('total_epochs', type=int)
            parser.add_argument('save_every', type=int)
            parser.add_argument('--batch_size', default=32, type=int)
            args = parser.parse_args()

            main(args.save_every, args.total_epochs, args.batch_size)
        """
    )
    first = kernel.run("%%ddp -n 2 -- 2 1\n" + script)
    assert first.status == "ok", first
    assert first.text.count("Epoch 1 | Batchsize: 32 | Steps: 32") == 2
    second = kernel.run("%%ddp -n 2 -- 3 1 --batch_size 64\n" + script)
    assert second.text.count("Resuming training from snapshot at Epoch 1") == 2, second
    assert second.text.count("Epoch 2 | Batchsize: 64 | Steps: 16") == 2


def test_current_state_of_the_notebook(kernel: Kernel) -> None:
    """Working directory, environment and module path are the kernel's of now."""
    kernel.run(
        "import os, sys\nos.makedirs('deep', exist_ok=True); os.chdir('deep')\n"
        "os.environ['COLOR'] = 'blue'; sys.path.insert(0, '/somewhere')"
    )
    result = kernel.run(
        "%%ddp -n 1\nimport sys\nprint(os.path.basename(os.getcwd()), os.environ['COLOR'], "
        "'/somewhere' in sys.path)"
    )
    kernel.run("os.chdir('..')")
    assert "[rank 0] deep blue True\n" in result.text, result


def test_ranks_that_end_at_once(kernel: Kernel) -> None:
    """None is gone while its peers still connect to it, which they would take for its death."""
    results = [kernel.run("%%ddp -n 4\npass") for _ in range(30)]
    assert [r.traceback for r in results if r.status != "ok"] == []
    own = (
        "for _ in range(30):\n    dist.init_process_group('gloo')\n    dist.destroy_process_group()"
    )
    result = kernel.run(f"%%ddp -n 4\n{own}")
    assert result.status == "ok", result.traceback


def test_a_function_of_another_cell_is_told_by_its_cell(kernel: Kernel) -> None:
    """In the error and in the stack of a rank that died: the cell that calls it is ours."""
    kernel.run("import os, ddp_magic, torch.distributed as dist\ndef wait():\n    dist.barrier()")
    kernel.run("def step():\n    if dist.get_rank():\n        raise KeyError(1)\n    wait()")
    raised = kernel.run("ddp_magic.launch(step, nproc_per_node=2)").traceback
    assert re.search(r"rank 1 raised KeyError at Cell In\[\d+\], line 3", raised)
    assert re.search(r"rank 0: lost its connection to rank 1 at Cell In\[\d+\], line 3", raised)
    kernel.run("def step():\n    os.abort()")
    died = kernel.run("ddp_magic.launch(step, nproc_per_node=1)").traceback
    assert re.search(r"^ +Cell In\[\d+\], line 2, in step$", died, re.MULTILINE)
    assert "in <module>" not in died
