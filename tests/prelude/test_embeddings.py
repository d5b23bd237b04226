"""A frozen encoder runs once an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddp_magic.prelude import SamDataset, cells, tiny_sam, train
from ddp_magic.prelude.batches import collate, prepare
from ddp_magic.prelude.embeddings import store_embeddings
from ddp_magic.prelude.model import PromptedSam


def _count(sam: Any) -> list[int]:
    seen: list[int] = []
    sam.vision_encoder.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    return seen


def test_stored_equals_computed(tmp_path: Path) -> None:
    """Masks from stored embeddings are those from the image, to float16."""
    data, wrapper = SamDataset(*cells(n=5)), PromptedSam(tiny_sam().eval())
    stored = store_embeddings(wrapper, data, tmp_path, batch_size=2)
    with torch.no_grad():
        ((a, _),) = wrapper(prepare(collate([data[i] for i in (4, 1)]), wrapper.geometry))
        ((b, _),) = wrapper(prepare(collate([stored[i] for i in (4, 1)]), wrapper.geometry))
    assert (a - b).abs().max() < 0.02
    assert "image" not in stored[0]
    assert stored.maps[0].dtype == np.float16


def test_each_image_is_encoded_once(tmp_path: Path) -> None:
    """However many epochs; another training with the same encoder encodes none."""
    sets = SamDataset(*cells(n=6)), SamDataset(*cells(n=3, seed=1))
    sam = tiny_sam()
    seen = _count(sam)
    train(sam, *sets, epochs=3, batch_size=2, tune="decoder", out_dir=tmp_path)
    assert sum(seen) == 6 + 3 + 2  # and one image of each set, for the maps' shapes
    seen.clear()
    train(sam, *sets, epochs=1, batch_size=2, tune="decoder", out_dir=tmp_path)
    assert sum(seen) == 2
    seen.clear()
    images, masks, clicks = cells(n=6)
    images[2] = 255 - images[2]
    changed = SamDataset(images, masks, clicks)
    train(sam, changed, sets[1], epochs=1, batch_size=2, tune="decoder", out_dir=tmp_path)
    assert sum(seen) == 2 + 1
    seen.clear()
    train(tiny_sam(seed=1), *sets, epochs=1, batch_size=2, tune="decoder", out_dir=tmp_path)
    again = np.load(tmp_path / "embeddings" / "train" / "map0.npy")
    other = PromptedSam(tiny_sam(seed=1).eval())
    with torch.no_grad():
        (true,) = other.encode(prepare(collate([sets[0][0]]), other.geometry)["pixel_values"])
    assert np.abs(again[0] - true[0].numpy()).max() < 0.01


def test_augmentation_is_refused() -> None:
    """Turned images would need other embeddings: the error says what to do."""
    sets = SamDataset(*cells(n=2)), SamDataset(*cells(n=2, seed=1))
    sam = tiny_sam()
    with pytest.raises(ValueError, match="encoded only once: leave augment out"):
        train(sam, *sets, epochs=1, tune="decoder", augment=True)
    assert all(p.requires_grad for p in sam.parameters())  # and nothing stays frozen
