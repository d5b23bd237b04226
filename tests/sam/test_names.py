"""The names of the prelude, which are imported on first use."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch

from ddp_magic import prelude
from tests.limits import HANG_S

GUIDE = (
    "os socket csv np torch dist mp DDP Dataset DataLoader Subset DistributedSampler nn F optim "
    "autocast GradScaler plt tqdm SamModel SamProcessor DiceLoss"
)
OURS = (
    "SamDataset collate dice_score iou_score pixel_accuracy show_results setup cleanup train "
    "evaluate predict tiny_sam nuclei cells random_patches"
)


def test_import_is_light() -> None:
    """`import ddp_magic.prelude` imports no large library; cells() does not need torch."""
    code = (
        "import sys, ddp_magic.prelude as p\n"
        "heavy = {'torch', 'numpy', 'transformers', 'monai', 'matplotlib', 'IPython'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert 'train' in dir(p)\n"
        "p.cells(n=1)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=HANG_S)


def test_every_name_resolves() -> None:
    """`__all__`, `dir()` and the table agree, and contain the names of the guide and ours."""
    assert set(prelude.__all__) == set(prelude.HOMES) == set(dir(prelude))
    assert set((GUIDE + " " + OURS).split()) <= set(prelude.__all__)
    for name in prelude.__all__:
        assert getattr(prelude, name) is not None
        assert name in vars(prelude)  # the second use is a plain lookup
    assert prelude.DDP is torch.nn.parallel.DistributedDataParallel
    assert prelude.F is torch.nn.functional


def test_unknown_name_is_an_attribute_error() -> None:
    """hasattr() and misspelled imports work as with any module."""
    assert not hasattr(prelude, "trian")


def test_missing_package_says_what_to_install() -> None:
    """Without matplotlib, the error names the package and the extra; other names still work."""
    code = (
        "import sys\n"
        "sys.modules['matplotlib'] = sys.modules['matplotlib.pyplot'] = None\n"
        "import ddp_magic.prelude as p\n"
        "p.cells\n"
        "try:\n"
        "    p.show_history\n"
        "except ImportError as error:\n"
        "    assert 'matplotlib' in str(error) and 'ddp-magic[sam]' in str(error), error\n"
        "else:\n"
        "    raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=HANG_S)


def test_old_and_new_style_autocast() -> None:
    """`autocast()` and `autocast("cpu")` both work, without the FutureWarning of torch.cuda.amp."""
    a = torch.ones(2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # of what other tests have left
        with prelude.autocast():
            assert (a @ a).dtype is torch.bfloat16
        with prelude.autocast("cpu", dtype=torch.bfloat16, enabled=False):
            assert (a @ a).dtype is torch.float32


@pytest.mark.parametrize("arguments", [(), ("cpu",)])
def test_old_and_new_style_grad_scaler(arguments: tuple[str, ...]) -> None:
    """`GradScaler()` and `GradScaler("cpu")` scale a loss, step, and are torch's own class."""
    scaler = prelude.GradScaler(*arguments, init_scale=4.0)
    assert isinstance(scaler, torch.amp.GradScaler)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    loss = scaler.scale(weight.sum())
    assert loss.item() == 4.0
    loss.backward()
    scaler.step(optimizer)
    scaler.update()
    assert weight.item() == 0.5
