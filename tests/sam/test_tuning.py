"""Which parameters are trained; LoRA by peft; averages by torch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import AutoModel

from ddp_magic.prelude import SamDataset, cells, predict, tiny_sam, train
from ddp_magic.sam.data.batches import collate, prepare
from ddp_magic.sam.models.adapter import encoder_parameters, is_frozen
from ddp_magic.sam.models.model import PromptedSam
from ddp_magic.sam.models.tuning import plain_state, tune
from ddp_magic.sam.training.losses import step_losses

from .family import FAMILY, build

Sets = tuple[SamDataset, SamDataset]


@pytest.fixture(scope="module")
def sets() -> Sets:
    return SamDataset(*cells(n=6)), SamDataset(*cells(n=3, seed=1))


@pytest.mark.parametrize("kind", FAMILY)
def test_only_the_decoder_is_tuned(kind: str) -> None:
    """The encoder and the prompt encoder are frozen; "full" makes all parameters trainable."""
    sam = tune(build(kind), "decoder")
    assert is_frozen(sam)
    names = {name.partition(".")[0] for name, p in sam.named_parameters() if p.requires_grad}
    assert "mask_decoder" in names
    assert not {"vision_encoder", "prompt_encoder"} & names
    full = tune(sam, "full").named_parameters()
    assert {n.rpartition(".")[2] for n, p in full if not p.requires_grad} <= {
        "positional_embedding"
    }


@pytest.mark.parametrize("kind", FAMILY)
def test_low_rank_updates_start_at_zero_and_are_merged(kind: str) -> None:
    """At first the weights are unchanged; `plain_state` and "full" merge the updates into them."""
    sam = build(kind)
    before = {name: value.clone() for name, value in sam.state_dict().items()}
    tune(sam, "lora", rank=2)
    state = plain_state(sam)
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], before[name]) for name in before)
    updates = {n: p for n, p in sam.named_parameters() if ".lora_" in n}
    assert all(p.requires_grad for p in updates.values())
    assert not any(p.requires_grad for p in encoder_parameters(sam) if p not in {*updates.values()})
    with torch.no_grad():
        for parameter in updates.values():
            parameter.fill_(0.1)
    merged = plain_state(sam)
    changed = [name for name in before if not torch.equal(merged[name], before[name])]
    assert changed
    for name in changed:
        difference = merged[name] - before[name]
        assert torch.linalg.matrix_rank(difference) == 1  # all updates are equal
    tune(sam, "full")
    now = sam.state_dict()
    assert now.keys() == before.keys()
    assert all(torch.equal(now[name], merged[name]) for name in now)


def test_checkpoints_have_the_merged_weights(sets: Sets, tmp_path: Path) -> None:
    """A model trained with LoRA loads in transformers without peft, and predicts the same."""
    sam = tune(tiny_sam(), "lora")
    before = {name: p.detach().clone() for name, p in plain_state(sam).items()}
    train(PromptedSam(sam, rounds=1), *sets, epochs=1, batch_size=3, out_dir=tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path / "last")
    changed = "vision_encoder.layers.0.attn.qkv.weight"
    assert not torch.equal(loaded.state_dict()[changed], before[changed])
    unchanged = "vision_encoder.layers.0.mlp.lin1.weight"
    assert torch.equal(loaded.state_dict()[unchanged], before[unchanged])
    image = cells(n=1)[0][0]
    for model in (sam, tune(sam, "full")):
        assert (predict(model, image, (20, 20)) == predict(loaded, image, (20, 20))).all()


def test_an_adapter_of_the_users_own_is_trained(sets: Sets, tmp_path: Path) -> None:
    """A PeftModel around the model is supported, of any kind that peft can merge."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["lin1", "lin2"], use_dora=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(tiny_sam(), config)
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        start = {name: model.get_parameter(name).detach().clone() for name in names}
        train(model, *sets, epochs=1, batch_size=3, out_dir=tmp_path)
    assert names == [name for name, p in model.named_parameters() if p.requires_grad]
    assert not all(torch.equal(model.get_parameter(name), start[name]) for name in names)
    loaded = AutoModel.from_pretrained(tmp_path / "best")
    assert loaded.state_dict().keys() == tiny_sam().state_dict().keys()


@pytest.mark.parametrize("kind", ["a head", "IA3", "LoRA of a head"])
def test_whatever_peft_adds_is_in_the_checkpoint(kind: str, sets: Sets, tmp_path: Path) -> None:
    """Merged, with the names that transformers knows; a part that is not would be random again."""
    peft = pytest.importorskip("peft")
    config = {
        "a head": lambda: peft.LoraConfig(
            r=2, target_modules=["qkv"], modules_to_save=["iou_prediction_head"]
        ),
        "IA3": lambda: peft.IA3Config(target_modules=["qkv"], feedforward_modules=[]),
        "LoRA of a head": lambda: peft.LoraConfig(r=2, target_modules=["proj_in", "lin1"]),
    }[kind]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(tiny_sam(), config)
        train(model, *sets, epochs=1, batch_size=3, out_dir=tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path / "last")
    assert loaded.state_dict().keys() == tiny_sam().state_dict().keys()
    image = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    clicks = [[(8 * n, 8 * n)] for n in range(1, 7)]
    assert np.array_equal(predict(loaded, image, clicks), predict(model, image, clicks))


def test_frozen_parameters_stay_frozen(sets: Sets) -> None:
    """Those that the user has frozen are not trained, and no other is frozen afterwards."""
    sam: Any = tiny_sam()
    sam.mask_decoder.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in sam.mask_decoder.named_parameters()}
    train(PromptedSam(sam, rounds=1), *sets, epochs=1, batch_size=3)
    assert all(torch.equal(p, before[n]) for n, p in sam.mask_decoder.named_parameters())
    frozen = {n.partition(".")[0] for n, p in sam.named_parameters() if not p.requires_grad}
    assert frozen == {"mask_decoder", "shared_image_embedding"}


def test_unknown_choices_are_refused(sets: Sets) -> None:
    """A misspelled choice is an error that names it."""
    with pytest.raises(ValueError, match="'half': use 'full', 'decoder' or 'lora'"):
        tune(tiny_sam(), "half")
    for options in ({"amp": "fp8"}, {"prompts": "clicks"}, {"rounds": 0}):
        with pytest.raises(ValueError, match=f"invalid {next(iter(options))}"):
            PromptedSam(tiny_sam(), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="invalid batch_size 0"):
        train(tiny_sam(), *sets, batch_size=0)


def test_an_average_is_updated_after_each_step(sets: Sets) -> None:
    """`on_step` with torch's AveragedModel averages the weights of all steps."""
    sam = tiny_sam()
    averaged = AveragedModel(sam, multi_avg_fn=get_ema_multi_avg_fn(0.5))  # type: ignore[no-untyped-call]
    wrapper = PromptedSam(sam, rounds=1)
    train(wrapper, *sets, epochs=2, batch_size=3, on_step=lambda _: averaged.update_parameters(sam))
    assert averaged.n_averaged == 4
    name = "mask_decoder.iou_token.weight"
    assert not torch.equal(averaged.module.get_parameter(name), sam.get_parameter(name))


@pytest.mark.parametrize("kind", ["sam", "sam_hq"])  # in transformers, the others do not support it
def test_gradient_checkpointing_changes_no_gradient(kind: str) -> None:
    """Losses and gradients equal those without; the layers of the encoder run again."""
    data, found = SamDataset(*cells(n=2)), []
    for again in (False, True):
        sam, runs = build(kind), []
        sam.vision_encoder.layers[0].attn.register_forward_hook(
            lambda *_, runs=runs: runs.append(1)
        )
        if again:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # its name changes in transformers 6
                sam.gradient_checkpointing_enable()
        wrapper = PromptedSam(sam, rounds=2).train()
        batch = prepare(collate([data[0], data[1]]), wrapper.geometry)
        losses = step_losses(wrapper, batch)
        losses.sum().backward()
        assert len(runs) == 1 + again
        gradients = {n: p.grad for n, p in sam.named_parameters() if p.grad is not None}
        found.append((losses.detach(), gradients))
    (losses, gradients), (other, others) = found
    torch.testing.assert_close(other, losses, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(others[name], gradient, rtol=1e-3, atol=1e-3 * largest + 1e-7)
