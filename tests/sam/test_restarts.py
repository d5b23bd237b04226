"""After a restart by torch's agent, `train` goes on from the checkpoint of the same call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ddp_magic.prelude import SamDataset, cells, tiny_sam, train
from ddp_magic.sam.models.model import PromptedSam
from ddp_magic.sam.training import out_dir
from tests.sam.test_resuming import Cut, PowerCutError

IMAGES = 4
READ_FIRST = 1 + IMAGES  # see test_resuming
OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 2}


@pytest.fixture
def attempt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Begins an attempt of a run: another process, in which no call has been made."""

    def begin(number: int, run: str = "run-1") -> None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", run)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(number))
        out_dir._calls.clear()

    return begin


def _sets(left: int = 10**9) -> tuple[Cut, SamDataset]:
    """Return data sets; the first loses power after some items of the training."""
    data = Cut(*cells(n=IMAGES))
    data.left = READ_FIRST + left
    return data, SamDataset(*cells(n=2, seed=1))


def _read(sets: tuple[Cut, SamDataset]) -> int:
    """Return how many items of the training were read."""
    return 10**9 - sets[0].left


def _interrupt(folder: Path, left: int = IMAGES + 2, **options: Any) -> None:
    """Train until the power is lost in the second epoch."""
    with pytest.raises(PowerCutError):
        train(
            PromptedSam(tiny_sam(), rounds=1), *_sets(left), out_dir=folder, **(OPTIONS | options)
        )


def _scores(history: list[dict[str, float]]) -> list[dict[str, float]]:
    timing = ("seconds", "images_per_s", "data_wait")
    return [{k: v for k, v in row.items() if k not in timing} for row in history]


@pytest.mark.slow
def test_train_goes_on_with_the_same_result(
    tmp_path: Path, attempt: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights and scores equal those without the failure; done epochs are not repeated."""
    whole = tiny_sam()
    expected = train(PromptedSam(whole, rounds=1), *_sets(), **OPTIONS)
    attempt(0)
    _interrupt(tmp_path)
    attempt(1)
    sam, sets = tiny_sam(seed=7), _sets()
    capsys.readouterr()
    history = train(PromptedSam(sam, rounds=1), *sets, out_dir=tmp_path, **OPTIONS)
    assert capsys.readouterr().out.startswith(
        f"restarted: train goes on from {tmp_path / 'last'}\n"
    )
    assert _scores(history) == _scores(expected)
    assert all(map(torch.equal, whole.parameters(), sam.parameters()))
    assert _read(sets) == IMAGES


@pytest.mark.slow
@pytest.mark.parametrize("run", ["run-2", "none"])
def test_a_checkpoint_of_another_run_is_not_used(tmp_path: Path, attempt: Any, run: str) -> None:
    """Neither if torchrun has given the run no id."""
    attempt(0, "run-1" if run == "run-2" else run)
    _interrupt(tmp_path)
    attempt(1, run)
    sets = _sets()
    with pytest.raises(FileExistsError):
        train(tiny_sam(), *_sets(), out_dir=tmp_path, **OPTIONS)
    train(PromptedSam(tiny_sam(), rounds=1), *sets, out_dir=tmp_path, **OPTIONS, overwrite=True)
    assert _read(sets) == 2 * IMAGES


@pytest.mark.slow
def test_a_checkpoint_of_an_earlier_launch_is_not_used(tmp_path: Path, attempt: Any) -> None:
    """It had the same id, and this one's first attempt failed before its first checkpoint."""
    attempt(0)
    _interrupt(tmp_path)
    attempt(0)
    _interrupt(tmp_path, left=0, overwrite=True)
    attempt(1)
    sets = _sets()
    train(PromptedSam(tiny_sam(), rounds=1), *sets, out_dir=tmp_path, **OPTIONS, overwrite=True)
    assert _read(sets) == 2 * IMAGES


@pytest.mark.slow
def test_a_checkpoint_of_another_call_is_not_used(tmp_path: Path, attempt: Any) -> None:
    """The second call of a cell has overwritten that of the first, which begins again."""
    attempt(0)
    train(PromptedSam(tiny_sam(), rounds=1), *_sets(), out_dir=tmp_path, **OPTIONS)
    _interrupt(tmp_path, overwrite=True)
    attempt(1)
    first, second = _sets(), _sets()
    for sets, again in ((first, False), (second, True)):
        train(
            PromptedSam(tiny_sam(), rounds=1), *sets, out_dir=tmp_path, overwrite=again, **OPTIONS
        )
    assert (_read(first), _read(second)) == (2 * IMAGES, 2 * IMAGES)


@pytest.mark.slow
def test_a_call_that_was_done_is_not_repeated(tmp_path: Path, attempt: Any) -> None:
    """Each call has its folder: the first is read, the second goes on."""
    attempt(0)
    whole = tiny_sam()
    expected = train(PromptedSam(whole, rounds=1), *_sets(), out_dir=tmp_path / "a", **OPTIONS)
    _interrupt(tmp_path / "b")
    attempt(1)
    sam, first, second = tiny_sam(seed=7), _sets(), _sets()
    assert train(PromptedSam(sam, rounds=1), *first, out_dir=tmp_path / "a", **OPTIONS) == expected
    assert all(map(torch.equal, whole.parameters(), sam.parameters()))
    train(PromptedSam(tiny_sam(), rounds=1), *second, out_dir=tmp_path / "b", **OPTIONS)
    assert (_read(first), _read(second)) == (0, IMAGES)


@pytest.mark.slow
def test_a_process_killed_while_it_replaced_a_checkpoint(tmp_path: Path, attempt: Any) -> None:
    """The one before is complete, and used; the next replaces both."""
    attempt(0)
    _interrupt(tmp_path)
    (tmp_path / "last").rename(tmp_path / "last.old")
    (tmp_path / "last.part").mkdir()
    assert out_dir.latest(tmp_path) == tmp_path / "last.old"
    attempt(1)
    sets = _sets()
    train(PromptedSam(tiny_sam(), rounds=1), *sets, out_dir=tmp_path, **OPTIONS)
    assert _read(sets) == IMAGES
    assert sorted(path.name for path in tmp_path.glob("last*")) == ["last"]
