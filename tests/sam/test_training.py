"""The training loop in one process: it learns, and its checkpoints can be loaded."""

from __future__ import annotations

import csv
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from monai.losses import DiceFocalLoss, TverskyLoss
from torch import nn, optim
from torch.optim.lr_scheduler import ConstantLR
from torch.utils.data import DataLoader, Subset, WeightedRandomSampler
from transformers import SamModel
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.utils import logging

from ddp_magic.sam.data.batches import Geometry, collate, prepare
from ddp_magic.sam.data.dataset import SamDataset
from ddp_magic.sam.data.samples import cells
from ddp_magic.sam.data.sampling import Sampled
from ddp_magic.sam.evaluation.evaluate import CLICKS, evaluate, neighbors, score_objects
from ddp_magic.sam.inference.predict import predict
from ddp_magic.sam.models.model import PromptedSam
from ddp_magic.sam.models.tiny import tiny_sam
from ddp_magic.sam.training.loop import train
from ddp_magic.sam.training.losses import dice_bce, object_losses

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
        warnings.simplefilter("ignore", ResourceWarning)  # of what other tests have left
        history = train(model, *sets, epochs=2, batch_size=8, out_dir=folder)
    return model, history, folder


def test_training_reduces_the_loss(run: Run) -> None:
    """Two epochs at world size 1 without a process group lower the training loss."""
    _, history, _ = run
    assert [row["epoch"] for row in history] == [1, 2]
    assert history[1]["train_loss"] < 0.95 * history[0]["train_loss"]
    assert history[1]["count"] == 36


def test_nothing_stays_frozen(run: Run) -> None:
    """All parameters but the positional encoding can be trained afterwards."""
    frozen = [name for name, p in run[0].named_parameters() if not p.requires_grad]
    assert frozen == ["shared_image_embedding.positional_embedding"]


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
    assert names == {"best", "last", "log.csv"}  # no incomplete files


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
    wrapper = PromptedSam(sam, rounds=1, multimask=three)
    row = train(wrapper, *sets, epochs=1, batch_size=2)[-1]
    again = evaluate(sam, sets[1])
    assert {name: row[name] for name in again} == again
    assert again != evaluate(PromptedSam(sam, multimask=not three), sets[1])


def test_without_held_out_objects_the_last_epoch_is_best(
    sets: tuple[SamDataset, SamDataset], tmp_path: Path
) -> None:
    """Without a held-out Dice, `best` is the last checkpoint."""
    empty = SamDataset(np.zeros((2, 64, 64), np.uint8), np.zeros((2, 64, 64), np.int32))
    model = tiny_sam()
    history = train(PromptedSam(model, rounds=1), sets[0], empty, epochs=2, out_dir=tmp_path)
    assert np.isnan([row["dice"] for row in history]).all()
    best = SamModel.from_pretrained(tmp_path / "best")
    for a, b in zip(best.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_other_types_than_data_sets_are_refused() -> None:
    """Arrays and lists are errors that name the expected type; so is a loader to evaluate."""
    data = SamDataset(*cells(n=2))
    others: tuple[Any, ...] = (cells(n=2), [data[0]], DataLoader([data[0]]))
    for other in others:
        with pytest.raises(TypeError, match=r"train_set must be a data set such as SamDataset"):
            train(tiny_sam(), other, data, epochs=1)
    for other in (*others, DataLoader(data)):
        words = f"such as SamDataset.*not a {type(other).__name__}"
        with pytest.raises(TypeError, match=f"val_set must be.*{words}"):
            train(tiny_sam(), data, other, epochs=1)
        with pytest.raises(TypeError, match=words):
            evaluate(tiny_sam(), other)


def test_a_training_set_without_objects_is_refused(sets: Any, tmp_path: Path) -> None:
    """The error comes before images are encoded and files are written."""
    images, masks = cells(n=2)[:2]
    for empty, words in (
        (SamDataset(images[:0], masks[:0]), "no images"),
        (SamDataset(images, masks * 0), "no objects"),
        (SamDataset(images, masks, np.zeros((0, 3))), "no objects"),
    ):
        with pytest.raises(ValueError, match=words):
            train(tiny_sam(), empty, sets[1], epochs=1, out_dir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains(amp: str) -> None:
    """With bfloat16, and float16 with gradient scaling, weights change and stay finite."""
    sets = SamDataset(*cells(n=8)), SamDataset(*cells(n=4, seed=1))
    model = tiny_sam()
    before = model.vision_encoder.layers[0].mlp.lin1.weight.clone()
    (row,) = train(PromptedSam(model, amp=amp), *sets, epochs=1, batch_size=4)
    assert np.isfinite(row["train_loss"])
    after = model.vision_encoder.layers[0].mlp.lin1.weight
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)


def test_mixed_precision_is_for_the_encoder_only() -> None:
    """Prompt encoder and decoder use float32, because bfloat16 would move clicks."""
    with pytest.raises(ValueError, match="fp8"):
        PromptedSam(tiny_sam(), amp="fp8")
    data = SamDataset(*cells(n=1))
    batch = prepare(collate([data[0]]), Geometry(64))
    wrapper = PromptedSam(tiny_sam(), rounds=1, amp="bf16")
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
    few = Sampled(sets[0], objects=2)
    (row,) = train(PromptedSam(sam, rounds=1), few, sets[1], epochs=1, batch_size=16)
    assert most == [2, 2, 2]  # three batches
    assert row["count"] == 36


def test_objects_are_scored_in_chunks_that_fit_into_memory(
    sets: tuple[SamDataset, SamDataset],
) -> None:
    """No forward pass has more objects than fit into memory, and the scores are the same."""
    wrapper = PromptedSam(tiny_sam(), rounds=max(CLICKS))
    expected = score_objects(wrapper, sets[1])
    chunks: list[int] = []
    wrapper.register_forward_pre_hook(lambda _, args: chunks.append(len(args[0]["image_index"])))
    wrapper.memory_bytes = 5 * 1024 * 32**2
    scores = score_objects(wrapper, sets[1])
    for name, column in expected.items():
        np.testing.assert_allclose(scores[name], column, atol=1e-6)
    assert max(chunks) == 5
    assert sum(chunks) == 36


def test_callbacks_see_each_step_and_epoch(sets: tuple[SamDataset, SamDataset]) -> None:
    """Steps have the loss of all objects and the rate of the schedule; True stops the training."""
    steps: list[dict[str, float]] = []
    rows: list[int] = []

    def stop(history: list[dict[str, float]]) -> bool:
        rows.append(len(history))
        return len(history) == 2

    def constant(optimizer: optim.Optimizer, total: int) -> ConstantLR:
        assert total == 9 * 6
        return ConstantLR(optimizer, factor=0.5, total_iters=3)

    history = train(
        PromptedSam(tiny_sam(), rounds=1),
        sets[1],
        sets[1],
        epochs=9,
        batch_size=2,
        optimizer=lambda parameters: optim.SGD(parameters, lr=0.1),
        schedule=constant,
        on_step=steps.append,
        on_epoch=stop,
    )
    assert rows == [1, 2]
    assert len(history) == 2
    assert [step["step"] for step in steps] == list(range(1, 13))
    assert [step["lr"] for step in steps] == [0.05] * 3 + [0.1] * 9
    losses = [step["loss"] for step in steps[:6]]  # all batches have about as many objects
    assert np.mean(losses) == pytest.approx(history[0]["train_loss"], rel=0.01)


def test_a_step_without_objects_has_no_loss(capsys: pytest.CaptureFixture[str]) -> None:
    """0 would look perfect in a curve. Without held-out images, a line says so."""
    images, masks, _ = cells(n=4)
    masks[:2] = 0
    data, steps = SamDataset(images, masks), list[dict[str, float]]()
    model = PromptedSam(tiny_sam(), rounds=1)
    (row,) = train(model, data, Subset(data, []), epochs=1, batch_size=1, on_step=steps.append)
    assert sorted(np.isnan(step["loss"]) for step in steps) == [False, False, True, True]
    assert row["train_loss"] > 0
    assert "val_set has no objects" in capsys.readouterr().out


def test_the_first_step_follows_the_loss_and_the_clipped_gradient() -> None:
    """With SGD, it is the gradient of the mean over all objects, of norm 1 at most."""
    data = SamDataset(*cells(n=4))
    sam, calls = tiny_sam(), []

    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls.append((logits.shape, target.shape))
        return 1000 * nn.BCEWithLogitsLoss(reduction="none")(logits, target)

    before = {name: p.detach().clone() for name, p in sam.named_parameters()}
    wrapper = PromptedSam(sam, rounds=1, multimask=False)
    options: dict[str, Any] = {"loss": loss, "schedule": lambda o, _: ConstantLR(o, 1.0)}
    sgd = partial(optim.SGD, lr=1.0)
    (row,) = train(wrapper, data, data, epochs=1, batch_size=4, optimizer=sgd, **options)
    moved = [(p - before[name]).norm() ** 2 for name, p in sam.named_parameters()]
    assert torch.stack(moved).sum().sqrt().item() == pytest.approx(1, rel=1e-3)
    assert calls[2:] == [((12, 1, 64, 64), (12, 1, 64, 64))]  # the first two are a check
    assert row["train_loss"] > 100


def test_losses_of_monai_and_torch_are_losses() -> None:
    """Per mask or per pixel; one number for all masks is an error that says what to do."""
    target = torch.zeros(2, 1, 16, 16)
    target[..., 4:12, 4:12] = 1
    right = torch.where(target > 0, 9.0, -9.0)
    logits = torch.cat([-right, right, -right], 1).requires_grad_()
    iou = torch.tensor([[0.0, 1.0, 0.0]] * 2)
    for loss in (
        dice_bce,
        DiceFocalLoss(sigmoid=True, lambda_focal=20, reduction="none"),
        TverskyLoss(sigmoid=True, reduction="none"),
        nn.BCEWithLogitsLoss(reduction="none"),
    ):
        values = object_losses(logits, iou, target, loss)
        assert values.shape == (2,)
        assert values.max() < 0.05  # only the best of three masks is trained
        (gradient,) = torch.autograd.grad(values.sum(), logits)
        assert not gradient[:, [0, 2]].any()
        assert object_losses(logits, 1 - iou, target, loss).min() > 0.9
    with pytest.raises(ValueError, match=r"shape \(\) for 6 masks.*reduction='none'"):
        object_losses(logits, iou, target, nn.BCEWithLogitsLoss())


def test_a_loader_of_the_users_own_is_used() -> None:
    """Its batches, sampler and processes; prompts differ between epochs all the same."""
    data, counts = SamDataset(*cells(n=4)), []
    sampler = WeightedRandomSampler([0, 0, 1, 1], 6)
    loader = DataLoader(data, 3, sampler=sampler, num_workers=1)

    def noted(item: Any, _: torch.Generator) -> Any:
        return item | {"image": 255 - item["image"]}

    def own_collate(items: Any) -> Any:
        counts.append(len(items))
        return collate(items)

    (row,) = train(PromptedSam(tiny_sam(), rounds=1), loader, data, epochs=1, transform=noted)
    assert row["images_per_s"] * row["seconds"] > 6  # 6 images, and the scoring of others
    own = DataLoader(data, batch_sampler=[[0, 1, 2], [3]], collate_fn=own_collate)
    train(PromptedSam(tiny_sam(), rounds=1), own, data, epochs=2)
    assert counts == [3, 1, 3, 1]
    for wrong in (DataLoader(data, None), DataLoader(data, 8, drop_last=True)):
        with pytest.raises(ValueError, match="the loader has no batches"):
            train(tiny_sam(), wrong, data)
