"""The same functions for SamModel, SamHQModel, Sam2Model and Sam3TrackerModel."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import optim
from transformers import AutoModel

from ddp_magic.prelude import SamDataset, cells, predict, train
from ddp_magic.sam.data.batches import collate, prepare
from ddp_magic.sam.models.adapter import (
    as_arguments,
    encode,
    encoder_parameters,
    fingerprint,
    geometry_of,
    is_frozen,
)
from ddp_magic.sam.models.instances import InstanceDecoder
from ddp_magic.sam.models.layers import FASTER, use_faster
from ddp_magic.sam.models.model import PromptedSam
from ddp_magic.sam.models.tuning import tune

from .family import FAMILY, build


@pytest.fixture(scope="module")
def data() -> SamDataset:
    return SamDataset(*cells(n=4, size=48))


@pytest.mark.parametrize("kind", FAMILY)
def test_encoding_is_the_models_own(kind: str, data: SamDataset) -> None:
    """Embeddings equal get_image_embeddings, and give the same masks as pixels."""
    sam = build(kind).eval()
    batch = prepare(collate([data[0]]), geometry_of(sam))
    with torch.no_grad():
        maps = encode(sam, batch["pixel_values"])
        own = sam.get_image_embeddings(batch["pixel_values"])
        flat = [own] if torch.is_tensor(own) else [own[0], own[1][0]] if kind == "sam_hq" else own
        for a, b in zip(maps, flat, strict=True):
            assert torch.equal(a, b)
        prompts = {"input_points": batch["points"][None], "input_labels": batch["labels"][None]}
        ours = sam(**as_arguments(sam, maps), **prompts)
        theirs = sam(pixel_values=batch["pixel_values"], **prompts)
        ((logits, _),) = PromptedSam(sam, rounds=1)(batch)
    torch.testing.assert_close(ours.pred_masks, theirs.pred_masks)
    torch.testing.assert_close(logits, theirs.pred_masks[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["sam", "sam_hq"])
def test_the_faster_encoder_is_the_models_own(kind: str, data: SamDataset) -> None:
    """With random relative positions: equal embeddings and gradients."""
    sam = build(kind)
    tables = [p for name, p in sam.vision_encoder.named_parameters() if "rel_pos" in name]
    with torch.no_grad():
        for table in tables:
            table.normal_()
    pixels = prepare(collate([data[0], data[1]]), geometry_of(sam))["pixel_values"]
    found = []
    for way in (lambda _: None, use_faster):
        way(sam)
        maps = sam.vision_encoder(pixels).last_hidden_state
        weights = torch.linspace(-1, 1, maps.numel()).view_as(maps)
        found.append([maps.detach(), *torch.autograd.grad((maps * weights).sum(), tables)])
    for theirs, ours in zip(*found, strict=True):
        assert theirs.any()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    assert {type(layer.attn) for layer in sam.vision_encoder.layers} <= {*FASTER.values()}


@pytest.mark.parametrize("kind", FAMILY)
def test_the_encoder_learns(kind: str, data: SamDataset) -> None:
    """Gradients reach the encoder; get_image_embeddings would silently detach them."""
    sam = build(kind)
    ((logits, _),) = PromptedSam(sam, rounds=1)(prepare(collate([data[0]]), geometry_of(sam)))
    logits.square().mean().backward()
    assert any(p.grad is not None and p.grad.any() for p in encoder_parameters(sam))


@pytest.mark.parametrize("what", ["full", "decoder", "lora"])
@pytest.mark.parametrize("kind", FAMILY)
def test_each_is_trained_saved_and_used(
    kind: str, what: str, data: SamDataset, tmp_path: Any
) -> None:
    """An epoch changes what it should, and the checkpoint loads and predicts the same."""
    sam, three = tune(build(kind), what), what == "full"
    before = fingerprint(sam)
    head = None if what == "decoder" else InstanceDecoder(32 if kind != "sam" else 96, weight=1.0)
    wrapper = PromptedSam(sam, rounds=2, multimask=three, auxiliary=head)
    options: dict[str, Any] = {"optimizer": partial(optim.AdamW, lr=1e-2), "out_dir": tmp_path}
    train(wrapper, data, data, epochs=1, batch_size=2, **options)
    tune(sam, "full")
    assert set(sam.state_dict()) == set(build(kind).state_dict())
    assert (fingerprint(sam) == before) == (what == "decoder")
    assert (tmp_path / "embeddings").exists() == (what == "decoder")
    loaded = AutoModel.from_pretrained(tmp_path / "last")
    assert PromptedSam(loaded).multimask == three  # stored in the checkpoint
    image, click = cells(n=1)[0][0], [(20, 20)]
    assert np.array_equal(predict(sam, image, click), predict(loaded, image, click))


@pytest.mark.parametrize("kind", ["sam2", "sam3_tracker"])
def test_the_trained_mask_is_returned(kind: str, data: SamDataset, tmp_path: Path) -> None:
    """A model trained for single masks returns them, even if they are unstable."""
    sam = build(kind)
    wrapper = PromptedSam(sam, rounds=1, multimask=False)
    train(wrapper, data, data, epochs=1, out_dir=tmp_path)
    batch = prepare(collate([data[0]]), geometry_of(sam))
    for model in (sam, AutoModel.from_pretrained(tmp_path / "last")):
        wrapper = PromptedSam(model, rounds=1)
        with torch.no_grad():
            ((trained, _),), ((evaluated, _),) = wrapper.train()(batch), wrapper.eval()(batch)
        torch.testing.assert_close(evaluated, trained)


def test_geometry_of_sam2_is_stretched() -> None:
    """SAM 2 and 3 stretch images to a square; each axis of the points has its own scale."""
    geometry = geometry_of(build("sam2"))
    mask = np.ones((1, 30, 60), bool)
    data = SamDataset(np.zeros((1, 30, 60), np.uint8), mask, [(0, 15, 30)])
    batch = prepare(collate([data[0]]), geometry)
    assert batch["points"][0, 0].tolist() == [64, 64]
    assert batch["inside"].all()
    assert batch["target"].min() == 1


def test_sam3_normalization() -> None:
    """SAM 3 scales gray levels 0 to 255 to -1 to 1."""
    images = np.stack([np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8)])
    data = SamDataset(images, np.ones((2, 8, 8), bool))
    batch = prepare(collate([data[0], data[1]]), geometry_of(build("sam3_tracker")))
    assert batch["pixel_values"].amin((1, 2, 3)).tolist() == [-1, 1]


def test_other_models_are_refused() -> None:
    """The error for a model of another family contains its class."""
    with pytest.raises(TypeError, match="unsupported model Linear"):
        PromptedSam(torch.nn.Linear(1, 1))


def test_an_encoder_frozen_by_the_user_is_frozen() -> None:
    """The encoder is frozen only when all its parameters are."""
    sam = build("sam")
    for parameter in encoder_parameters(sam):
        assert not is_frozen(sam)
        parameter.requires_grad_(False)
    assert is_frozen(sam)
