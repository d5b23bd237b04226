"""Scores of label maps, compared with StarDist's."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ddp_magic.prelude import instance_scores
from ddp_magic.sam.evaluation.metrics import THRESHOLDS, match_objects

Labels = NDArray[Any]


@pytest.fixture(scope="module")
def stardist() -> Any:
    """The module stardist.matching, without its package, which needs TensorFlow.

    Of Numba it needs one decorator that makes it faster, and of csbdeep one function that raises.
    """
    numba, csbdeep = ModuleType("numba"), ModuleType("csbdeep")
    utils: Any = ModuleType("csbdeep.utils")
    numba.jit = lambda **_options: lambda function: function  # type: ignore[attr-defined]

    def fail(error: Exception) -> None:
        raise error

    utils._raise = fail
    found = importlib.util.find_spec("stardist")
    assert found is not None
    assert found.submodule_search_locations
    path = Path(found.submodule_search_locations[0]) / "matching.py"
    spec = importlib.util.spec_from_file_location("stardist_matching", path)
    assert spec is not None
    assert spec.loader is not None
    matching = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for module in (numba, csbdeep, utils):
            patch.setitem(sys.modules, module.__name__, module)
        spec.loader.exec_module(matching)
    return matching


def _discs(rng: np.random.Generator, objects: int, step: int = 1) -> Labels:
    """Return a map of 24 x 20 pixels with up to `objects` touching discs; labels have gaps."""
    y, x = np.mgrid[:24, :20]
    labels = np.zeros((24, 20), np.int64)
    for number in range(objects):
        cy, cx, r = rng.uniform(0, 24), rng.uniform(0, 20), rng.uniform(1, 6)
        labels[(y - cy) ** 2 + (x - cx) ** 2 < r**2] = 1 + number * step
    return labels


def _shifted(labels: Labels, rng: np.random.Generator) -> Labels:
    """Return the map moved by up to two pixels, some objects missing, some split, some new."""
    moved = np.roll(labels, rng.integers(-2, 3, 2), (0, 1))
    for label in np.unique(moved)[1:]:
        own = moved == label
        if rng.random() < 0.2:
            moved[own] = 0
        elif rng.random() < 0.2:
            moved[own & (np.arange(20) % 20 < np.argwhere(own)[:, 1].mean())] = label + 5000
    return moved


def _pairs() -> list[tuple[Labels, Labels]]:
    """Return random and degenerate pairs of maps."""
    rng = np.random.default_rng(0)
    pairs = []
    for number in range(25):
        true = _discs(rng, int(rng.integers(1, 12)), step=1 + number % 4 * 11)
        pairs += [(_shifted(true, rng), true), (_discs(rng, 5), true)]
    empty, full = np.zeros((4, 6), np.int64), np.ones((4, 6), np.int64)
    halves = full.copy()
    halves[:, 3:] = 2
    quarters = halves.copy()
    quarters[2:] += 7
    odd = [empty, full, halves, quarters]
    return pairs + [(a, b) for a in odd for b in odd]


def test_all_scores_agree_with_stardist(stardist: Any) -> None:
    """Counts, precision at each threshold and panoptic quality of each pair are equal."""
    for pred, true in _pairs():
        ours, matches = instance_scores(pred, true), match_objects(pred, true)
        theirs = stardist.matching(true, pred, tuple(THRESHOLDS))
        assert (ours["predicted"], ours["true"]) == (theirs[0].n_pred, theirs[0].n_true)
        assert [(matches.ious >= at).sum() for at in THRESHOLDS] == [each.tp for each in theirs]
        if not theirs[0].n_pred + theirs[0].n_true:
            continue  # 0 with StarDist, as for an object that is missed
        assert ours["ap_50"] == pytest.approx(theirs[0].accuracy, abs=1e-12)
        assert ours["ap_75"] == pytest.approx(theirs[5].accuracy, abs=1e-12)
        assert ours["ap"] == pytest.approx(np.mean([each.accuracy for each in theirs]), abs=1e-12)
        assert ours["pq"] == pytest.approx(theirs[0].panoptic_quality, abs=1e-6)  # float32
        assert ours["sq"] == pytest.approx(theirs[0].mean_matched_score, abs=1e-6)
        assert ours["rq"] == pytest.approx(theirs[0].f1, abs=1e-12)


def test_several_images_are_counted_together(stardist: Any) -> None:
    """A list of maps, or a stack, has the scores of StarDist's data sets."""
    preds, trues = zip(*_pairs()[:20], strict=True)
    ours = instance_scores(list(preds), np.stack(trues))
    theirs = stardist.matching_dataset(trues, preds, tuple(THRESHOLDS), show_progress=False)
    assert ours["ap_50"] == pytest.approx(theirs[0].accuracy, abs=1e-12)
    assert ours["ap"] == pytest.approx(np.mean([each.accuracy for each in theirs]), abs=1e-12)
    assert ours["pq"] == pytest.approx(theirs[0].panoptic_quality, abs=1e-6)


def test_no_object_anywhere_is_perfect() -> None:
    """As a Dice of two empty masks; with an object in one of the maps, all scores are 0."""
    empty, one = np.zeros((2, 3), np.uint8), np.array([[0, 0, 0], [0, 9, 9]], np.uint8)
    for pair, score in (((empty, empty), 1), ((empty, one), 0), ((one, empty), 0), ((one, one), 1)):
        scores = instance_scores(*pair)
        assert {scores[name] for name in ("ap_50", "ap_75", "ap", "pq", "sq", "rq")} == {score}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64, np.int64, bool])
def test_labels_of_any_size_and_dtype(dtype: Any) -> None:
    """The values of labels have no effect, up to the largest one of the dtype."""
    top = 1 if dtype is bool else np.iinfo(dtype).max
    labels = np.array([[0, top], [0, top]], dtype=dtype)
    assert instance_scores(labels, np.array([[0, 5], [0, 5]]))["ap"] == 1
    everywhere = np.full((2, 2), top, dtype=dtype)  # no background
    assert instance_scores(everywhere, labels)["sq"] == 0.5


def test_ignored_pixels_do_not_count() -> None:
    """An object that is mostly there is no false positive; of others, the rest counts."""
    true, pred, ignore = np.zeros((3, 4, 8), np.int64)
    ignore[:, :3] = 1
    true[:, 4:6] = 1
    pred[:, 2:3] = 7  # ignored
    pred[:, 3:6] = 2
    assert instance_scores(pred, true)["ap_50"] == 0.5
    scores = instance_scores(pred, true, ignore)
    assert (scores["ap_50"], scores["predicted"]) == (1, 1)
    assert scores["sq"] == pytest.approx(2 / 3)
    true[:, 3] = 1
    pred[:, 2:6] = 2  # a quarter of it is ignored
    assert instance_scores(pred, true, ignore)["sq"] == 1
    with pytest.raises(ValueError, match=r"ignore must be bool.*not labels"):
        instance_scores(pred, true, pred)


@pytest.mark.parametrize(
    ("pred", "true", "words"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), r"\(2, 3\), true \(3, 2\)"),
        (np.zeros((2, 3)), np.zeros((2, 3), int), "pred must be a label map .* float64"),
        (np.zeros((2, 3), int), np.full((2, 3), -1), "true must be .* minimum -1"),
        (np.zeros((1, 2, 3, 3), int), np.zeros((2, 3), int), "label map"),
        (np.zeros((2, 3, 3), int), np.zeros((3, 3, 3), int), "2 predicted maps, but 3 true"),
        ([], np.zeros((2, 3), int), "label map"),
    ],
)
def test_other_arrays_are_refused(pred: Any, true: Any, words: str) -> None:
    """Otherwise broadcasting, or probabilities, would give a score of something else."""
    with pytest.raises(ValueError, match=words):
        instance_scores(pred, true)
