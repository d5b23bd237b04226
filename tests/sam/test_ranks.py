"""Several ranks as processes with gloo: equal scores, equal gradients, no hang at the end."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.overrides import TorchFunctionMode

from ddp_magic.sam.batches import Geometry, collate, prepare
from ddp_magic.sam.data import SamDataset
from ddp_magic.sam.dry_run import find_unused
from ddp_magic.sam.embeddings import store_embeddings
from ddp_magic.sam.evaluation import evaluate
from ddp_magic.sam.instances import InstanceDecoder
from ddp_magic.sam.losses import step_losses
from ddp_magic.sam.model import PromptedSam
from ddp_magic.sam.optimizers import Muon
from ddp_magic.sam.process_group import cleanup, setup
from ddp_magic.sam.samples import cells
from ddp_magic.sam.tiny import tiny_sam
from ddp_magic.sam.training import train
from ddp_magic.sam.tuning import choose_trained
from tests.limits import HANG_S

# The forkserver imports once; then each rank is a fork. It starts with the first test.
mp.set_forkserver_preload(["tests.sam.test_ranks"])


def _rank(rank: int, world: int, folder: str, work: Callable[[int, int], Any]) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
        torch.save(work(rank, world), f"{folder}/{rank}.pt")
        cleanup()
    except Exception:
        Path(folder, f"{rank}.txt").write_text(traceback.format_exc())
        raise


def run_ranks(world: int, folder: Path, work: Callable[[int, int], Any]) -> list[Any]:
    """Run `work(rank, world)` in `world` processes; return the results by rank."""
    folder.mkdir()
    context = mp.get_context("forkserver")
    ranks = [
        context.Process(target=_rank, args=(r, world, str(folder), work), daemon=True)
        for r in range(world)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(HANG_S)
    hung = [r for r, process in enumerate(ranks) if process.is_alive()]
    for process in ranks:
        process.kill()
    errors = [path.read_text() for path in sorted(folder.glob("*.txt"))]
    assert not errors, "\n".join(errors)
    assert not hung, f"ranks {hung} did not end in {HANG_S} s"
    return [torch.load(folder / f"{r}.pt", weights_only=False) for r in range(world)]


def _uneven() -> SamDataset:
    """Return seven images; image 1 has no prompt, and image 3 only one."""
    images, masks, clicks = cells(n=7)
    limits = [3, 0, 3, 1, 3, 3, 3]
    kept = [row for i in range(7) for row in clicks[clicks[:, 0] == i][: limits[i]]]
    return SamDataset(images, masks, kept)


def _gradients(rank: int, world: int, images: int) -> dict[str, torch.Tensor]:
    """Return the gradient of one step, with the images distributed over the ranks."""
    wrapper, data = PromptedSam(tiny_sam(), rounds=3), _uneven()
    choose_trained(wrapper.sam, "full")
    find_unused(wrapper, {"points": prepare(collate([data[0]]), Geometry(64))}, [3])
    wrapper.auxiliary = InstanceDecoder(96)
    ddp = DDP(wrapper) if world > 1 else wrapper
    batch = prepare(collate([data[i] for i in range(rank, images, world)]), Geometry(64))
    losses = step_losses(ddp, batch)
    objects = torch.tensor(float(len(losses)))
    if world > 1:
        dist.all_reduce(objects)
    (losses.sum() * world / objects).backward()  # as in train()
    gradients = {n: p.grad for n, p in wrapper.named_parameters() if p.grad is not None}
    del ddp
    return gradients


def _train(rank: int, world: int) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:  # noqa: ARG001
    """Train one epoch from weights that differ between ranks; those of rank 0 are used."""
    data, model = _uneven(), tiny_sam(seed=rank)
    history = train(model, data, data, epochs=1, batch_size=2, lr=1e-4)
    return history, {name: value.clone() for name, value in model.state_dict().items()}


def _evaluate(rank: int, world: int) -> dict[str, float]:  # noqa: ARG001
    return evaluate(tiny_sam(), _uneven(), batch_size=2)


def test_scores_do_not_depend_on_the_number_of_ranks(tmp_path: Path) -> None:
    """1, 2 and 4 ranks agree, although 7 images are not divisible by 2 and 4."""
    one = _evaluate(0, 1)
    for world in (2, 4):
        for scores in run_ranks(world, tmp_path / str(world), _evaluate):
            assert scores == pytest.approx(one, abs=1e-12)
    assert one["count"] == len(_uneven().points) == 16


@pytest.mark.parametrize(("world", "images"), [(2, 2), (2, 4), (4, 7)])
def test_gradients_do_not_depend_on_the_number_of_ranks(
    tmp_path: Path, world: int, images: int
) -> None:
    """The gradient is that of the mean over all objects, even if a rank has none."""
    expected = _gradients(0, 1, images)
    for got in run_ranks(world, tmp_path / "ranks", partial(_gradients, images=images)):
        assert got.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=1e-5)


def test_training_keeps_the_ranks_equal(tmp_path: Path) -> None:
    """After an epoch both ranks have the same weights and the same history."""
    (history, first), (other_history, second) = run_ranks(2, tmp_path / "2", _train)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for key in ("train_loss", "dice", "iou", "wrong_prompt_dice"):
        assert history[0][key] == other_history[0][key]


def _train_all_ways(rank: int, world: int, folder: str) -> list[Any]:  # noqa: ARG001
    """Train with mixed prompts, averages, Muon, LoRA, a frozen encoder, and others."""
    data = _uneven()
    mixed = {"points": 1, "boxes": 1, "masks": 1}
    out: list[Any] = []
    for options in (
        {"prompts": mixed, "ema": 0.9, "accumulate": 2, "amp": "bf16"},
        {"optimizer": "muon", "rounds": (1, 2), "epochs": 2, "auxiliary": 1.0},
        {"tune": "lora"},
        {"tune": "decoder"},
        {"tune": "decoder", "out_dir": folder, "save_every": 1},
        {"tune": "decoder", "out_dir": folder, "epochs": 2, "resume": True},
    ):
        model = tiny_sam(seed=rank)
        known: dict[str, Any] = {"epochs": 1, "batch_size": 1, "lr": 1e-3, **options}
        history = train(model, data, data, **known)
        out.append([history[-1]["dice_5"], history[-1]["train_loss"], model.state_dict()])
    return out


def test_ranks_stay_equal_with_every_option(tmp_path: Path) -> None:
    """No rank hangs, and all ranks end with the same weights and scores."""
    work = partial(_train_all_ways, folder=str(tmp_path / "out"))
    first, second = run_ranks(2, tmp_path / "2", work)
    for (dice, loss, state), (dice2, loss2, state2) in zip(first, second, strict=True):
        assert (dice, loss) == (dice2, loss2)
        assert all(torch.equal(state[name], state2[name]) for name in state)


class Products(TorchFunctionMode):
    """Counts the matrix products of `orthogonalize`: two in each of its five steps."""

    count = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.baddbmm:
            self.count += len(args[0])
        return function(*args, **(kwargs or {}))


def _muon(rank: int, world: int) -> tuple[list[torch.Tensor], int]:  # noqa: ARG001
    """Take two steps with Muon; return the weights, and the matrices that this rank processed."""
    generator = torch.Generator().manual_seed(0)
    matrices = [nn.Parameter(torch.randn(a, 6, generator=generator)) for a in (4, 4, 4, 9, 2)]
    muon = Muon(matrices, [nn.Parameter(torch.zeros(1))], lr=0.1)
    with Products() as products:
        for _ in range(2):
            for matrix in matrices:
                matrix.grad = torch.randn(matrix.shape, generator=generator)
            muon.step()
    return [matrix.detach() for matrix in matrices], products.count // 10


def test_ranks_share_the_work_of_muon(tmp_path: Path) -> None:
    """One rank processes each matrix, and all ranks get the same weights as a single rank."""
    alone, _ = _muon(0, 1)
    shared = run_ranks(2, tmp_path / "2", _muon)
    assert sorted(processed for _, processed in shared) == [4, 6]  # of 5 matrices in 2 steps
    for weights, _ in shared:
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(alone, weights, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(shared[0][0], shared[1][0], strict=True))


def _store(rank: int, world: int, folder: str) -> list[int]:  # noqa: ARG001
    """Return how many images this rank encoded, how many there are, and which have embeddings."""
    wrapper, seen = PromptedSam(tiny_sam().eval()), []
    wrapper.sam.vision_encoder.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    stored = store_embeddings(wrapper, _uneven(), Path(folder))
    return [sum(seen), len(stored), *(int(stored.maps[0][i].any()) for i in range(7))]


def test_the_ranks_share_the_encoding(tmp_path: Path) -> None:
    """One rank encodes each image (and all encode one for its shape); all ranks read all."""
    first, second = run_ranks(2, tmp_path / "2", partial(_store, folder=str(tmp_path / "maps")))
    assert (first[0], second[0]) == (1 + 4, 1 + 3)
    assert first[1:] == second[1:] == [7] + [1] * 7


def _wrapped(rank: int, world: int) -> tuple[float, float]:  # noqa: ARG001
    """Train and evaluate a model that is already wrapped in DDP."""
    data, model = _uneven(), tiny_sam()
    ddp: Any = DDP(model)
    (row,) = train(ddp, data, data, epochs=1, batch_size=2, lr=1e-4)
    scores = evaluate(ddp, data)
    del ddp
    return row["dice"], scores["dice"]


def test_a_model_in_ddp_is_supported(tmp_path: Path) -> None:
    """train() and evaluate() unwrap the model, and the ranks agree."""
    first, second = run_ranks(2, tmp_path / "2", _wrapped)
    assert first == second
    assert first[0] == pytest.approx(first[1], abs=1e-3)


def _guide(rank: int, world: int, port: int, folder: str) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)
    device = setup(rank, world, port)
    assert setup() == device  # a second call changes nothing
    total = torch.ones(1)
    dist.all_reduce(total)
    cleanup()
    cleanup()
    Path(folder, str(rank)).write_text(str(total.item()))


def test_setup_with_rank_world_size_and_port(tmp_path: Path) -> None:
    """setup(rank, world_size, port) initializes a process group, with gloo without a GPU."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(_guide, (2, port, str(tmp_path)), nprocs=2, start_method="forkserver")
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["2.0", "2.0"]


def test_setup_without_a_launcher_makes_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a plain process there is no process group; passing some of the arguments is an error."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert setup().type in {"cpu", "cuda"}
    assert not dist.is_initialized()
    cleanup()
    with pytest.raises(ValueError, match="together"):
        setup(0, 2)


def test_setup_reads_torchruns_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variables of torchrun, the process group is initialized from them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    for name, value in zip(names, ("0", "1", "0", "127.0.0.1", str(port)), strict=True):
        monkeypatch.setitem(os.environ, name, value)
    try:
        setup()
        assert dist.is_initialized()
        assert dist.get_world_size() == 1
    finally:
        cleanup()
    assert not dist.is_initialized()
