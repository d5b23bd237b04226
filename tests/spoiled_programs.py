"""Real programs with one line spoiled, and programs that are right and look slow.

As `tests.mistakes`, which has the small ones.
"""

from __future__ import annotations

from tests.mistakes import Mistake

PROGRAMS = [
    Mistake(
        "DDP: one rank does not come to its backward",
        """
        import time
        model = DDP(torch.nn.Linear(4, 1))
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(10):
            loss = model(torch.randn(8, 4)).pow(2).mean()
            if rank == 1 and step == 5:
                time.sleep(1000)  # "a bad batch": it never comes back
            loss.backward()
            opt.step()
        """,
        r"ranks 0, 2 wait in all_reduce #\d+ \(line 9, in Tensor\.backward\).*"
        r"rank 1 has not joined: it is at line 8, in time\.sleep",
    ),
    Mistake(
        "DDP: validation on rank 0 only with a collective in it",
        """
        model = DDP(torch.nn.Linear(4, 1))
        def evaluate():
            total = torch.zeros(1)
            for _ in range(3):
                total += model.module(torch.randn(8, 4)).detach().mean()
            dist.all_reduce(total)
            return total
        for epoch in range(2):
            model(torch.randn(8, 4)).sum().backward()
            if rank == 0:
                evaluate()
        """,
        r"rank 0 called all_reduce of float32 \[1\].*ranks 1, 2 called|called all_reduce #\d+.*but",
    ),
    Mistake(
        "DDP: a parameter unused on one rank",
        """
        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = torch.nn.Linear(4, 400), torch.nn.Linear(4, 400)
            def forward(self, x):
                return self.a(x).sum() + (self.b(x).sum() if rank != 2 else 0)
        model = DDP(Net(), bucket_cap_mb=0.001)
        for step in range(5):
            model(torch.randn(8, 4)).backward()
        """,
        r"ranks 0, 1 called all_reduce #\d+ \(line 10\), but rank 2 did not",
    ),
    Mistake(
        "FSDP2: one rank leaves the loop early",
        """
        import time
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.device_mesh import init_device_mesh
        mesh = init_device_mesh("cpu", (world_size,))
        model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 9))
        for layer in model: fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        for step in range(6 if rank != 1 else 4):
            model(torch.randn(4, 8)).sum().backward()
        if rank == 1: time.sleep(1000)
        """,
        r"ranks 0, 2 wait in \w+ #\d+.*rank 1 has not joined: it is at line 11, in time\.sleep",
    ),
    Mistake(
        "FSDP2: a state dict saved on rank 0 only",
        """
        import time
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.checkpoint.state_dict import get_model_state_dict, StateDictOptions
        mesh = init_device_mesh("cpu", (world_size,))
        model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 9))
        fully_shard(model, mesh=mesh)
        model(torch.randn(4, 8)).sum().backward()
        if rank == 0:
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            get_model_state_dict(model, options=options)
        time.sleep(1000 if rank else 0)
        """,
        r"rank 0 waits in \w+ #\d+.*ranks 1, 2 have not joined: each is at line 13, in time\.sleep",
    ),
    Mistake(
        "pipeline: the middle stage computes for ever",
        """
        import time
        from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
        class Slow(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.l = torch.nn.Linear(8, 8)
            def forward(self, x):
                if rank == 1: time.sleep(1000)
                return self.l(x)
        stage = PipelineStage(Slow(), rank, world_size, torch.device("cpu"))
        schedule = ScheduleGPipe(stage, n_microbatches=2)
        if rank == 0: schedule.step(torch.randn(4, 8))
        else: schedule.step()
        """,
        r"rank 2 waits.*rank 1",
    ),
    Mistake(
        "accelerate: gather for metrics on the main process only",
        """
        from accelerate import Accelerator
        accelerator = Accelerator(cpu=True)
        model = accelerator.prepare(torch.nn.Linear(4, 1))
        for step in range(3):
            loss = model(torch.randn(8, 4)).sum()
            accelerator.backward(loss)
        if accelerator.is_main_process:
            accelerator.gather_for_metrics(loss)
        accelerator.wait_for_everyone()
        """,
        r"rank 0 called all_gather|rank 0 waits in all_gather",
    ),
    Mistake(
        "accelerate: save_state with a barrier in one branch",
        """
        from accelerate import Accelerator
        accelerator = Accelerator(cpu=True)
        model = accelerator.prepare(torch.nn.Linear(4, 1))
        for step in range(5):
            accelerator.backward(model(torch.randn(8, 4)).sum())
            if accelerator.is_main_process and step == 2:
                accelerator.wait_for_everyone()
        """,
        r"rank 0 called barrier.*ranks 1, 2 called all_reduce",
    ),
    Mistake(
        "Trainer: a callback that synchronizes on rank 0",
        """
        from transformers import Trainer, TrainingArguments, TrainerCallback
        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.l = torch.nn.Linear(4, 1)
            def forward(self, x, labels=None):
                return {"loss": self.l(x).pow(2).mean()}
        class Sync(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.is_world_process_zero and state.global_step == 2:
                    dist.barrier()
        data = [{"x": torch.randn(4), "labels": torch.zeros(1)}] * 480
        args = TrainingArguments("out", max_steps=6, report_to=[], use_cpu=True, disable_tqdm=True)
        Trainer(Net(), args, train_dataset=data, callbacks=[Sync()]).train()
        """,
        r"rank 0 called barrier",
    ),
    Mistake(
        "DDP: a stream that is shorter on one rank",
        """
        import time
        from torch.utils.data import IterableDataset
        class Stream(IterableDataset):
            def __iter__(self):
                for i in range(20 if rank != 2 else 9):
                    yield torch.randn(4)
        model = DDP(torch.nn.Linear(4, 1))
        loader = torch.utils.data.DataLoader(Stream(), batch_size=2)
        for x in loader:
            model(x).sum().backward()
        if rank == 2: time.sleep(1000)
        """,
        r"ranks 0, 1 wait in all_reduce #\d+ \(line 11, in Tensor\.backward\).*"
        r"rank 2 has not joined: it is at line 12, in time\.sleep",
    ),
]

FALSE_ALARMS = [
    Mistake(
        "a loop of small collectives, and of sends and receives",
        """
        import time
        began, x = time.time(), torch.ones(4)
        for step in range(100_000):
            dist.all_reduce(x)
            if step % 100 == 0:
                stop = torch.tensor(float(time.time() - began > 8))
                dist.broadcast(stop, 0)
                if stop: break
        for step in range(10):
            if rank == 0: time.sleep(0.8)
            if rank == 0: dist.send(x, 1)
            if rank == 1: dist.recv(x, 0)
        """,
        r"",
    ),
    Mistake(
        "a collective that goes on in the background",
        """
        import time
        work = dist.all_reduce(torch.ones(4), async_op=True) if rank != 1 else None
        time.sleep(8)
        if rank == 1: dist.all_reduce(torch.ones(4))
        else: work.wait()
        """,
        r"",
    ),
    Mistake(
        "validation on rank 0",
        """
        import time
        if rank == 0:
            t = time.time()
            while time.time() - t < 12: torch.randn(200, 200) @ torch.randn(200, 200)
        dist.barrier()
        """,
        r"ranks 1, 2 wait in barrier #1 \(line 6\).*rank 0 has not joined: it computes at line 5",
    ),
    Mistake(
        "uneven inputs with Join",
        """
        from torch.distributed.algorithms.join import Join
        model = DDP(torch.nn.Linear(4, 1))
        with Join([model]):
            for _ in range(5 + rank):
                model(torch.randn(8, 4)).sum().backward()
        """,
        r"",
    ),
    Mistake(
        "gradient accumulation",
        """
        model = DDP(torch.nn.Linear(4, 1))
        for i in range(12):
            if i % 4 != 3:
                with model.no_sync():
                    model(torch.randn(8, 4)).sum().backward()
            else:
                model(torch.randn(8, 4)).sum().backward()
        """,
        r"",
    ),
    Mistake(
        "a slow first batch",
        """
        import time
        time.sleep(7 + rank)
        model = DDP(torch.nn.Linear(4, 1))
        model(torch.randn(8, 4)).sum().backward()
        """,
        r"",
    ),
    Mistake(
        "asynchronous collectives",
        """
        import time
        works = [dist.all_reduce(torch.ones(10), async_op=True) for _ in range(20)]
        time.sleep(7)
        for work in works: work.wait()
        """,
        r"",
    ),
    Mistake(
        "objects of other sizes",
        """
        out = [None] * 3
        dist.all_gather_object(out, list(range(rank * 100)))
        box = [list(range(1000)) if rank == 0 else None]
        dist.broadcast_object_list(box, src=0)
        dist.gather_object(rank, out if rank == 0 else None)
        got = [None]
        dist.scatter_object_list(got, [[1], [2, 3], "x" * 100] if rank == 0 else None, src=0)
        print(len(box[0]), got)
        """,
        r"",
    ),
    Mistake(
        "uneven all_to_all and gather lists",
        """
        outs = [torch.zeros(r + 1) for r in range(3)]
        dist.all_gather([torch.zeros(4) for _ in range(3)], torch.ones(4))
        dist.gather(torch.ones(3), [torch.zeros(3) for _ in range(3)] if rank == 0 else None)
        dist.scatter(torch.zeros(3), [torch.ones(3)] * 3 if rank == 0 else None)
        dist.reduce(torch.ones(3), 1)
        a = torch.ones(sum(range(3)) + 3)
        """,
        r"",
    ),
    Mistake(
        "subgroups of which each rank has its own",
        """
        a, b, c = (dist.new_group(members) for members in ([0, 1], [1, 2], [0, 2]))
        for group, times in ((a, 1), (b, 3), (c, 5)):
            for _ in range(times if dist.get_rank(group) >= 0 else 0):
                dist.all_reduce(torch.ones(times), group=group)
        """,
        r"",
    ),
    Mistake(
        "messages between two ranks, and collectives of all",
        """
        for step in range(3):
            if rank == 0: dist.send(torch.ones(3), 1)
            if rank == 1: dist.recv(torch.ones(3), 0)
            dist.all_reduce(torch.ones(2))
        """,
        r"",
    ),
]

SHORT_FALSE_ALARMS = (  # those that take less than a second
    "objects of other sizes",
    "uneven inputs with Join",
    "subgroups of which each rank has its own",
    "messages between two ranks, and collectives of all",
)
