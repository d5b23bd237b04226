"""Figures of batches and arrays are small, and closed after they are shown."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch

mpl.use("Agg")

import matplotlib.pyplot as plt

from ddp_magic.sam.data.batches import collate
from ddp_magic.sam.data.dataset import SamDataset
from ddp_magic.sam.data.samples import cells
from ddp_magic.sam.evaluation.evaluate import show_predictions
from ddp_magic.sam.evaluation.plots import show_history, show_results
from ddp_magic.sam.models.model import PromptedSam
from ddp_magic.sam.models.tiny import tiny_sam


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The figures for which plt.show() was called."""
    figures: list[Any] = []
    monkeypatch.setattr(plt, "show", lambda: figures.append(plt.gcf()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # of what other tests have left
        yield figures
    assert plt.get_fignums() == []  # all are closed


def test_a_batch_is_drawn_with_its_clicks(shown: list[Any]) -> None:
    """A row has the image with clicks and object numbers, the true and the predicted masks."""
    data = SamDataset(*cells(n=7))
    batch = collate([data[i] for i in range(7)])
    show_results(batch, predictions=batch["masks"], title="held out", rows=9)
    (figure,) = shown
    assert len(figure.axes) == 3 * 5  # at most five rows
    assert figure.get_size_inches()[0] < 7
    picture = figure.axes[0].get_images()[0].get_array()
    assert np.array_equal(picture, batch["images"][0].permute(1, 2, 0))  # not normalized
    assert len(figure.axes[0].collections) == len(data[0]["points"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["0", "1", "2"]
    assert figure.axes[2].get_xlabel() == "Dice 1.00"


def test_arrays_are_drawn(shown: list[Any]) -> None:
    """Images can have channels first, last or none; masks can be single masks or logits."""
    images = [torch.rand(3, 8, 9), np.zeros((8, 9, 3), np.uint8), np.zeros((8, 9))]
    points = [torch.tensor([[1.0, 2.0]]), np.zeros((0, 2)), [np.ones((2, 2)), np.ones((1, 2))]]
    masks = [torch.ones(1, 8, 9), np.zeros((8, 9), bool), np.ones((2, 8, 9), bool)]
    show_results(images, points, masks, [torch.randn(8, 9), masks[1], masks[2]])
    show_results(images)
    show_results([])
    assert len(shown) == 2
    show_results(images[:1], masks=[np.ones((3, 8, 9), bool)], predictions=[np.ones((2, 8, 9))])
    assert [axis.get_title() for axis in shown[1].axes] == ["image", "", ""]
    assert shown[2].axes[2].get_xlabel() == ""  # the numbers of objects differ: no score
    show_results([np.zeros((20, 40))], predictions=[np.ones((2, 20, 40))])
    assert [axis.get_title() for axis in shown[3].axes] == ["image", "predicted"]  # no empty column
    wide, tall = shown[3].get_size_inches()
    assert wide > 2 * tall


def test_clicks_are_rows_y_x(shown: list[Any]) -> None:
    """As those of `predict` and of a data set; a label stays the last column."""
    show_results([np.zeros((20, 40))], [[[(5, 30)], np.array([[6, 31, 0]])]])
    dots = [tuple(each.get_offsets()[0]) for each in shown[0].axes[0].collections]
    assert dots == [(30, 5), (31, 6)]
    assert [text.get_text() for text in shown[0].axes[0].texts] == ["0", "1"]


def test_history_is_drawn(shown: list[Any]) -> None:
    """The figure has the loss, the scores and the score of wrong prompts."""
    row = {"epoch": 1, "train_loss": 1.0, "dice": 0.5, "dice_5": 0.6, "wrong_prompt_dice": 0.1}
    show_history([row, {**row, "epoch": 2}], title="run")
    assert [line.get_label() for line in shown[0].axes[1].lines] == [
        "Dice, 1 click",
        "5 clicks",
        "wrong prompt",
    ]


def test_predictions_are_drawn_with_their_prompts(shown: list[Any]) -> None:
    """Simulated clicks and boxes are shown in pixels of the original image."""
    images, masks, _ = cells(n=2, size=96)
    data, model = SamDataset(images, masks), tiny_sam()
    show_predictions(model, data, [1])
    axis = shown[0].axes[0]
    places = [tuple(dots.get_offsets()[0]) for dots in axis.collections]
    labels = [masks[1][round(y), round(x)] for x, y in places]
    assert sorted(labels) == np.unique(masks[1])[1:].tolist()
    show_predictions(PromptedSam(model, "boxes"), data, [1])
    box = shown[1].axes[0].patches[0]
    y, x = np.argwhere(data[1]["masks"][0].numpy()).min(0)
    assert abs(box.get_x() - x) < 2
    assert abs(box.get_y() - y) < 2
    show_predictions(model, SamDataset(images, masks, []), title="no prompts")
    assert len(shown) == 3


def test_label_maps_are_drawn_object_by_object(shown: list[Any]) -> None:
    """Label maps as from `segment` can be empty; a boolean array is one mask."""
    labels = np.zeros((3, 20, 20), np.int32)
    labels[0, 2:8, 2:8], labels[0, 12:18, 12:18] = 3, 7
    show_results(
        np.zeros((3, 20, 20)), masks=labels, predictions=[labels[0], labels[1], labels[0] > 0]
    )
    numbers = [[text.get_text() for text in axes.texts] for axes in shown[0].axes]
    assert numbers == [[], ["0", "1"], ["0", "1"], [], [], [], [], [], ["0"]]
    assert shown[0].axes[2].get_xlabel() == "Dice 1.00"


def test_history_may_be_read_from_the_log(shown: list[Any]) -> None:
    """Its values are text, which matplotlib would draw in the order in which they come."""
    rows = [
        {
            "epoch": "1",
            "train_loss": "1.5",
            "dice": ".5",
            "dice_5": ".9",
            "wrong_prompt_dice": ".1",
        },
        {"epoch": "2", "train_loss": ".75", "dice": ".7", "dice_5": ".8", "wrong_prompt_dice": ""},
    ]
    rows[1]["wrong_prompt_dice"] = "nan"
    show_history(rows)  # type: ignore[arg-type]
    left = shown[-1].axes[0].lines[0]
    assert left.get_ydata().tolist() == [1.5, 0.75]


def test_curves_have_whole_epochs(shown: list[Any]) -> None:
    row = {"train_loss": 1.0, "dice": 0.5, "dice_5": 0.6, "wrong_prompt_dice": 0.1}
    show_history([{"epoch": float(epoch), **row} for epoch in (1, 2, 3)])
    for axes in shown[0].axes:
        assert all(tick == round(tick) for tick in axes.get_xticks())
