"""Checkpoints in Meta's layout, written and compared with Meta's own code."""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from transformers import SamModel

from ddp_magic.prelude import load_meta_checkpoint

SIZE = 96  # px, 6 x 6 tokens


@pytest.fixture(scope="module")
def modeling() -> Any:
    """The models of the package segment_anything, whose other modules need torchvision."""
    spec = find_spec("segment_anything")
    assert spec is not None
    package = ModuleType("segment_anything")
    package.__path__ = list(spec.submodule_search_locations or [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "segment_anything", package)
        return import_module("segment_anything.modeling")


def _sam(modeling: Any, width: int = 32, heads: int = 2, depth: int = 3) -> Any:
    """Build a model as Meta's code does; `depth` blocks, the last of which attends globally."""
    torch.manual_seed(0)
    encoder = modeling.ImageEncoderViT(
        img_size=SIZE,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        global_attn_indexes=[depth - 1],
        window_size=4,
    )
    prompts = modeling.PromptEncoder(256, (SIZE // 16, SIZE // 16), (SIZE, SIZE), 16)
    transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    decoder = modeling.MaskDecoder(transformer_dim=256, transformer=transformer)
    sam = modeling.Sam(encoder, prompts, decoder).eval()
    for parameter in sam.parameters():  # some start at zero
        if parameter.std() == 0:
            nn.init.normal_(parameter, parameter.mean().item(), 0.1)
    return sam


@pytest.mark.parametrize(
    ("width", "heads"),
    [  # ViT-B, L, H
        (768, 12),
        pytest.param(1024, 16, marks=pytest.mark.slow),
        pytest.param(1280, 16, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_the_masks_are_those_of_metas_code(
    modeling: Any, width: int, heads: int, tmp_path: Path
) -> None:
    """Encoder, clicks, boxes, masks and scores; also after saving it for transformers."""
    theirs = _sam(modeling, width, heads, depth=2)
    torch.save(theirs.state_dict(), tmp_path / "sam.pth")
    ours = load_meta_checkpoint(tmp_path / "sam.pth").eval()
    assert ours.config.vision_config.global_attn_indexes == [1]
    assert ours.config.vision_config.window_size == 4
    pixels = torch.randn(1, 3, SIZE, SIZE)
    click, box = torch.tensor([[[30.0, 50.0]]]), torch.tensor([[9.0, 9.0, 60.0, 70.0]])
    sparse, dense = theirs.prompt_encoder((click, torch.ones(1, 1)), box, None)
    masks, iou = theirs.mask_decoder(
        image_embeddings=theirs.image_encoder(pixels),
        image_pe=theirs.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    ours.save_pretrained(tmp_path / "hf")
    for model in (ours, SamModel.from_pretrained(tmp_path / "hf").eval()):
        labels = torch.ones(1, 1, 1, dtype=torch.long)
        out = model(pixels, click[None], labels, box[None])
        torch.testing.assert_close(out.pred_masks[0], masks, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(out.iou_scores[0], iou, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prefix", ["", "sam.", "module.sam.", "net."])
@pytest.mark.parametrize(
    "key", [None, "model_state", "model", "state_dict", "model_state_dict", "net"]
)
def test_checkpoints_of_other_tools(
    modeling: Any,
    key: str | None,
    prefix: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Weights in a dict, with the prefixes of wrappers; micro-sam's decoder is left out."""
    state = {prefix + name: value for name, value in _sam(modeling).state_dict().items()}
    decoder = {"base.weight": torch.zeros(1)}
    saved = {key: state, "decoder_state": decoder} if key else state
    torch.save(saved, tmp_path / "vit.pt")
    model = load_meta_checkpoint(tmp_path / "vit.pt")
    assert torch.equal(model.vision_encoder.pos_embed, state[prefix + "image_encoder.pos_embed"])
    assert ("micro-sam is left out" in capsys.readouterr().out) == (key is not None)


def test_wrong_files_are_refused_with_the_names(modeling: Any, tmp_path: Path) -> None:
    """Missing and unexpected names, other shapes, other models, and pickled objects."""
    path, state = tmp_path / "sam.pth", _sam(modeling).state_dict()
    norm, bias = "image_encoder.neck.1.weight", "mask_decoder.mask_tokens.weight"
    cases: dict[str, Any] = {
        r"Missing .*: \"vision_encoder\.neck\.layer_norm1\.weight\"": {
            name: value for name, value in state.items() if name != norm
        },
        r"(?s)does not fit.*Unexpected .*: \"adapter\.weight\"": state
        | {"adapter.weight": torch.zeros(2)},
        r"size mismatch for vision_encoder\.neck\.layer_norm1\.weight": state
        | {norm: torch.zeros(9)},
        f"has no {bias}: the file is incomplete": {n: x for n, x in state.items() if n != bias},
        "not a SAM in Meta's layout: it contains conv.weight": {"conv.weight": torch.zeros(2)},
        "not a SAM in Meta's layout: it contains list": [1, 2],
        "does not contain only weights": {"model_state": state, "init": Path("a")},
    }
    for words, saved in cases.items():
        torch.save(saved, path)
        with pytest.raises(ValueError, match=words):
            load_meta_checkpoint(path)
    torch.save({"ema": state, "epoch": 3}, path)
    with pytest.raises(ValueError, match="it contains ema, epoch"):
        load_meta_checkpoint(path)
    for content in (b"", b"weights of a model\n1 2 3\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="does not contain only weights"):
            load_meta_checkpoint(path)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="does not contain only weights"):
        load_meta_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        load_meta_checkpoint(tmp_path / "none.pth")
