"""Resuming an interrupted training gives the same result, or is refused."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from ddp_magic.prelude import SamDataset, cells, tiny_sam, train
from ddp_magic.sam.model import PromptedSam

READ_FIRST = 2  # items before the first epoch: to find one with objects, and for the dry run


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
        return item | {"image": item["image"] // 2 + noise}


IMAGES = 5  # three batches of two, of which two make the first step
EVERYTHING: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 2,
    "ema": 0.9,
    "auxiliary": 0.5,
    "accumulate": 2,
    "amp": "fp16",
    "augment": True,
    "weight_decay": 0.01,
    "prompts": {"points": 1, "boxes": 1, "masks": 1},
    "rounds": (1, 2),  # the interruptions are in epochs with two
}


@pytest.mark.parametrize(
    ("tune", "optimizer", "done"),  # saved epochs, and batches of the next one
    [
        ("full", "adamw", (2, 0)),
        ("full", "muon", (1, 2)),
        ("lora", "adamw", (2, 0)),
        ("lora", "adamw", (1, 2)),
    ],
)
def test_resuming_is_exact(
    tmp_path: Path, tune: str, optimizer: str, done: tuple[int, int]
) -> None:
    """Weights, averages, scores and random numbers equal those without an interruption."""
    val = SamDataset(*cells(n=3, seed=1))
    options = EVERYTHING | {"tune": tune, "optimizer": optimizer}

    def fresh() -> NoisyCut:
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)
        return NoisyCut(*cells(n=IMAGES))

    whole = tiny_sam()
    expected = train(whole, fresh(), val, **options)
    after = torch.rand(3), random.random(), np.random.rand()

    data = fresh()
    saved = IMAGES * done[0] + 2 * done[1]  # items
    data.left = READ_FIRST + saved
    with pytest.raises(PowerCutError):
        train(tiny_sam(), data, val, **options, out_dir=tmp_path, save_every=1)
    state = torch.load(tmp_path / "last" / "trainer.pt", weights_only=False)["position"]
    assert (len(state["history"]), state["batches"]) == done
    rest = fresh()
    torch.rand(99)  # a new process has another random state
    resumed = tiny_sam(seed=7)
    history = train(resumed, rest, val, **options, out_dir=tmp_path, save_every=1, resume=True)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    timing = {"seconds", "images_per_s", "data_wait"}
    for row, true in zip(history, expected, strict=True):
        for key in row.keys() - timing:
            assert row[key] == pytest.approx(true[key], rel=1e-12, nan_ok=True)
    now = torch.rand(3), random.random(), np.random.rand()
    assert torch.equal(now[0], after[0])
    assert now[1:] == after[1:]
    assert 10**9 - rest.left == READ_FIRST + 3 * IMAGES - saved  # no item is read again


def test_resuming_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An epoch, an interruption and another epoch give bit for bit the weights of two epochs.

    After resuming, the column names are printed again.
    """
    images, masks, clicks = cells(n=8)
    val_set = SamDataset(*cells(n=4, seed=1))
    options: dict[str, Any] = {"epochs": 2, "batch_size": 4, "augment": True}
    whole = tiny_sam()
    train(whole, SamDataset(images, masks, clicks), val_set, **options)
    data = Cut(images, masks, clicks)
    data.left = READ_FIRST + 8  # after the first epoch was saved
    with pytest.raises(PowerCutError):
        train(tiny_sam(), data, val_set, **options, out_dir=tmp_path)
    capsys.readouterr()
    data.left = 10**9
    second = tiny_sam(seed=7)
    history = train(second, data, val_set, **options, out_dir=tmp_path, resume=True)
    assert capsys.readouterr().out.count("Dice@1") == 1
    assert [row["epoch"] for row in history] == [1, 2]
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_resume_needs_a_checkpoint(tmp_path: Path) -> None:
    """Resuming without a checkpoint is an error, not a new training."""
    sets = SamDataset(*cells(n=2)), SamDataset(*cells(n=2, seed=1))
    with pytest.raises(FileNotFoundError):
        train(tiny_sam(), *sets, out_dir=tmp_path / "none", resume=True)
    with pytest.raises(ValueError, match="out_dir"):
        train(tiny_sam(), *sets, resume=True)


@pytest.mark.parametrize(
    "other",
    [
        {"tune": "lora"},
        {"tune": "decoder"},
        {"optimizer": "muon"},
        {"auxiliary": 1.0},
        {"ema": 0.9},
        {"amp": "bf16"},
    ],
)
def test_resuming_with_other_arguments_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    """The error names the argument, and comes before images are encoded or weights change."""
    sets = SamDataset(*cells(n=2)), SamDataset(*cells(n=2, seed=1))
    train(tiny_sam(), *sets, epochs=1, rounds=1, out_dir=tmp_path)
    sam, ((name, value),) = tiny_sam(), other.items()
    words = re.escape(f"{name} = ") + ".*" + re.escape(f"now {value!r}: resume with the same")
    with pytest.raises(ValueError, match=words):
        train(sam, *sets, epochs=2, multimask=False, out_dir=tmp_path, resume=True, **other)
    before = dict(tiny_sam().named_parameters())
    assert all(torch.equal(now, before[name]) for name, now in sam.named_parameters())
    assert not (tmp_path / "embeddings").exists()
    assert PromptedSam(sam).multimask  # the config is unchanged


def test_options_missing_in_an_older_checkpoint_were_off(tmp_path: Path) -> None:
    """Training can be resumed without the option, but not with it."""
    sets = SamDataset(*cells(n=2)), SamDataset(*cells(n=2, seed=1))
    train(tiny_sam(), *sets, epochs=1, rounds=1, out_dir=tmp_path)
    path = tmp_path / "last" / "trainer.pt"
    state = torch.load(path, weights_only=False)
    del state["choices"]["auxiliary"]
    torch.save(state, path)
    options: dict[str, Any] = {"epochs": 2, "rounds": 1, "out_dir": tmp_path, "resume": True}
    with pytest.raises(ValueError, match=r"auxiliary = 0, now 1\.0: resume with the same"):
        train(tiny_sam(), *sets, auxiliary=1.0, **options)
    assert len(train(tiny_sam(), *sets, **options)) == 2


def test_a_bar_ends_its_line_when_training_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """The next output starts on a new line, also while the exception is handled."""
    data, out = Cut(*cells(n=6)), ""
    data.left = READ_FIRST + 4
    try:
        train(tiny_sam(), data, data, batch_size=2, rounds=1)
    except PowerCutError:
        out = capsys.readouterr().out
    assert "it/s" in out
    assert out.endswith("\n")


def test_within_an_epoch_the_batches_must_stay_the_same(tmp_path: Path) -> None:
    """Otherwise some images would be used twice, others never. Between epochs they may change."""
    sets = Cut(*cells(n=6)), SamDataset(*cells(n=2, seed=1))
    sets[0].left = READ_FIRST + 6 + 4  # an epoch, two batches
    options: dict[str, Any] = {"rounds": 1, "out_dir": tmp_path, "save_every": 1}
    with pytest.raises(PowerCutError):
        train(tiny_sam(), *sets, batch_size=2, **options)
    sets[0].left = 10**9
    options |= {"epochs": 2, "resume": True}
    for other in ({"batch_size": 3}, {"seed": 1}, {"accumulate": 2}):
        with pytest.raises(ValueError, match="resume with the same"):
            train(tiny_sam(), *sets, **{"batch_size": 2, **options, **other})
    with pytest.raises(ValueError, match="images = 6, now 5"):
        train(tiny_sam(), Subset(sets[0], range(5)), sets[1], batch_size=2, **options)
    assert len(train(tiny_sam(), *sets, batch_size=2, **options)) == 2
    more = train(tiny_sam(), *sets, batch_size=3, seed=1, **{**options, "epochs": 3})
    assert [row["epoch"] for row in more] == [1, 2, 3]
