"""Images and masks from files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddp_magic.prelude import SamDataset, cells
from ddp_magic.sam.files import open_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three synthetic images and their label maps, with usual file names."""
    images, masks, _ = cells(n=3)
    for sub in ("images", "masks"):
        (tmp_path / sub).mkdir()
    for i in range(3):
        Image.fromarray(images[i]).save(tmp_path / "images" / f"cell{i + 8}.png")
        label = Image.fromarray(masks[i].astype(np.uint16))
        label.save(tmp_path / "masks" / f"cell{i + 8}_mask.png")
    return tmp_path


def test_folders_equal_arrays(folder: Path) -> None:
    """Two folders give the same items as arrays, in natural order, and can be pickled."""
    images, masks, clicks = cells(n=3)
    data: Any = SamDataset(folder / "images", str(folder / "masks"), clicks)
    data = pickle.loads(pickle.dumps(data))
    arrays = SamDataset(images, masks, clicks)
    for i in range(3):
        for key, value in arrays[i].items():
            assert torch.equal(data[i][key].nan_to_num(), value.nan_to_num())
    files = [folder / "images" / f"cell{i + 8}.png" for i in range(3)]
    assert len(SamDataset(files, masks)) == 3


def test_tiff_pages_and_depths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each page of a TIFF is an image; uint16 is scaled by one rule, printed once."""
    images, masks, clicks = cells(n=3)
    pages = [Image.fromarray(image.astype(np.uint16) * 200) for image in images]
    pages[0].save(tmp_path / "all.tif", save_all=True, append_images=pages[1:])
    data = SamDataset(tmp_path / "all.tif", masks, clicks)
    assert len(data) == 3
    assert "uint16" in capsys.readouterr().out
    assert np.corrcoef(data[2]["image"][0].numpy().ravel(), images[2].ravel())[0, 1] > 0.999


def test_nifti_slices(tmp_path: Path) -> None:
    """Each slice of a volume is an image, with y downward, equal to the original arrays."""
    nibabel = pytest.importorskip("nibabel")
    images, masks, clicks = cells(n=3, size=48)
    for name, arrays in (("scan.nii.gz", images), ("scan_seg.nii.gz", masks.astype(np.uint8))):
        volume = nibabel.Nifti1Image(arrays.transpose(2, 1, 0), np.eye(4))
        nibabel.save(volume, tmp_path / name)
    data = SamDataset(tmp_path / "scan.nii.gz", tmp_path / "scan_seg.nii.gz", clicks)
    expected = SamDataset(images, masks, clicks)
    for i in range(3):
        assert (data[i]["masks"] == expected[i]["masks"]).all()
        assert (data[i]["image"] == expected[i]["image"]).all()


def test_palettes_and_colors(tmp_path: Path) -> None:
    """Palette indices are labels; gray RGB masks are read; colored masks are refused."""
    label = np.zeros((8, 8), np.uint8)
    label[2:5, 2:5] = 3
    palette = Image.fromarray(label).convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.save(tmp_path / "p.png")
    assert (open_files([tmp_path / "p.png"], labels=True)[0] == label).all()
    Image.fromarray(label).convert("RGB").save(tmp_path / "gray.png")
    assert (open_files([tmp_path / "gray.png"], labels=True)[0] == label).all()
    color = np.zeros((8, 8, 3), np.uint8)
    color[2:5, 2:5, 0] = 255
    Image.fromarray(color).save(tmp_path / "color.png")
    with pytest.raises(ValueError, match="colors, not labels"):
        open_files([tmp_path / "color.png"], labels=True)[0]
    assert open_files([tmp_path / "color.png"], labels=False)[0].shape == (8, 8, 3)


def test_files_that_do_not_match_are_refused(folder: Path, tmp_path: Path) -> None:
    """Missing files, empty folders, and different names or sizes of image and mask."""
    with pytest.raises(FileNotFoundError, match="no such file"):
        SamDataset([folder / "nothing.png"], [folder / "nothing.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no PNG, JPEG, TIFF or NIfTI files in"):
        SamDataset(tmp_path / "empty", folder / "masks")
    (folder / "masks" / "cell9_mask.png").rename(folder / "masks" / "cell7_mask.png")
    with pytest.raises(ValueError, match="do not match: rename"):
        SamDataset(folder / "images", folder / "masks")
    masks = [np.ones((32, 32), bool)] * 3
    with pytest.raises(ValueError, match="but its mask"):
        SamDataset(folder / "images", masks)[0]
