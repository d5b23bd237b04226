"""The tiny SAM, the forward pass of PromptedSam, and predict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import SamModel
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from ddp_magic.sam.data.batches import Geometry, collate, prepare
from ddp_magic.sam.data.dataset import SamDataset
from ddp_magic.sam.data.samples import cells
from ddp_magic.sam.inference.predict import predict
from ddp_magic.sam.models.model import PromptedSam
from ddp_magic.sam.models.postprocessing import best_mask, masks_at, resizing
from ddp_magic.sam.models.prompts import next_click
from ddp_magic.sam.models.tiny import tiny_sam


@pytest.fixture(scope="module")
def sam() -> SamModel:
    """A tiny SAM with random weights."""
    return tiny_sam().eval()


def test_tiny_sam_is_the_same_everywhere(sam: SamModel) -> None:
    """Two calls give equal weights, and leave the global random state unchanged."""
    state = torch.random.get_rng_state()
    again = tiny_sam()
    assert torch.equal(state, torch.random.get_rng_state())
    for a, b in zip(sam.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert sum(p.numel() for p in again.parameters()) == 810_516


def test_tiny_sam_avoids_the_defaults_that_do_not_learn(sam: SamModel) -> None:
    """The encoder does not start at zero, and the positional encoding varies slowly."""
    scale = sam.config.vision_config.scale
    assert scale == 0.5
    # A model created from the config has the same scale of positions.
    positions = sam.shared_image_embedding.positional_embedding.detach()
    assert float(positions.std()) == pytest.approx(scale, rel=0.2)
    assert sam.vision_encoder.layers[0].mlp.lin1.weight.std() > 0.05


def test_labels_of_clicks_matter_as_much_as_positions(sam: SamModel) -> None:
    """Embeddings of labels 1 and 0 at one position differ as much as those of two positions."""
    points = torch.tensor([[[[20.0, 20.0]], [[20.0, 20.0]], [[44.0, 44.0]]]])  # (1, 3, 1, 2)
    labels = torch.tensor([[[1], [0], [1]]])
    with torch.no_grad():
        tokens, _ = sam.prompt_encoder(points, labels, None, None)
    on, off, elsewhere = tokens[0, :, 0]
    assert (on - off).norm() > 0.7 * (on - elsewhere).norm()


def test_gradients_do_not_depend_on_the_order_of_threads() -> None:
    """With more threads than cores, repeated backward passes give equal gradients."""
    data, wrapper = SamDataset(*cells(n=4)), PromptedSam(tiny_sam(), rounds=1)
    batch = prepare(collate([data[i] for i in range(4)]), wrapper.geometry)

    def gradients() -> list[torch.Tensor]:
        wrapper.zero_grad()
        ((logits, iou),) = wrapper(batch)
        (logits.square().sum() + iou.sum()).backward()
        return [p.grad for p in wrapper.parameters() if p.grad is not None]

    threads = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        first, *others = (gradients() for _ in range(10))
    finally:
        torch.set_num_threads(threads)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def _batch(clicks: list[tuple[int, int, int]], which: list[int]) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    sizes = [(64, 64), (40, 90), (64, 64)]
    images = [rng.integers(0, 255, size, dtype=np.uint8) for size in sizes]
    masks = [np.ones(size, np.int32) for size in sizes]
    for mask in masks:
        mask[20:] = 2
    data = SamDataset(images, masks, clicks)
    return prepare(collate([data[i] for i in which]), Geometry(64))


def test_an_object_does_not_depend_on_its_batch(sam: SamModel) -> None:
    """Beside objects with more clicks and larger images, an object has the same logits."""
    one, three = [(0, 3, 4)], [(1, 30, 40), (1, 31, 50), (1, 35, 60)]
    wrapper = PromptedSam(sam, rounds=1)
    with torch.no_grad():
        ((alone, iou),) = wrapper(_batch(one, [0]))
        ((among, ious),) = wrapper(_batch(three + one + [(2, 5, 5), (2, 9, 9)], [1, 0, 2]))
    torch.testing.assert_close(among[1:2], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ious[1:2], iou, rtol=1e-4, atol=1e-5)


def test_flat_forward_is_sam_itself(sam: SamModel) -> None:
    """The result equals that of SamModel for the same prompts in its nested layout."""
    batch = _batch([(0, 3, 4), (0, 40, 4)], [0])
    with torch.no_grad():
        ((logits, iou),) = PromptedSam(sam, rounds=1)(batch)
        nested = sam(
            pixel_values=batch["pixel_values"],
            input_points=batch["points"][None],
            input_labels=batch["labels"][None],
            multimask_output=True,
        )
    torch.testing.assert_close(logits, nested.pred_masks[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(iou, nested.iou_scores[0], rtol=1e-4, atol=1e-5)


def test_a_batch_without_objects_has_zero_gradients() -> None:
    """On a rank without objects, each parameter gets a zero gradient."""
    wrapper = PromptedSam(tiny_sam(), rounds=1)
    ((logits, iou),) = wrapper(_batch([], [0]))
    assert logits.shape[0] == iou.shape[0] == 0
    (logits.sum() + iou.sum()).backward()
    gradients = [p.grad for p in wrapper.parameters() if p.grad is not None]
    assert len(gradients) > 100
    assert not any(g.any() for g in gradients)


def _square(rows: slice, columns: slice, size: int = 16) -> torch.Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[:, :, rows, columns] = 1
    return mask


@pytest.mark.parametrize("keys", [None, torch.tensor([7])])
def test_the_next_click_is_where_the_mask_is_wrong(keys: torch.Tensor | None) -> None:
    """Its label is 1 on a missed pixel, and 0 on a wrongly predicted one; never on padding."""
    everywhere = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    true, missed = _square(slice(2, 8), slice(2, 14)), _square(slice(2, 8), slice(8, 14))
    point, label = next_click(20 * (true - missed) - 10, true, everywhere, keys, 16)
    (x, y), (one,) = point[0].long().tolist(), label.tolist()
    assert missed[0, 0, y, x]
    assert one == 1
    much = _square(slice(10, 16), slice(0, 16))
    inside = _square(slice(0, 13), slice(0, 16)) > 0  # below row 12 is padding
    point, label = next_click(20 * (true + much) - 10, true, inside, keys, 16)
    (x, y), (zero,) = point[0].long().tolist(), label.tolist()
    assert much[0, 0, y, x]
    assert inside[0, 0, y, x]
    assert zero == 0
    point, label = next_click(20 * true - 10, true, everywhere, keys, 16)  # nothing is wrong
    (x, y), (one,) = point[0].long().tolist(), label.tolist()
    assert true[0, 0, y, x]
    assert one == 1


def test_the_click_is_in_the_middle_of_the_largest_part() -> None:
    """The larger of two missed parts gets the click, away from its border."""
    true = _square(slice(2, 9), slice(2, 9), 32) + _square(slice(20, 22), slice(20, 22), 32)
    inside = torch.ones_like(true, dtype=torch.bool)
    point, _ = next_click(torch.full((1, 1, 32, 32), -9.0), true, inside, None, 32)
    assert ((point[0] >= 4) & (point[0] <= 6)).all()


def test_the_middle_does_not_depend_on_the_batch() -> None:
    """Clicks of 20 objects at once equal those of each alone, also for ties."""
    coarse = torch.randn(2, 20, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    logits = F.interpolate(coarse[0], (32, 32))  # in blocks, so that there are ties
    true = (F.interpolate(coarse[1], (96, 96)) > 0).float()
    inside = torch.ones_like(true, dtype=torch.bool)
    together, _ = next_click(logits, true, inside, None, 96)
    alone = [
        next_click(*(each[i : i + 1] for each in (logits, true, inside)), None, 96)[0]
        for i in range(20)
    ]
    assert torch.equal(together, torch.cat(alone))
    assert next_click(logits[:0], true[:0], inside[:0], None, 96)[0].shape == (0, 2)


def test_random_clicks_are_even_and_follow_their_keys() -> None:
    """Wrong pixels are equally likely, and a key gives the same click in each batch."""
    true = _square(slice(4, 8), slice(4, 8)).repeat(4000, 1, 1, 1)
    logits, inside = -torch.ones_like(true), torch.ones_like(true, dtype=torch.bool)
    keys = torch.arange(4000)
    points, _ = next_click(logits, true, inside, keys, 16)
    counts = torch.bincount((points[:, 1] * 16 + points[:, 0]).long())
    counts = counts[counts > 0]
    assert len(counts) == 16
    assert ((counts - 250).abs() < 80).all()  # five standard deviations
    some = keys[[77, 3, 2500]]
    again, _ = next_click(logits[:3], true[:3], inside[:3], some, 16)
    assert torch.equal(again, points[some])


def test_more_rounds_add_clicks_and_leave_the_first_alone(sam: SamModel) -> None:
    """The first of three rounds equals a single round; objects are independent."""
    batch = _batch([(1, 30, 40), (1, 31, 50), (0, 3, 4), (0, 40, 4)], [1, 0])
    with torch.no_grad():
        ((one, _),) = PromptedSam(sam, rounds=1)(batch)
        three = PromptedSam(sam, rounds=3)(batch)
        only = _batch([(0, 3, 4), (0, 40, 4)], [0])
        alone = PromptedSam(sam, rounds=3)(only)
    assert len(three) == 3
    torch.testing.assert_close(three[0][0], one)
    assert not torch.allclose(three[1][0], one)
    for (logits, _), (own, _) in zip(three, alone, strict=True):
        torch.testing.assert_close(logits[1:], own, rtol=1e-3, atol=1e-4)


def test_masks_at_original_size_equal_those_of_transformers() -> None:
    """The result equals post_process_masks of SamProcessor."""
    processor = SamImageProcessorPil(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}
    )
    logits = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    oracle = processor.post_process_masks(
        [logits], original_sizes=[[40, 90]], reshaped_input_sizes=[[28, 64]], binarize=False
    )[0]
    resize = resizing(32, (40, 90), Geometry(64), logits)
    found = resize.part(logits[:, 0], (slice(None), slice(None)))
    torch.testing.assert_close(found, oracle[:, 0], rtol=0, atol=1e-5)
    assert torch.equal(masks_at(logits, (40, 90), Geometry(64)), found > 0)


def test_predict_follows_the_training_path(sam: SamModel) -> None:
    """predict() takes (y, x), returns masks of the size of the image, and restores the mode."""
    images, masks, clicks = cells(n=1)
    data = SamDataset(images, masks, clicks)
    wrapper = PromptedSam(sam, rounds=1)
    with torch.no_grad():
        ((logits, iou),) = wrapper(prepare(collate([data[0]]), Geometry(64)))
    expected = masks_at(best_mask(logits, iou), (64, 64), Geometry(64)).numpy()
    model: Any = sam.train()
    got = predict(model, images[0], [clicks[i : i + 1, 1:] for i in range(len(clicks))])
    assert np.array_equal(got, expected)
    assert np.array_equal(predict(model, images[0], clicks[:1, 1:]), expected[0])
    assert model.training
    model.eval()
    with pytest.raises(ValueError, match="outside"):
        predict(model, images[0], [(64, 0)])
