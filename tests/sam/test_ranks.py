"""Several ranks as processes with gloo: equal scores, equal gradients, no hang at the end."""

from __future__ import annotations

import os
import re
import socket
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import optim
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, Subset, random_split

from ddp_magic.sam.data.batches import Geometry, collate, prepare
from ddp_magic.sam.data.dataset import SamDataset
from ddp_magic.sam.data.samples import cells
from ddp_magic.sam.evaluation.evaluate import evaluate
from ddp_magic.sam.models.instances import InstanceDecoder
from ddp_magic.sam.models.model import PromptedSam
from ddp_magic.sam.models.tiny import tiny_sam
from ddp_magic.sam.models.tuning import tune
from ddp_magic.sam.process_group import cleanup, setup
from ddp_magic.sam.training.embeddings import store_embeddings
from ddp_magic.sam.training.loop import train
from ddp_magic.sam.training.losses import step_losses
from ddp_magic.sam.training.optimizers import Muon
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
    data = _uneven()
    wrapper = PromptedSam(tiny_sam(), rounds=3, auxiliary=InstanceDecoder(96))
    ddp = DDP(wrapper, find_unused_parameters=True) if world > 1 else wrapper
    own = [data[i] | {"instances": data.instances(i)} for i in range(rank, images, world)]
    batch = prepare(collate(own), Geometry(64))
    losses = step_losses(ddp, batch)
    objects = torch.tensor(float(len(losses)))
    if world > 1:
        dist.all_reduce(objects)
    (losses.sum() * world / objects).backward()  # as in train()
    gradients = {n: p.grad for n, p in wrapper.named_parameters() if p.grad is not None}
    del ddp
    return gradients


SMALL_STEPS = partial(optim.AdamW, lr=1e-4)


def _train(rank: int, world: int) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Train one epoch from weights that differ between ranks; those of rank 0 are used."""
    data, model = SamDataset(*cells(n=25)), tiny_sam(seed=rank)
    wrapper = PromptedSam(model, {"points": 1, "boxes": 1, "masks": 1}, rounds=2)
    options: dict[str, Any] = {"batch_size": 6 // world, "optimizer": SMALL_STEPS}
    history = train(wrapper, data, _uneven(), epochs=1, **options, transform=_invert)
    return history, {name: value.clone() for name, value in model.state_dict().items()}


def _invert(item: Any, generator: torch.Generator) -> Any:
    return (
        item | {"image": 255 - item["image"]} if torch.rand((), generator=generator) < 0.5 else item
    )


def _evaluate(rank: int, world: int) -> dict[str, float]:  # noqa: ARG001
    return evaluate(tiny_sam(), _uneven(), batch_size=2, instances=True)


@pytest.mark.slow
def test_scores_do_not_depend_on_the_number_of_ranks(tmp_path: Path) -> None:
    """1, 2 and 4 ranks agree, although 7 images are not divisible by 2 and 4."""
    one = _evaluate(0, 1)
    for world in (2, 4):
        for scores in run_ranks(world, tmp_path / str(world), _evaluate):
            assert scores == pytest.approx(one, abs=1e-12)
    assert one["count"] == sum(len(item["points"]) for item in _uneven()) == 16


@pytest.mark.parametrize(
    ("world", "images"), [(2, 2), (2, 4), pytest.param(4, 7, marks=pytest.mark.slow)]
)
def test_gradients_do_not_depend_on_the_number_of_ranks(
    tmp_path: Path, world: int, images: int
) -> None:
    """The gradient is that of the mean over all objects, even if a rank has none."""
    expected = _gradients(0, 1, images)
    for got in run_ranks(world, tmp_path / "ranks", partial(_gradients, images=images)):
        assert got.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_losses_do_not_depend_on_the_number_of_ranks(tmp_path: Path) -> None:
    """1, 2 and 3 ranks agree, and end with equal weights; 25 images are not divisible by 2 or 3."""
    ((one, weights),) = run_ranks(1, tmp_path / "1", _train)
    for world in (2, 3):
        (history, first), *others = run_ranks(world, tmp_path / str(world), _train)
        for name in ("train_loss", "dice", "wrong_prompt_dice"):
            assert history[0][name] == pytest.approx(one[0][name], rel=1e-3)
        for name, value in first.items():
            torch.testing.assert_close(value, weights[name], rtol=0, atol=5e-4)  # 5 steps of 1e-4
        for other, state in others:
            assert all(torch.equal(first[name], state[name]) for name in first)
            assert other[0]["train_loss"] == history[0]["train_loss"]


def _train_all_ways(rank: int, world: int, folder: str) -> list[Any]:
    """Train with mixed prompts, Muon, LoRA, a frozen encoder, the user's own loader, and others."""
    data, out = _uneven(), []
    loader = DataLoader(data, 2, sampler=DistributedSampler(data, world, rank))
    head = InstanceDecoder(96, weight=1.0)
    for images, how, prompts, options in (
        (data, "full", {"prompts": {"boxes": 1, "masks": 1}, "amp": "bf16"}, {}),
        (loader, "full", {"auxiliary": head}, {}),
        (data, "lora", {}, {"on_epoch": lambda _: rank == 1, "epochs": 3}),
        (data, "decoder", {}, {"out_dir": folder}),
        (data, "decoder", {}, {"out_dir": folder, "epochs": 2, "resume": True}),
    ):
        sam: Any = tiny_sam(seed=rank)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its name changes in transformers 6
            sam.gradient_checkpointing_enable()
        known: dict[str, Any] = {"epochs": 1, "batch_size": 1, "optimizer": SMALL_STEPS, **options}
        wrapper = PromptedSam(tune(sam, how), rounds=2, **prompts)
        known |= {"optimizer": lambda _, it=wrapper: Muon(it, lr=1e-3)} if prompts else {}
        history = train(wrapper, images, data, **known)
        state = {name: value.clone() for name, value in sam.state_dict().items()}
        out.append([history[-1]["dice_5"], history[-1]["train_loss"], len(history), state])
    return out


@pytest.mark.slow
def test_ranks_stay_equal_in_all_ways(tmp_path: Path) -> None:
    """No rank hangs, and all ranks end with the same weights and scores."""
    work = partial(_train_all_ways, folder=str(tmp_path / "out"))
    first, second = run_ranks(2, tmp_path / "2", work)
    assert [each[2] for each in first] == [1, 1, 1, 1, 2]  # rank 1 stopped the third
    for (*scores, state), (*scores2, state2) in zip(first, second, strict=True):
        assert scores == scores2
        assert all(torch.equal(state[name], state2[name]) for name in state)


def _refused(rank: int, world: int, folder: str) -> list[str]:  # noqa: ARG001
    """Return the errors of calls that one rank alone could refuse."""
    data, errors = _uneven(), []
    short = DataLoader(data, 2, sampler=list(range(7 - 3 * rank)))
    calls: list[dict[str, Any]] = [
        {"train_set": data, "out_dir": f"{folder}/0.pt/below"},
        {"train_set": short, "out_dir": f"{folder}/new"},
        {"train_set": data, "loss": lambda logits, target: (logits - target) ** 2 / (1 - rank)},
    ]
    for options in calls:
        Path(folder, "0.pt").touch()
        try:
            train(tiny_sam(), val_set=data, epochs=1, batch_size=1, **options)
        except (ArithmeticError, OSError, ValueError) as error:
            errors.append(str(error))
    return errors


def test_an_error_of_one_rank_is_an_error_of_all(tmp_path: Path) -> None:
    """A folder that rank 0 cannot write to; loaders that are not equally long; a loss of NaN."""
    first, second = run_ranks(2, tmp_path / "2", partial(_refused, folder=str(tmp_path / "2")))
    assert first == second
    assert "cannot write to out_dir" in first[0]
    assert "have 4, 2 batches" in first[1]
    assert re.match("the loss is .* in epoch 1, step 1, for image [0-6];", first[2])


def _differing(rank: int, world: int) -> list[str]:  # noqa: ARG001
    """Return the errors where each rank has data or weights of its own."""
    data, errors = SamDataset(*cells(n=10)), []
    own = torch.Generator().manual_seed(rank)
    uneven = Subset(data, range(6 + rank))
    mine, rest = random_split(data, [8, 2], own)
    other = SamDataset(*cells(n=8, seed=rank))
    calls: list[Callable[[], Any]] = [
        lambda: train(tiny_sam(), mine, data, epochs=1),
        lambda: train(tiny_sam(), data, rest, epochs=1),
        lambda: train(tiny_sam(), uneven, data, epochs=1),
        lambda: train(tiny_sam(), other, data, epochs=1),
        lambda: evaluate(tiny_sam(), rest),
        lambda: evaluate(tiny_sam(seed=rank), data),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="of rank 1 is another than that of rank 0") as caught:
            call()
        errors.append(str(caught.value))
    same = random_split(data, [8, 2], torch.Generator().manual_seed(0))
    evaluate(tiny_sam(), same[1])
    return errors


def test_ranks_with_other_data_or_weights_are_refused(tmp_path: Path) -> None:
    """Each would train on the held-out images of another, and the scores would be of neither."""
    first, second = run_ranks(2, tmp_path / "2", _differing)
    assert first == second
    said = [error.partition(" of rank 1")[0] for error in first]
    assert said == ["train_set", *["train_set or val_set"], "train_set", "train_set or val_set",
                    "dataset", "model"]  # fmt: skip
    assert "random_split(data, lengths, torch.Generator()" in first[0]


def _store(rank: int, world: int, folder: str) -> list[int]:  # noqa: ARG001
    """Return how many images this rank encoded, how many there are, and which have embeddings."""
    wrapper, seen = PromptedSam(tiny_sam().eval()), []
    wrapper.sam.vision_encoder.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    stored = store_embeddings(wrapper, _uneven(), Path(folder))
    return [sum(seen), len(stored), *(int(stored[i]["embeddings"][0].any()) for i in range(7))]


def test_the_ranks_share_the_encoding(tmp_path: Path) -> None:
    """One rank encodes each image; all ranks read all."""
    first, second = run_ranks(2, tmp_path / "2", partial(_store, folder=str(tmp_path / "maps")))
    assert (first[0], second[0]) == (4, 3)
    assert first[1:] == second[1:] == [7] + [1] * 7


def _wrapped(rank: int, world: int) -> tuple[float, float]:  # noqa: ARG001
    """Train and evaluate a model that is already wrapped in DDP."""
    data, model = _uneven(), tiny_sam()
    ddp: Any = DDP(model)
    (row,) = train(ddp, data, data, epochs=1, batch_size=2, optimizer=SMALL_STEPS)
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
