"""The options of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ddp_magic.prelude import SamDataset, cells, tiny_sam, train
from ddp_magic.sam.losses import object_losses
from ddp_magic.sam.model import PromptedSam
from ddp_magic.sam.progress import is_stuck
from ddp_magic.sam.tuning import Averages, choose_trained, plain_state, restore

Sets = tuple[SamDataset, SamDataset]


@pytest.fixture(scope="module")
def sets() -> Sets:
    return SamDataset(*cells(n=9)), SamDataset(*cells(n=3, seed=1))


def test_each_epoch_has_its_rounds(sets: Sets) -> None:
    """The last number holds for the remaining epochs; a number below 1 is an error."""
    rounds: list[int] = []  # of each training step, which encodes its images once

    def count_step(encoder: Any, *_: Any) -> None:
        if encoder.training:
            rounds.append(0)

    def count_round(sam: Any, *_: Any) -> None:
        if sam.training:
            rounds[-1] += 1

    sam = tiny_sam()
    sam.vision_encoder.register_forward_pre_hook(count_step)
    sam.register_forward_pre_hook(count_round)
    train(sam, *sets, epochs=4, batch_size=9, rounds=(2, 1))
    dry_run, steps = rounds[:2], rounds[2:]
    assert sorted(dry_run) == [1, 2]
    assert steps == [2, 1, 1, 1]
    for wrong in (0, (), (3, 0)):
        with pytest.raises(ValueError, match="rounds"):
            train(tiny_sam(), *sets, rounds=wrong)


def test_accumulation_is_a_larger_batch(sets: Sets) -> None:
    """Two batches of 2 images give the step of one batch of 4, with unequal objects."""
    images, masks, clicks = cells(n=8)
    few = [row for row in clicks if row[0] % 3 or row[2] > 30]
    data = SamDataset(images, masks, few)
    models = [tiny_sam(), tiny_sam()]
    for model, size, times in ((models[0], 4, 1), (models[1], 2, 2)):
        train(model, data, sets[1], epochs=1, batch_size=size, accumulate=times, lr=1e-4)
    start = tiny_sam()
    for a, b, c in zip(
        models[0].parameters(), models[1].parameters(), start.parameters(), strict=True
    ):
        moved = (a - c).abs().max()
        if moved > 1e-5:  # Adam makes steps of the noise of gradients that are zero
            assert (a - b).abs().mean() < 0.05 * (a - c).abs().mean()


def test_the_average_remains_in_the_model(sets: Sets, tmp_path: Path) -> None:
    """With ema the model ends with the average, and `last` has the weights."""
    plain, averaged = tiny_sam(), tiny_sam()
    train(plain, *sets, epochs=2, batch_size=2)
    train(averaged, *sets, epochs=2, batch_size=2, ema=0.99, out_dir=tmp_path)
    last = type(averaged).from_pretrained(tmp_path / "last")
    name = "mask_decoder.iou_token.weight"
    a, b, c = (m.state_dict()[name] for m in (plain, last, averaged))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_averages_follow_the_weights() -> None:
    """The average converges to a constant weight; in_place() swaps temporarily."""
    weight = nn.Parameter(torch.zeros(2))
    averages = Averages([weight], 0.9)
    with torch.no_grad():
        weight += 1
    averages.update()
    assert torch.allclose(averages.values[0], torch.tensor(10 / 11))
    with averages.in_place():
        assert weight[0] < 1
    assert weight[0] == 1
    for _ in range(200):
        averages.update()
    averages.adopt()
    assert torch.allclose(weight, torch.ones(2), atol=1e-6)


def test_low_rank_updates_start_at_zero_and_are_merged() -> None:
    """At first the weights are unchanged; `restore` merges the updates into them."""
    sam = tiny_sam()
    before = {name: value.clone() for name, value in sam.state_dict().items()}
    frozen = choose_trained(sam, "lora", lora_rank=2)
    state = plain_state(sam)
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], before[name]) for name in before)
    trained = {n for n, p in sam.named_parameters() if p.requires_grad and n.startswith("vision")}
    assert len(trained) == 2 * 3  # two thin matrices a layer
    attention = sam.vision_encoder.layers[1].attn.qkv
    with torch.no_grad():
        attention.parametrizations.weight[0].b.fill_(0.5)
    expected = attention.weight.detach().clone()
    assert (
        torch.linalg.matrix_rank(expected - before["vision_encoder.layers.1.attn.qkv.weight"]) <= 2
    )
    assert torch.equal(plain_state(sam)["vision_encoder.layers.1.attn.qkv.weight"], expected)
    restore(sam, frozen)
    assert torch.equal(sam.vision_encoder.layers[1].attn.qkv.weight, expected)
    assert set(sam.state_dict()) == set(before)
    assert all(p.requires_grad for p in sam.parameters())


@pytest.mark.parametrize(("option", "value"), [("tune", "half"), ("loss", "dice"), ("amp", "fp8")])
def test_unknown_choices_are_refused(sets: Sets, option: str, value: str) -> None:
    """A misspelled choice is an error, and nothing stays frozen."""
    sam = tiny_sam()
    options: dict[str, Any] = {option: value}
    with pytest.raises(ValueError, match=value):
        train(sam, *sets, epochs=1, multimask=False, **options)
    assert all(p.requires_grad for p in sam.parameters())
    assert PromptedSam(sam).multimask  # the config is unchanged


@pytest.mark.parametrize(
    "option", [{"batch_size": 0}, {"accumulate": 0}, {"ema": 1.0}, {"hold": 1.5}]
)
def test_numbers_out_of_range_are_refused(sets: Sets, option: dict[str, Any]) -> None:
    """The error names the argument."""
    with pytest.raises(ValueError, match=f"invalid {next(iter(option))}"):
        train(tiny_sam(), *sets, epochs=1, **option)


def test_a_training_set_without_objects_is_refused(sets: Sets, tmp_path: Path) -> None:
    """The error comes before images are encoded."""
    images, masks = cells(n=2)[:2]
    for empty, words in (
        (SamDataset(images[:0], masks[:0]), "no images"),
        (SamDataset(images, masks * 0), "no objects"),
        (SamDataset(images, masks, np.zeros((0, 3))), "no objects"),
    ):
        for tune in ("full", "decoder"):
            with pytest.raises(ValueError, match=words):
                train(tiny_sam(), empty, sets[1], epochs=1, tune=tune, out_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_patience() -> None:
    """Training stops after `patience` epochs without a better score; 0: never."""
    rows = [{"dice": x} for x in (0.1, 0.5, 0.4, 0.5)]
    assert is_stuck(rows, 2)
    assert not is_stuck(rows[:3], 2)
    assert not is_stuck(rows, 3)
    assert not is_stuck(rows, 0)


def test_early_stop_ends_training(sets: Sets) -> None:
    """With a tiny learning rate, training stops after the first epoch and the patience."""
    history = train(tiny_sam(), *sets, epochs=9, batch_size=4, lr=1e-12, patience=2)
    assert len(history) == 3


def test_only_the_best_of_three_masks_is_trained() -> None:
    """Two wrong masks beside a correct one add only the loss of their predicted IoU."""
    target = torch.zeros(1, 1, 16, 16)
    target[..., 4:12, 4:12] = 1
    right = torch.where(target > 0, 9.0, -9.0)
    logits = torch.cat([-right, right, -right], 1).requires_grad_()
    iou = torch.tensor([[0.0, 1.0, 0.0]])
    for loss in ("dice+bce", "dice+focal"):
        value = object_losses(logits, iou, target, loss)
        assert value.item() < 0.05
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert not gradient[:, [0, 2]].any()
    assert object_losses(logits, 1 - iou, target).item() > 0.9


def test_clipping_limits_the_step(sets: Sets) -> None:
    """The norm of the gradient is at most `clip`."""
    norms: list[float] = []
    real = nn.utils.clip_grad_norm_

    def spy(parameters: Any, bound: float) -> torch.Tensor:
        parameters = list(parameters)
        total = real(parameters, bound)
        grads = [p.grad for p in parameters if p.grad is not None]
        norms.append(float(torch.linalg.vector_norm(torch.stack([g.norm() for g in grads]))))
        return total

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.utils, "clip_grad_norm_", spy)
        train(tiny_sam(), *sets, epochs=1, batch_size=4, clip=0.01)
    assert max(norms) < 0.0101


def test_the_encoder_is_compiled_while_it_is_trained(sets: Sets) -> None:
    """The result is the same, and the model is not compiled afterwards."""
    plain, compiled = tiny_sam(), tiny_sam()
    traced: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        traced.append(len(inputs))
        return graph.forward

    options: dict[str, Any] = {"epochs": 1, "batch_size": 3, "rounds": 1}
    expected = train(plain, *sets, **options)
    history = train(compiled, *sets, **options, compile=backend)
    assert traced
    assert history[0]["train_loss"] == pytest.approx(expected[0]["train_loss"], rel=1e-4)
    traced.clear()
    train(compiled, *sets, **options)
    assert not traced


class Noted(SamDataset):
    """Writes the random number that a loading process draws for each item to a file."""

    def __init__(self, *args: Any, folder: Path) -> None:
        super().__init__(*args)
        self.folder = folder

    def __getitem__(self, index: int) -> Any:
        with (self.folder / str(index)).open("a") as file:
            file.write(f"{torch.rand(()).item()}\n")
        return super().__getitem__(index)


def test_loading_processes_draw_new_numbers_in_each_epoch(sets: Sets, tmp_path: Path) -> None:
    """Random augmentation in a worker differs between epochs."""
    data = Noted(*cells(n=2), folder=tmp_path)
    train(tiny_sam(), data, sets[1], epochs=3, rounds=1, workers=1)
    for index in range(2):
        drawn = (tmp_path / str(index)).read_text().split()[-3:]  # those before are of the dry run
        assert len(set(drawn)) == 3
