"""Wrong arguments of the public functions are refused by name, with what is allowed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader
from transformers.optimization import Adafactor

from ddp_magic.prelude import (
    Muon,
    PromptedSam,
    SamDataset,
    Sampled,
    cells,
    collate,
    evaluate,
    nuclei,
    predict,
    prepare,
    segment,
    show_history,
    step_losses,
    tiny_sam,
    train,
    tune,
    warmup_cosine,
)

IMAGES, MASKS, CLICKS = cells(n=4)
DATA = SamDataset(IMAGES, MASKS, CLICKS)
MODEL = tiny_sam()
GRAY = IMAGES[0]
NAN = float("nan")


def learn(**options: Any) -> Any:
    """Train for one epoch."""
    return train(tiny_sam(), DATA, DATA, **{"epochs": 1, "batch_size": 2} | options)


def other() -> list[nn.Parameter]:
    """Return the parameters of another model."""
    return list(tiny_sam().parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nuclei(size=8), "size 8: use an integer from 32 to 160"),
        (lambda: nuclei(size=[64, 500]), r"size \[64, 500\]"),
        (lambda: SamDataset(IMAGES, MASKS, window=(1, 2, 3)), r"window \(1, 2, 3\)"),  # type: ignore[arg-type]
        (lambda: SamDataset(IMAGES, MASKS, window=5), "window 5: use two numbers"),  # type: ignore[arg-type]
        (lambda: SamDataset(IMAGES, MASKS, window=("a", "b")), r"window \('a', 'b'\)"),  # type: ignore[arg-type]
        (lambda: SamDataset(IMAGES, MASKS, window=(0, NAN)), "window"),
        (lambda: SamDataset(IMAGES, MASKS, ignore_label=[255]), r"ignore_label \[255\]"),  # type: ignore[arg-type]
        (lambda: collate([]), "batch has no items"),
        (lambda: step_losses(PromptedSam(MODEL), collate([DATA[0]])), "batch .* prepare"),
        (lambda: segment(MODEL, GRAY, max_share=90), "max_share 90: use a number from 0 to 1"),
        (lambda: segment(MODEL, GRAY, min_iou=70), "min_iou 70"),
        (lambda: predict(MODEL, GRAY, []), "needs clicks, a box or a mask"),
        (lambda: predict(MODEL, GRAY, "abc"), "points must be an array of numbers"),
        (lambda: predict(MODEL, GRAY, boxes=3), "boxes must be an array of numbers"),
        (lambda: predict(MODEL, GRAY, (5, 5), "on"), "labels must be an array of numbers"),
        (lambda: predict(MODEL, GRAY, (5, 5), 2), "labels of clicks must be 1"),
        (lambda: tiny_sam(image_size=65), "image_size 65 .* multiple of patch_size, 8"),
        (lambda: PromptedSam(MODEL, rounds=2.5), "rounds 2.5"),  # type: ignore[arg-type]
        (lambda: PromptedSam(MODEL, ["points"]), r"prompts \['points'\]"),  # type: ignore[arg-type]
        (lambda: PromptedSam(MODEL, {"points": NAN}), "prompts"),
        (lambda: Sampled(DATA, objects=2.5), "objects 2.5"),  # type: ignore[arg-type]
        (lambda: evaluate(MODEL, DATA, batch_size=1.5), "batch_size 1.5"),  # type: ignore[arg-type]
        (lambda: tune(MODEL, "lora", rank=2.5), "rank 2.5: use an integer of 1 or more"),  # type: ignore[arg-type]
        (lambda: learn(epochs=0), "epochs 0"),
        (lambda: learn(epochs=-3), "epochs -3"),
        (lambda: learn(batch_size=2.5), "batch_size 2.5"),
        (lambda: learn(batch_size=True), "batch_size True"),
        (lambda: learn(seed="a"), "seed 'a'"),
        (lambda: learn(resume=True, overwrite=True, out_dir="a"), "resume=True .* overwrite=True"),
        (lambda: learn(optimizer=lambda _: optim.AdamW(other())), "optimizer .* another model"),
        (lambda: learn(optimizer=Adafactor), "Adafactor without a learning rate"),
        (
            lambda: learn(schedule=lambda *_: warmup_cosine(optim.SGD(other()), 9)),
            "schedule returned one of another optimizer",
        ),
        (lambda: train(MODEL.requires_grad_(False), DATA, DATA), "are frozen: tune"),
    ],
)
def test_wrong_values_are_refused(call: Callable[[], object], message: str) -> None:
    """The error names the argument, where no library would refuse it, or not at once."""
    try:
        with pytest.raises(ValueError, match=message):
            call()
    finally:
        MODEL.requires_grad_(True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Sampled([1, 2]), "dataset must be a data set"),  # type: ignore[arg-type]
        (lambda: prepare(collate([DATA[0]]), MODEL), "geometry, not dict and SamModel"),  # type: ignore[arg-type]
        (lambda: segment("best", GRAY), "unsupported model str"),  # type: ignore[arg-type]
        (lambda: predict(None, GRAY, (5, 5)), "unsupported model NoneType"),  # type: ignore[arg-type]
        (lambda: tune(nn.Linear(2, 2), "full"), "unsupported model Linear"),
        (
            lambda: PromptedSam(torch.compile(MODEL, backend="eager")),
            r"as a whole.*vision_encoder\.compile",
        ),
        (lambda: PromptedSam(MODEL, auxiliary=True), "auxiliary must be .* not True"),  # type: ignore[arg-type]
        (lambda: Muon(other(), lr=1e-3), "model must be a model, not list"),  # type: ignore[arg-type]
        (lambda: show_history({"dice": 1}), "history must be what train returns"),  # type: ignore[arg-type]
        (lambda: PromptedSam(MODEL, multimask="no"), "multimask must be True or False, not 'no'"),  # type: ignore[arg-type]
        (lambda: SamDataset(IMAGES, MASKS, components="no"), "components must be True or False"),  # type: ignore[arg-type]
        (lambda: Sampled(DATA, instances=0), "instances must be True or False, not 0"),  # type: ignore[arg-type]
        (lambda: segment(MODEL, GRAY, quiet=1), "quiet must be True or False"),  # type: ignore[arg-type]
        (lambda: evaluate(MODEL, DATA, instances=None), "instances must be True or False"),  # type: ignore[arg-type]
        (lambda: learn(overwrite="no"), "overwrite must be True or False"),
        (lambda: learn(resume="no", out_dir="a"), "resume must be True or False"),
        (lambda: learn(on_step=5), "on_step must be a function"),
        (lambda: learn(optimizer=optim.SGD(other())), "optimizer must be a function, not"),
        (lambda: learn(optimizer=lambda _: None), "optimizer must return Optimizer of torch"),
        (lambda: learn(schedule=lambda *_: None), "schedule must return LRScheduler of torch"),
        (lambda: learn(loss=lambda *_: None), "loss must return a tensor with a gradient"),
        (lambda: learn(loss=lambda a, b: (a.detach() - b).abs()), "loss must return a tensor with"),
        (lambda: learn(optimizer=optim.LBFGS), "returned LBFGS, whose .* needs closure"),
        (
            lambda: learn(schedule=lambda opt, _: lr_scheduler.ReduceLROnPlateau(opt)),
            "schedule returned ReduceLROnPlateau, whose .* needs metrics",
        ),
        (
            lambda: train(tiny_sam(), DataLoader(DATA, collate_fn=list[Any]), DATA),
            "a batch from collate .* not list and Geometry",
        ),
        (
            lambda: train(tiny_sam(), DataLoader(DATA, collate_fn=lambda some: some[0]), DATA),
            "a batch from collate .* not an item and Geometry",
        ),
    ],
)
def test_wrong_types_are_refused(call: Callable[[], object], message: str) -> None:
    """The error names the argument."""
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(reduction="none"), lambda a, b: a * b])
def test_a_loss_that_does_not_prefer_the_true_mask_is_refused(loss: Any) -> None:
    """Cross-entropy over one class is 0 for all masks, and nothing was learned."""
    with pytest.raises(ValueError, match=r"for the true mask, and .* for its opposite"):
        learn(loss=loss)


def test_other_dtypes_of_weights_are_refused() -> None:
    """As those of a checkpoint in half precision, which failed in the first layer."""
    for model in (tiny_sam().half(), tiny_sam().double()):
        with pytest.raises(ValueError, match=r"weights of torch\.float.*: call model\.float\(\)"):
            predict(model, GRAY, (5, 5))


def test_integers_of_numpy_are_numbers() -> None:
    """Such as the size of a batch that was computed."""
    (row,) = learn(epochs=np.int64(1), batch_size=np.int64(2), seed=np.uint8(3))
    assert row["epoch"] == 1
    assert evaluate(MODEL, DATA, batch_size=np.int32(2), workers=np.int64(0))["count"] == 12  # type: ignore[arg-type]
    assert segment(MODEL, GRAY, points_per_side=np.int16(2), quiet=True).shape == GRAY.shape  # type: ignore[arg-type]


def test_a_window_may_be_an_array() -> None:
    """It becomes two floats, so that a checkpoint can store it."""
    data = SamDataset(IMAGES / 9.0, MASKS, window=np.array([1, 20]))  # type: ignore[arg-type]
    assert data.window == (1.0, 20.0)
    assert type(data.window[0]) is float


def test_a_loss_that_is_not_finite_names_the_image() -> None:
    """The weights stay those of the step before."""
    images = IMAGES.copy()
    images[2, :, ::2] = 255
    data, model = SamDataset(images, MASKS, CLICKS), tiny_sam()
    steps: list[float] = []

    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        worst = NAN if len(steps) == 5 else 1.0
        return (logits * worst - target).square()

    with pytest.raises(FloatingPointError, match=r"loss is nan in epoch 2, step 2, for image \d;"):
        train(
            model,
            data,
            data,
            epochs=3,
            batch_size=1,
            loss=loss,
            on_step=lambda s: steps.append(s["loss"]),
        )
    assert all(p.isfinite().all() for p in model.parameters())


def test_images_of_another_dtype_are_not_held_out() -> None:
    """They would be scaled by another rule than those of the training."""
    for images in (IMAGES.astype(np.uint16) * 200, IMAGES / 255):
        with pytest.raises(ValueError, match=r"val_set has images of dtype .*train_set uint8"):
            train(tiny_sam(), DATA, SamDataset(images, MASKS), epochs=1)


def test_an_optimizer_of_some_parameters_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """It may be meant, as it is for biases alone."""
    learn(optimizer=lambda p: optim.SGD(p[:3], lr=1e-3))
    assert "optimizer has 3 of " in capsys.readouterr().out


def test_nothing_left_to_train_is_said(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """`epochs` includes those before `resume`."""
    history = learn(out_dir=tmp_path)
    assert learn(out_dir=tmp_path, resume=True) == history
    assert "has 1 epochs already" in capsys.readouterr().out


def test_the_loop_can_be_copied() -> None:
    """`train` fits two screens, its docstring included, and has few parameters."""
    assert len(inspect.getsource(train).splitlines()) <= 120
    assert len(inspect.signature(train).parameters) <= 15
