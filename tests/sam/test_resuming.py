"""Resuming an interrupted training gives the same result, or is refused."""

from __future__ import annotations

import random
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import optim
from torch.utils.data import DataLoader, Subset

from ddp_magic.prelude import SamDataset, cells, tiny_sam, train
from ddp_magic.sam.models.instances import InstanceDecoder
from ddp_magic.sam.models.model import PromptedSam
from ddp_magic.sam.models.tuning import plain_state, tune
from ddp_magic.sam.training.checkpoint import load, note_config, save
from ddp_magic.sam.training.optimizers import Muon
from ddp_magic.sam.training.out_dir import check_space, claim


class PowerCutError(Exception):
    """Ends training in the middle."""


class Cut(SamDataset):
    """A data set that loses power after some items."""

    left = 10**9

    def __getitem__(self, index: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise PowerCutError
        return super().__getitem__(index)


class NoisyCut(Cut):
    """Draws random numbers as a user's own data set may, and loses power after some items."""

    def __getitem__(self, index: int) -> Any:
        item = super().__getitem__(index)
        noise = int(torch.randint(9, ())) + random.randrange(9) + np.random.randint(9)
        return item | {"image": item["image"] // 2 + noise, "instances": self.instances(index)}


def inverted(item: Any, generator: torch.Generator) -> Any:
    """Augment an item."""
    return (
        item | {"image": 255 - item["image"]} if torch.rand((), generator=generator) < 0.5 else item
    )


IMAGES = 5
# Items before the first epoch: to find one with objects, and for the sizes of all.
READ_FIRST = 1 + IMAGES
TIMING = {"seconds", "images_per_s", "data_wait"}


@pytest.mark.slow
@pytest.mark.parametrize("what", ["full", "lora"])
def test_resuming_is_exact(tmp_path: Path, what: str) -> None:
    """Weights, scores and random numbers equal those without an interruption."""
    val = SamDataset(*cells(n=3, seed=1))
    options: dict[str, Any] = {"epochs": 3, "batch_size": 2, "transform": inverted}

    def run(model: PromptedSam, data: Any, **others: Any) -> list[dict[str, float]]:
        def optimizer(parameters: Any) -> optim.Optimizer:
            muon = what == "full"
            return Muon(model, lr=5e-3) if muon else optim.AdamW(parameters, lr=1e-3)

        return train(model, data, val, optimizer=optimizer, seed=-(2**70), **options, **others)

    def fresh(model_seed: int = 0) -> tuple[PromptedSam, NoisyCut]:
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)
        sam = tune(tiny_sam(seed=model_seed), what)
        kinds = {"points": 1, "boxes": 1, "masks": 1}
        head = InstanceDecoder(96, weight=0.5)
        wrapper = PromptedSam(sam, kinds, rounds=2, amp="fp16", auxiliary=head)
        return wrapper, NoisyCut(*cells(n=IMAGES))

    whole, data = fresh()
    expected = run(whole, data)
    after = torch.rand(3), random.random(), np.random.rand()

    model, data = fresh()
    data.left = READ_FIRST + 2 * IMAGES + 3  # in the third epoch
    with pytest.raises(PowerCutError):
        run(model, data, out_dir=tmp_path)
    resumed, data = fresh(model_seed=7)
    torch.rand(99)  # a new process has another random state
    history = run(resumed, data, out_dir=tmp_path, resume=True)
    now, then = plain_state(resumed.sam), plain_state(whole.sam)
    assert all(torch.equal(now[name], then[name]) for name in then)
    for row, true in zip(history, expected, strict=True):
        assert {k: v for k, v in row.items() if k not in TIMING} == pytest.approx(
            {k: v for k, v in true.items() if k not in TIMING}, rel=1e-12, nan_ok=True
        )
    drawn = torch.rand(3), random.random(), np.random.rand()
    assert torch.equal(drawn[0], after[0])
    assert drawn[1:] == after[1:]
    assert 10**9 - data.left == READ_FIRST + IMAGES  # those of the third epoch


@pytest.fixture(scope="module")
def sets() -> tuple[SamDataset, SamDataset]:
    return SamDataset(*cells(n=4)), SamDataset(*cells(n=2, seed=1))


@pytest.fixture(scope="module")
def once(sets: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an epoch's training, which was given as one of the home directory."""
    folder = tmp_path_factory.mktemp("once")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder.parent))
        train(PromptedSam(tiny_sam(), rounds=1), *sets, epochs=1, out_dir=f"~/{folder.name}")
    return folder


def test_a_shuffled_loader_of_the_users_own_is_resumed_exactly(sets: Any, tmp_path: Path) -> None:
    """Its order is drawn from the global random state, which each epoch seeds."""
    ends = []
    for cut in (False, True):
        torch.manual_seed(3)
        sam, options = tiny_sam(), {"out_dir": tmp_path / str(cut)}
        loader = DataLoader(sets[0], 2, shuffle=True)
        if cut:
            train(PromptedSam(sam, rounds=1), loader, sets[1], epochs=2, on_epoch=bool, **options)
            torch.rand(99)
        train(PromptedSam(sam, rounds=1), loader, sets[1], epochs=2, resume=cut, **options)
        ends.append(sam)
    assert all(map(torch.equal, ends[0].parameters(), ends[1].parameters()))


def test_a_folder_with_checkpoints_is_not_overwritten(sets: Any, once: Path) -> None:
    """The error names both ways on; the files stay as they were."""
    before = {path: path.stat().st_mtime_ns for path in once.rglob("*")}
    with pytest.raises(
        FileExistsError, match=r"(?s)resume=True .* overwrite=True .* another out_dir"
    ):
        train(tiny_sam(), *sets, epochs=1, out_dir=once)
    assert before == {path: path.stat().st_mtime_ns for path in once.rglob("*")}
    claim(once, tiny_sam(), overwrite=True)
    claim(once, tiny_sam(), resume=True)


@pytest.mark.parametrize("name", ["best", "last", "last.old"])
def test_a_part_of_the_checkpoints_is_enough(tmp_path: Path, name: str) -> None:
    """One that was copied there, or left by a process that was killed, is kept too."""
    (tmp_path / name).mkdir()
    with pytest.raises(FileExistsError, match="earlier training"):
        claim(tmp_path, tiny_sam())


def test_resume_needs_a_checkpoint(sets: Any, tmp_path: Path) -> None:
    """Resuming without a checkpoint is an error, not a new training."""
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        train(tiny_sam(), *sets, out_dir=tmp_path / "none", resume=True)
    with pytest.raises(ValueError, match="out_dir"):
        train(tiny_sam(), *sets, resume=True)


def test_a_folder_that_cannot_be_written_is_told_before_training(sets: Any, tmp_path: Path) -> None:
    """A file in its place, a folder that takes no files, a disk that is full."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/sam")):
        sam, steps = tiny_sam(), []
        with pytest.raises(OSError, match=f"cannot write to out_dir {path}"):
            train(sam, *sets, out_dir=path, on_step=steps.append)
        assert not steps
    with pytest.raises(OSError, match=r"has .* GB of free space, but the checkpoints take 1000000"):
        check_space(tmp_path, 10**15, "the checkpoints")


OTHERS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "optimizer": (tiny_sam, {"optimizer": partial(optim.SGD, lr=1e-3)}, "optimizer AdamW, now SGD"),
    "amp": (lambda: PromptedSam(tiny_sam(), amp="bf16"), {}, "amp fp32, now bf16"),
    "tune": (lambda: tune(tiny_sam(), "decoder"), {}, "number of trained parameters .* now"),
    "lora": (lambda: tune(tiny_sam(), "lora"), {}, "qkv.* differ|of another architecture"),
    "width": (lambda: tiny_sam(width=64), {}, "of another architecture"),
    "patch": (lambda: tiny_sam(patch_size=16), {}, "of another architecture"),
    "size": (lambda: tiny_sam(128), {}, "of another architecture"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_resuming_with_another_model_or_optimizer_is_refused(
    sets: Any, once: Path, other: str
) -> None:
    """The error has three lines at most, names what differs, and comes before weights change."""
    build, options, words = OTHERS[other]
    model = build()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=words) as caught:
        train(model, *sets, epochs=2, out_dir=once, resume=True, **options)
    assert len(str(caught.value).splitlines()) <= 3
    assert len(str(caught.value)) < 600
    assert all(torch.equal(now, before[name]) for name, now in model.named_parameters())
    assert not (once / "embeddings").exists()


def test_the_rest_may_change_between_epochs(sets: Any, once: Path) -> None:
    """The number of epochs and images, the size of the batches, and the seed."""
    model = PromptedSam(tiny_sam(), rounds=1)
    options: dict[str, Any] = {"out_dir": once, "resume": True, "batch_size": 1, "seed": 9}
    history = train(model, sets[1], sets[0], epochs=2, **options)
    assert [row["epoch"] for row in history] == [1, 2]


def _changed(**arrays: Any) -> SamDataset:
    images, masks, clicks = cells(n=IMAGES)
    given = {"images": images, "masks": masks, "coordinates": clicks} | arrays
    return SamDataset(given["images"], given["masks"], given["coordinates"])


DATA: dict[str, Any] = {
    "the same": (_changed, ""),
    "fewer images": (lambda: Subset(_changed(), range(4)), "train_set: 5 images.*; now 4 images"),
    "in another order": (lambda: Subset(_changed(), range(5)[::-1]), "train_set: 5 .*; now 5 "),
    "other images": (lambda: _changed(images=cells(n=5)[0] // 2), "train_set: 5 .*; now 5 "),
    "other masks": (lambda: _changed(masks=np.minimum(cells(n=5)[1], 2)), "train_set: 5 "),
    "fewer prompts": (lambda: _changed(coordinates=cells(n=5)[2][:-1]), "train_set: 5 "),
    "the same as arrays of another kind": (lambda: _changed(masks=list(cells(n=5)[1])), ""),
}


@pytest.mark.parametrize("what", DATA)
def test_resuming_with_other_data_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """More images may be meant, but the rows before and after are not comparable."""
    made, words = DATA[what]
    held_out = SamDataset(*cells(n=2, seed=1))
    for data in (_changed(), made()):
        model = PromptedSam(tiny_sam(), rounds=1)
        note_config(model, data, held_out)
        parts: Any = {"model": model}
        if (tmp_path / "last").exists():
            load(tmp_path, parts)
        else:
            save(tmp_path, parts, [{"dice": 0.5}])
    said = capsys.readouterr().out
    assert re.search(f"of a training with another {words}", said) if words else not said


def test_scores_of_the_training_set_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Such as with the same folder twice; of another data set, only the number is known."""
    model, words = PromptedSam(tiny_sam(), rounds=1), "not those of held-out objects"
    for other, said in ((_changed(), True), (SamDataset(*cells(n=IMAGES, seed=1)), False)):
        note_config(model, _changed(), other)
        assert (words in capsys.readouterr().out) == said
    note_config(model, Cut(*cells(n=2)), Cut(*cells(n=2, seed=1)))
    assert not capsys.readouterr().out


def test_a_bar_ends_its_line_when_training_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """The next output starts on a new line, also while the exception is handled."""
    data, out = Cut(*cells(n=6)), ""
    data.left = READ_FIRST + 4
    try:
        train(PromptedSam(tiny_sam(), rounds=1), data, data, batch_size=2)
    except PowerCutError:
        out = capsys.readouterr().out
    assert "it/s" in out
    assert out.endswith("\n")


def test_other_settings_are_said(
    sets: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores of other prompts would be in one log; the learning rate is the checkpoint's."""
    train(tiny_sam(), *sets, epochs=1, out_dir=tmp_path)
    other = PromptedSam(tiny_sam(), "boxes", rounds=1, multimask=False)
    slow = partial(optim.AdamW, lr=1e-6)
    capsys.readouterr()
    train(other, *sets, epochs=2, out_dir=tmp_path, resume=True, optimizer=slow)
    said = capsys.readouterr().out
    assert "trained with prompts {'points': 1.0}, now {'boxes': 1.0}" in said
    assert "trained with rounds 3, now 1" in said
    assert "trained with multimask True, now False" in said
    assert "with a learning rate (which goes on) of 0.003, now 1e-06" in said
    capsys.readouterr()
    train(other, *sets, epochs=2, out_dir=tmp_path, resume=True, optimizer=slow)
    assert "was trained with" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["trainer.pt", "config.json"])
@pytest.mark.parametrize("left", [None, 0, 100])
def test_a_damaged_checkpoint_is_named(
    sets: Any, once: Path, tmp_path: Path, name: str, left: int | None
) -> None:
    """A file was cut, or is missing."""
    folder = tmp_path / "out"
    shutil.copytree(once, folder)
    path = folder / "last" / name
    if left is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:left])
    words = "no checkpoint" if (name, left) == ("trainer.pt", None) else "last is damaged"
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        train(PromptedSam(tiny_sam(), rounds=1), *sets, epochs=2, out_dir=folder, resume=True)


def test_there_is_always_a_best(sets: Any, once: Path, tmp_path: Path) -> None:
    """If somebody has removed it, it is the next one."""
    folder = tmp_path / "out"
    shutil.copytree(once, folder)
    shutil.rmtree(folder / "best")
    train(PromptedSam(tiny_sam(), rounds=1), *sets, epochs=3, out_dir=folder, resume=True)
    assert (folder / "best").exists()


def test_held_out_images_that_are_trained_on_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    data = SamDataset(*cells(n=6))
    wrapper = PromptedSam(tiny_sam(), rounds=1)
    for train_set, val_set, count in (
        (data, Subset(data, [0, 1]), 2),
        (Subset(data, range(4)), Subset(data, [3, 4, 5]), 1),
        (Subset(data, range(4)), Subset(Subset(data, [2, 3, 5]), [0, 2]), 1),
        (Subset(data, range(4)), Subset(data, [4, 5]), 0),
    ):
        note_config(wrapper, train_set, val_set)
        said = capsys.readouterr().out
        assert (f"{count} images of val_set are in train_set" in said) == (count > 0)
