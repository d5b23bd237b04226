"""The decoder of instances: its targets, its loss, its proposals, and its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import SamModel

from ddp_magic.prelude import SamDataset, cells, tiny_sam, train, tune
from ddp_magic.sam.arrays.masks import label_map
from ddp_magic.sam.data.batches import Geometry, collate, prepare
from ddp_magic.sam.models.instances import (
    FILE,
    InstanceDecoder,
    attach_decoder,
    decoder_of,
    instance_decoder,
    instance_losses,
    middles,
    place_in_object,
)
from ddp_magic.sam.models.model import PromptedSam
from ddp_magic.sam.training.losses import step_losses


def _labels() -> torch.Tensor:
    """Return two maps of 8 x 8 pixels: objects of 5 x 3 pixels and of 1 pixel; the same label."""
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    labels[0, 1:6, 2:5] = 7
    labels[1, 3, 3] = 7
    labels[1, 7] = -1
    return labels


def test_targets_are_offsets_from_the_center_relative_to_the_largest() -> None:
    """Down and to the right are positive, 1 at the border of the object, and 0 outside."""
    places, share = place_in_object(_labels())
    down, right = places[0]
    assert down[1:6, 3].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert right[3, 2:5].tolist() == [-0.5, 0, 0.5]
    assert share.sum((1, 2, 3)).tolist() == pytest.approx([1, 1])
    assert share[0, 0, 1, 2].item() == pytest.approx(1 / 15)
    assert not (places * (share == 0)).any()
    assert not places[1].any()  # a single pixel is its own center
    everywhere, _ = place_in_object(torch.ones(1, 4, 4, dtype=torch.long))  # no background
    assert everywhere[0, 0, 0, 0] == -1


def test_perfect_maps_have_no_loss_and_ignored_pixels_do_not_count() -> None:
    """Each object counts the same; an image without objects has the loss of its background."""
    labels = _labels()
    perfect = torch.cat([(labels > 0)[:, None] * 40.0 - 20, place_in_object(labels)[0]], 1)
    assert instance_losses(perfect, labels).max() < 1e-6
    other = perfect.clone()
    other[1, 0, 7] = 20.0  # foreground where pixels are ignored
    assert instance_losses(other, labels).max() < 1e-6
    other[1, 1:, 3, 3] = 1.0
    assert instance_losses(other, labels)[1].item() == pytest.approx(0.95, abs=1e-5)
    double = labels.repeat_interleave(2, 1).repeat_interleave(2, 2)  # a higher resolution
    assert instance_losses(perfect, double).max() < 1e-6
    assert instance_losses(perfect * 0, labels * 0).tolist() == pytest.approx([np.log(2)] * 2)


def test_middles_of_perfect_maps_are_those_of_the_objects() -> None:
    """Touching objects have one each."""
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    labels[0, 4:15, 4:15] = 1
    labels[0, 4:15, 15:26] = 2
    maps = torch.cat([(labels > 0)[:, None] * 40.0 - 20, place_in_object(labels)[0]], 1)
    image, at = middles(maps)
    assert image.tolist() == [0, 0]
    assert at.tolist() == [[9, 9], [20, 9]]


def test_the_output_of_a_token_is_around_its_position() -> None:
    """Four pixels per token and axis; a token has an effect on its neighbors only."""
    layer = InstanceDecoder(3)
    before = torch.get_rng_state()
    assert torch.equal(InstanceDecoder(3).conv1.weight, layer.conv1.weight)
    assert torch.equal(torch.get_rng_state(), before)
    tokens = torch.zeros(1, 3, 6, 6)
    empty = layer(tokens)
    assert empty.shape == (1, 3, 24, 24)
    tokens[0, :, 1, 4] = 1
    changed = (layer(tokens) != empty).any(1)[0]
    assert changed[4:8, 16:20].any()
    assert not changed[14:].any()
    assert not changed[:, :10].any()


def test_only_the_offsets_train_the_encoder() -> None:
    """The foreground is learned from the embeddings as they are; the values are the same."""
    layer = InstanceDecoder(3)
    tokens = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    fixed = layer(tokens)
    tokens.requires_grad_()
    maps = layer(tokens)
    assert torch.equal(maps, fixed)
    maps[:, 0].sum().backward()
    assert tokens.grad is None or not tokens.grad.any()
    assert layer.conv1.weight.grad is not None
    layer(tokens)[:, 1:].sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.any()


def test_the_loss_and_the_gradient_include_the_decoder() -> None:
    """The losses of a step include it with its weight, and its gradient reaches the encoder."""
    data = SamDataset(*cells(n=4))
    wrapper = PromptedSam(tiny_sam())
    whole = [data[i] | {"instances": data.instances(i)} for i in range(4)]
    batch = prepare(collate(whole), Geometry(64))
    without = step_losses(wrapper, batch)
    wrapper.auxiliary = InstanceDecoder(96, weight=0.5)
    with_it = step_losses(wrapper, batch)
    assert wrapper.auxiliary_output is not None
    of_images = instance_losses(wrapper.auxiliary_output, batch["instances"])
    torch.testing.assert_close(with_it, without + 0.5 * of_images[batch["image_index"]])
    of_images.sum().backward()
    weight = wrapper.sam.vision_encoder.layers[0].mlp.lin1.weight
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0


def test_all_objects_of_a_mask_are_in_the_label_map() -> None:
    """Not only the prompted ones; in a stack, smaller objects cover larger ones."""
    stack = np.zeros((2, 4, 4), bool)
    stack[0, 1, 1] = True
    stack[1, :3] = True
    assert label_map(stack)[:2].tolist() == [[2, 2, 2, 2], [2, 1, 2, 2]]
    large = np.array([[0, 2**40], [2**41, 2**40]])
    assert label_map(large).tolist() == [[0, 1], [2, 1]]
    data = SamDataset([np.zeros((4, 4), np.uint8)], [stack], [(0, 1, 1)])
    assert len(data[0]["masks"]) == 1
    assert data.instances(0).unique().tolist() == [0, 1, 2]


def test_it_is_saved_beside_a_model_that_transformers_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model has the same parameters as before; without the file, there is a message."""
    data, sam = SamDataset(*cells(n=2)), tiny_sam()
    monkeypatch.chdir(tmp_path)
    wrapper = PromptedSam(sam, rounds=1, auxiliary=instance_decoder(sam))
    train(wrapper, data, data, epochs=1, out_dir="out")
    assert sam.state_dict().keys() == tiny_sam().state_dict().keys()
    loaded, info = SamModel.from_pretrained("out/best", output_loading_info=True)
    assert not any(info.values())
    assert loaded.config.training_size == [64, 64, 64]
    ours, theirs = decoder_of(sam), decoder_of(loaded)
    assert isinstance(ours, nn.Module)
    assert isinstance(theirs, nn.Module)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name])
    Path("out/best", FILE).unlink()
    assert decoder_of(SamModel.from_pretrained("out/best")) is None
    assert f"out/best has no {FILE}" in capsys.readouterr().out
    assert instance_decoder(sam) is ours
    attach_decoder(sam, None)
    assert decoder_of(sam) is None
    assert instance_decoder(sam, weight=2.0) is not ours


def test_a_frozen_encoder_learns_it_too() -> None:
    """The decoder learns from the stored embeddings; another training keeps it."""
    data, sam = SamDataset(*cells(n=2)), tune(tiny_sam(), "decoder")
    wrapper = PromptedSam(sam, rounds=1, auxiliary=instance_decoder(sam))
    train(wrapper, data, data, epochs=1)
    decoder = decoder_of(sam)
    assert decoder is not None
    assert not torch.equal(decoder.conv1.weight, InstanceDecoder(96).conv1.weight)
    train(PromptedSam(sam, rounds=1), data, data, epochs=1)
    assert decoder_of(sam) is decoder
    train(PromptedSam(tune(sam, "full"), rounds=1), data, data, epochs=1)
    assert decoder_of(sam) is None  # the encoder has changed without it
