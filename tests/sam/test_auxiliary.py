"""The auxiliary task of the encoder: its targets, and that training with it works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ddp_magic.prelude import SamDataset, cells, tiny_sam, train
from ddp_magic.sam.auxiliary import PlaceInObject, place_in_object, place_losses
from ddp_magic.sam.batches import Geometry, collate, prepare
from ddp_magic.sam.losses import step_losses
from ddp_magic.sam.model import PromptedSam


def _rectangles() -> torch.Tensor:
    """Return three targets of 16 pixels; as masks of 8 pixels: 5 x 3 pixels, 1 pixel, empty."""
    target = torch.zeros(3, 1, 16, 16)
    target[0, :, 2:12, 4:10] = 1
    target[1, :, 6:8, 6:8] = 1
    return target


def test_targets_are_offsets_from_the_center_relative_to_the_largest() -> None:
    """Down and to the right are positive, 1 at the border of the object, and 0 outside."""
    places, own = place_in_object(_rectangles(), 8)
    assert own.sum((1, 2, 3)).tolist() == [15, 1, 0]
    assert own[0, 0, 1:6, 2:5].all()
    down, right = places[0]
    assert down[1:6, 3].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert right[3, 2:5].tolist() == [-1, 0, 1]
    assert not (places * (1 - own)).any()
    assert not places[1:].any()  # a single pixel is its own center


def test_only_an_objects_own_pixels_count() -> None:
    """The loss of an object uses its pixels in its image; without pixels it is 0."""
    target = _rectangles()
    truth, own = place_in_object(target, 8)
    predicted = torch.stack([truth[0] + 9 * (1 - own[0]), torch.ones(2, 8, 8)])  # of two images
    losses = place_losses(predicted, target, torch.tensor([0, 1, 1]))
    assert losses.tolist() == pytest.approx([0, 0.95, 0])  # smooth L1 of 1, beta 0.1
    assert place_losses(predicted, target[:0], torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_the_output_of_a_token_is_at_its_position() -> None:
    """Each token predicts its own 4 x 4 pixels, at first zeros."""
    layer = PlaceInObject(3, weight=1.0)
    tokens = torch.zeros(1, 3, 2, 5)
    assert not layer(tokens).any()
    nn.init.ones_(layer.linear.weight)
    tokens[0, :, 1, 2] = 1
    predicted = layer(tokens)
    assert predicted.shape == (1, 2, 8, 20)
    assert predicted[:, :, 4:8, 8:12].eq(3).all()
    assert predicted.sum() == 2 * 16 * 3


def test_the_loss_and_the_gradient_include_the_auxiliary_loss() -> None:
    """The losses of a step include it with its weight, and its gradient reaches the encoder."""
    data = SamDataset(*cells(n=4))
    wrapper = PromptedSam(tiny_sam())
    batch = prepare(collate([data[i] for i in range(4)]), Geometry(64))
    without = step_losses(wrapper, batch)
    wrapper.auxiliary = PlaceInObject(96, weight=0.5)
    nn.init.normal_(wrapper.auxiliary.linear.weight, std=0.1)
    with_it = step_losses(wrapper, batch)
    assert wrapper.auxiliary_output is not None
    place = place_losses(wrapper.auxiliary_output, batch["target"], batch["image_index"])
    assert place.min() > 0
    torch.testing.assert_close(with_it, without + 0.5 * place)
    place.sum().backward()
    weight = wrapper.sam.vision_encoder.layers[0].mlp.lin1.weight
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0


def test_it_is_learned_and_the_model_stays_as_it_was(tmp_path: Path) -> None:
    """The predictions are better than zeros; the model has the same parameters as before."""
    data, sam = SamDataset(*cells(n=64)), tiny_sam()
    val_set = SamDataset(*cells(n=2, seed=1))
    steps: dict[str, Any] = {"epochs": 3, "batch_size": 4, "rounds": 1}
    train(sam, data, val_set, **steps, optimizer="muon", lr=5e-3, auxiliary=1.0, out_dir=tmp_path)
    state = torch.load(tmp_path / "last" / "trainer.pt", weights_only=False)["auxiliary"]
    layer = PlaceInObject(96, weight=1.0)
    layer.load_state_dict(state)
    assert sam.state_dict().keys() == tiny_sam().state_dict().keys()
    wrapper = PromptedSam(sam).eval()
    batch = prepare(collate([data[i] for i in range(64)]), Geometry(64))
    with torch.no_grad():
        predicted = layer(wrapper.encode(batch["pixel_values"])[0])
    objects = batch["target"], batch["image_index"]
    learned, zeros = place_losses(predicted, *objects), place_losses(predicted * 0, *objects)
    assert learned.mean() < 0.4 * zeros.mean()  # measured: .25


def test_a_frozen_encoder_and_a_negative_weight_are_refused() -> None:
    """A frozen encoder cannot learn the task."""
    data = SamDataset(*cells(n=2))
    with pytest.raises(ValueError, match=r"auxiliary=1\.0 needs an encoder that is trained"):
        train(tiny_sam(), data, data, tune="decoder", auxiliary=1.0)
    with pytest.raises(ValueError, match="invalid auxiliary -1"):
        train(tiny_sam(), data, data, auxiliary=-1)
