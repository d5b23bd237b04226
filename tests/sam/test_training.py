"""The training loop in one process: it learns, and its checkpoints can be loaded."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from transformers import SamModel
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.utils import logging

from ddp_magic.sam.batches import Geometry, collate, prepare
from ddp_magic.sam.data import SamDataset
from ddp_magic.sam.evaluation import CLICKS, evaluate, neighbors, score_objects
from ddp_magic.sam.inference import predict
from ddp_magic.sam.losses import object_losses
from ddp_magic.sam.model import PromptedSam
from ddp_magic.sam.optimizers import learning_rate
from ddp_magic.sam.samples import cells
from ddp_magic.sam.tiny import tiny_sam
from ddp_magic.sam.training import train

logging.disable_progress_bar()

Run = tuple[SamModel, list[dict[str, float]], Path]


@pytest.fixture(scope="module")
def sets() -> tuple[SamDataset, SamDataset]:
    """A few synthetic cells, for training and validation."""
    return SamDataset(*cells(n=48)), SamDataset(*cells(n=12, seed=1))


@pytest.fixture(scope="module")
def run(sets: tuple[SamDataset, SamDataset], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two epochs in one process, without a process group and without a warning."""
    folder = tmp_path_factory.mktemp("run")
    assert not dist.is_initialized()
    model = tiny_sam()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = train(model, *sets, epochs=2, batch_size=8, out_dir=folder)
    return model, history, folder


def test_training_reduces_the_loss(run: Run) -> None:
    """Two epochs at world size 1 without a process group lower the training loss."""
    _, history, _ = run
    assert [row["epoch"] for row in history] == [1, 2]
    assert history[1]["train_loss"] < 0.95 * history[0]["train_loss"]
    assert history[1]["count"] == 36


def test_nothing_stays_frozen(run: Run) -> None:
    """All parameters can be trained afterwards."""
    assert all(p.requires_grad for p in run[0].parameters())


def test_log_is_the_history(run: Run) -> None:
    """log.csv contains the rows that train() returned."""
    _, history, folder = run
    with (folder / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{k: float(v) for k, v in row.items()} for row in rows] == history
    columns = (
        "epoch lr train_loss dice dice_2 dice_3 dice_5 iou accuracy wrong_prompt_dice seconds "
        "images_per_s data_wait"
    )
    assert set(columns.split()) <= set(rows[0])
    names = {p.name for p in folder.iterdir()}
    assert names == {"best", "last", "log.csv", "tensorboard"}  # no incomplete files


def test_tensorboard_has_the_scores(run: Run) -> None:
    """Each row is stored as scalars if TensorBoard is installed."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, history, folder = run
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("dice")] == [1, 2]
    losses = [event.value for event in board.Scalars("train_loss")]
    assert losses == pytest.approx([row["train_loss"] for row in history])


@pytest.mark.parametrize("name", ["best", "last"])
def test_checkpoints_load_with_transformers(
    run: Run, sets: tuple[SamDataset, SamDataset], name: str
) -> None:
    """SamModel.from_pretrained loads both; `last` has the weights of the model."""
    model, history, folder = run
    loaded = SamModel.from_pretrained(folder / name)
    best = max(row["dice"] for row in history)
    if name == "best":
        assert evaluate(loaded, sets[1], batch_size=8)["dice"] == best
        return
    for a, b in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a, b)
    images, _, clicks = cells(n=1, seed=1)
    ours, theirs = (predict(m, images[0], clicks[:1, 1:]) for m in (model, loaded))
    assert np.array_equal(ours, theirs)


def test_the_saved_processor_resizes_masks_to_the_output_size(run: Run) -> None:
    """A loop with the processor of transformers can continue from a checkpoint."""
    model, _, folder = run
    processor = SamImageProcessorPil.from_pretrained(folder / "best")
    images, masks, _ = cells(n=1)
    rgb = np.stack([images[0]] * 3, -1)
    made = processor(rgb, segmentation_maps=masks[0], return_tensors="pt")
    predicted = model(made["pixel_values"]).pred_masks
    assert made["labels"].shape[-2:] == predicted.shape[-2:]


@pytest.mark.parametrize("three", [True, False])
def test_an_epochs_scores_are_those_of_evaluate(three: bool) -> None:
    """evaluate() uses the stored `multimask`."""
    sets = SamDataset(*cells(n=4)), SamDataset(*cells(n=4, seed=1))
    sam = tiny_sam()
    row = train(sam, *sets, epochs=1, batch_size=2, rounds=1, multimask=three)[-1]
    again = evaluate(sam, sets[1])
    assert {name: row[name] for name in again} == again
    assert again != evaluate(sam, sets[1], multimask=not three)


def test_without_held_out_objects_the_last_epoch_is_best(
    sets: tuple[SamDataset, SamDataset], tmp_path: Path
) -> None:
    """Without a held-out Dice, `best` is the last checkpoint."""
    empty = SamDataset(np.zeros((2, 64, 64), np.uint8), np.zeros((2, 64, 64), np.int32))
    model = tiny_sam()
    history = train(model, sets[0], empty, epochs=2, rounds=1, out_dir=tmp_path)
    assert np.isnan([row["dice"] for row in history]).all()
    best = SamModel.from_pretrained(tmp_path / "best")
    for a, b in zip(best.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_other_types_than_data_sets_are_refused() -> None:
    """Arrays, a list or a loader are errors that name the expected type."""
    data = SamDataset(*cells(n=2))
    for other in (cells(n=2), [data[0]], DataLoader(data)):
        words = f"such as SamDataset.*not a {type(other).__name__}"
        for sets in ((other, data), (data, other)):
            with pytest.raises(TypeError, match=words):
                train(tiny_sam(), *sets, epochs=1)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=words):
            evaluate(tiny_sam(), other)  # type: ignore[arg-type]


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains(amp: str) -> None:
    """With bfloat16, and float16 with gradient scaling, weights change and stay finite."""
    sets = SamDataset(*cells(n=8)), SamDataset(*cells(n=4, seed=1))
    model = tiny_sam()
    before = model.vision_encoder.layers[0].mlp.lin1.weight.clone()
    (row,) = train(model, *sets, epochs=1, batch_size=4, amp=amp)
    assert np.isfinite(row["train_loss"])
    after = model.vision_encoder.layers[0].mlp.lin1.weight
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)


def test_mixed_precision_is_for_the_encoder_only() -> None:
    """Prompt encoder and decoder use float32, because bfloat16 would move clicks."""
    with pytest.raises(ValueError, match="fp8"):
        PromptedSam(tiny_sam(), "fp8")
    data = SamDataset(*cells(n=1))
    batch = prepare(collate([data[0]]), Geometry(64))
    wrapper = PromptedSam(tiny_sam(), "bf16")
    types = []
    wrapper.sam.mask_decoder.register_forward_pre_hook(
        lambda _, __, kwargs: types.append(
            {kwargs["image_positional_embeddings"].dtype, kwargs["sparse_prompt_embeddings"].dtype}
        ),
        with_kwargs=True,
    )
    wrapper(batch)
    assert types == [{torch.float32}]


def test_loss_of_half_precision_logits_is_finite() -> None:
    """float16 logits of 512 x 512, whose sums overflow, have a finite loss."""
    logits = torch.full((1, 1, 512, 512), 9.0, dtype=torch.float16)
    loss = object_losses(logits, torch.ones(1, 1), torch.ones(1, 1, 512, 512))
    assert loss.shape == (1,)
    assert 0 <= loss.item() < 0.01


def test_a_better_mask_has_a_smaller_loss() -> None:
    """The loss is one number per object, and lower for a better mask."""
    target = torch.zeros(2, 1, 16, 16)
    target[:, :, 4:12, 4:12] = 1
    logits = torch.where(target > 0, 6.0, -6.0)
    logits[1] = -logits[1]
    good, bad = object_losses(logits, torch.tensor([[1.0], [1.0]]), target).tolist()
    assert good < 0.1
    assert bad > 2


def test_neighbors_stay_in_their_image() -> None:
    """The wrong prompt of an object belongs to another object of the image, if there is one."""
    assert neighbors(torch.tensor([0, 0, 0, 2, 3, 3])).tolist() == [1, 2, 0, 3, 5, 4]
    assert neighbors(torch.tensor([], dtype=torch.long)).tolist() == []


def test_the_wrong_prompt_is_that_of_another_object(sets: tuple[SamDataset, SamDataset]) -> None:
    """wrong_prompt_dice equals the Dice of predict() with the click of a neighbor."""
    model = tiny_sam()
    images, masks, clicks = cells(n=12, seed=1)
    expected = []
    for i in range(12):
        own = clicks[clicks[:, 0] == i]
        for j, (_, y, x) in enumerate(own):
            other = own[(j + 1) % len(own), 1:]
            pred = predict(model, images[i], other[None])
            true = masks[i] == masks[i, y, x]
            expected.append(2 * (pred & true).sum() / (pred.sum() + true.sum()))
    assert evaluate(model, sets[1])["wrong_prompt_dice"] == pytest.approx(np.mean(expected))


def test_unequal_images_are_scored_at_their_own_size() -> None:
    """Beside larger images, an object has the same scores as alone."""
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 255, size, dtype=np.uint8) for size in ((64, 64), (100, 50), (30, 70))
    ]
    masks = [np.zeros(image.shape, np.int32) for image in images]
    for mask in masks:
        mask[5:25, 5:25] = 1
    model = tiny_sam()
    alone = [
        evaluate(model, SamDataset([a], [b], [(0, 9, 9)]))
        for a, b in zip(images, masks, strict=True)
    ]
    together = evaluate(model, SamDataset(images, masks, [(i, 9, 9) for i in range(3)]))
    for key in ("dice", "iou", "accuracy"):
        assert together[key] == pytest.approx(np.mean([row[key] for row in alone]), abs=1e-3)
    assert np.isnan(together["wrong_prompt_dice"])  # each object is alone in its image


def test_training_uses_at_most_so_many_objects_per_image(
    sets: tuple[SamDataset, SamDataset],
) -> None:
    """A batch contains at most `objects` objects of each image; evaluation uses all objects."""
    most: list[int] = []

    def count_objects(sam: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        """Count the equal rows of the image embeddings, which are repeated for each object."""
        if sam.training:
            embeddings = kwargs["image_embeddings"].detach().flatten(1)
            most.append(int(embeddings.unique(dim=0, return_counts=True)[1].max()))

    sam = tiny_sam()
    sam.register_forward_pre_hook(count_objects, with_kwargs=True)
    (row,) = train(sam, *sets, epochs=1, batch_size=16, rounds=1, objects=2)
    assert most == [1, 2, 2, 2]  # the dry run, then three batches
    assert row["count"] == 36
    with pytest.raises(ValueError, match="invalid objects -1"):
        train(tiny_sam(), *sets, objects=-1)


def test_objects_are_scored_in_chunks_that_fit_into_memory(
    sets: tuple[SamDataset, SamDataset],
) -> None:
    """No forward pass has more objects than fit into memory, and the scores are the same."""
    wrapper = PromptedSam(tiny_sam(), rounds=max(CLICKS))
    expected = score_objects(wrapper, sets[1])
    chunks: list[int] = []
    wrapper.register_forward_pre_hook(lambda _, args: chunks.append(len(args[0]["image_index"])))
    scores = score_objects(wrapper, sets[1], memory_bytes=5 * 1024 * 32**2)
    for name, column in expected.items():
        np.testing.assert_allclose(scores[name], column, atol=1e-6)
    assert max(chunks) == 5
    assert sum(chunks) == 36


def test_learning_rate_rises_and_falls() -> None:
    """It rises to the peak, stays there with `hold`, then falls to nearly 0."""
    rates = [learning_rate(step, 100, 1.0) for step in range(100)]
    assert rates[0] == 0.2
    assert max(rates) == rates[4] == 1.0
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 0.01
    held = [learning_rate(step, 100, 1.0, hold=0.7) for step in range(100)]
    assert held[:5] == rates[:5]
    assert set(held[4:71]) == {1.0}
    assert held[70:] == sorted(set(held[70:]), reverse=True)
    assert 0 < held[-1] < 0.01
