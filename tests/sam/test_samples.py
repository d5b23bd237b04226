"""The sample data."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from ddp_magic.sam.data import samples

needs_stardist = pytest.mark.skipif(
    importlib.util.find_spec("stardist") is None, reason="pip install --no-deps stardist"
)


def test_cells_are_the_same_for_the_same_seed() -> None:
    """All ranks get the same data; another seed gives other data."""
    a, b, c = samples.cells(n=4), samples.cells(n=4), samples.cells(n=4, seed=1)
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not np.array_equal(a[0], c[0])


def test_cells_are_clicked_inside() -> None:
    """Each click is on another object, and an image has at most three clicks."""
    images, masks, clicks = samples.cells(n=20)
    assert images.dtype == np.uint8
    labels = masks[tuple(clicks.T)]
    assert (labels > 0).all()
    pairs = np.stack([clicks[:, 0], labels], 1)
    assert len(np.unique(pairs, axis=0)) == len(clicks)
    assert np.bincount(clicks[:, 0]).max() <= 3


@needs_stardist
def test_nuclei_splits_do_not_touch() -> None:
    """The 30 held-out nuclei are in no training crop; each crop has three prompts."""
    images, masks, clicks = samples.nuclei("val")
    assert images.shape == masks.shape == (127, 64, 64)
    assert len(clicks) == 381
    _, train_masks, train_clicks = samples.nuclei("train")
    assert len(train_clicks) == 3 * 768
    held_out, seen = np.unique(masks)[1:], np.unique(train_masks)[1:]
    assert len(held_out) == 30
    assert not set(held_out) & set(seen)
    assert (masks[tuple(clicks.T)] > 0).all()


@needs_stardist
def test_nuclei_of_several_sizes() -> None:
    """Each crop has one of the sizes and its own clicks; all ranks get the same crops."""
    images, masks, clicks = samples.nuclei("train", crops=24, size=(48, 64, 96))
    assert {image.shape for image in images} == {(48, 48), (64, 64), (96, 96)}
    assert [mask.shape for mask in masks] == [image.shape for image in images]
    assert all(masks[number][y, x] > 0 for number, y, x in clicks)
    assert np.bincount(clicks[:, 0]).tolist() == [3] * 24
    again, _, _ = samples.nuclei("train", crops=24, size=(48, 64, 96))
    assert all(np.array_equal(a, b) for a, b in zip(images, again, strict=True))


@needs_stardist
def test_nuclei_rejects_an_unknown_split() -> None:
    """A misspelled split is an error."""
    with pytest.raises(ValueError, match="test"):
        samples.nuclei("test")  # type: ignore[arg-type]


def test_nuclei_without_stardist_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package, the error contains the command to install it, and an alternative."""
    monkeypatch.setitem(sys.modules, "stardist", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"pip install --no-deps stardist.*cells\(\)"):
        samples.nuclei()
