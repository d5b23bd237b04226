"""NIfTI files are read right, or refused by name."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from ddp_magic.prelude import SamDataset
from ddp_magic.sam.reading.readers import read

LABELS = np.zeros((20, 30), np.uint8)
LABELS[2:9, 3:12], LABELS[11:17, 14:28] = 1, 2


@pytest.mark.parametrize("kind", [np.int16, np.uint8])
def test_labels_that_nibabel_has_scaled(tmp_path: Path, kind: type) -> None:
    """It does so if labels are floats and the header is that of an image of integers."""
    path = tmp_path / "a.nii.gz"
    own = np.zeros((30, 20))
    own[LABELS.T > 0] = 7 * LABELS.T[LABELS.T > 0]
    for values, same in ((own, True), (own * 0.1, False)):
        image = nibabel.Nifti1Image(values, np.eye(4))
        image.set_data_dtype(kind)
        nibabel.save(image, path)
        assert (nibabel.load(path).get_fdata() != own).any()
        assert np.array_equal(read(path, labels=True), own.T) == same
        assert (read(path, labels=False) != own.T).any()


@pytest.mark.parametrize("nifti", ["images", "masks", "both"])
def test_nifti_beside_other_files_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], nifti: str
) -> None:
    """Arrays that nibabel returns are transposed, which nobody sees in a square image."""
    files = []
    for name in ("images", "masks"):
        if nifti in {name, "both"}:
            files.append([tmp_path / f"{name}.nii"])
            nibabel.save(nibabel.Nifti1Image(LABELS.T * 100, np.eye(4)), files[-1][0])
        else:
            files.append([LABELS * 100])
    SamDataset(*files)
    said = capsys.readouterr().out
    assert ("Arrays from nibabel are (x, y)" in said) == (nifti != "both")
    if nifti == "both":  # a file for each organ
        with pytest.raises(ValueError, match="may contain several masks"):
            SamDataset(files[0], [files[1]])
        assert "Arrays" not in capsys.readouterr().out


def test_nifti_of_one_time_point(tmp_path: Path) -> None:
    """A fourth axis of length 1, of the image, of its labels, or of both, is left out."""
    affine = np.diag([1, 1, 2, 1.0])
    volume = np.random.default_rng(0).integers(0, 999, (30, 20, 3), dtype=np.int16)
    labels = np.stack([LABELS.T] * 3, -1)
    for ours, theirs in ((volume[..., None], labels[..., None]), (volume, labels[..., None]),
                         (volume[..., None], labels)):  # fmt: skip
        nibabel.save(nibabel.Nifti1Image(ours, affine), tmp_path / "a.nii")
        nibabel.save(nibabel.Nifti1Image(theirs, affine), tmp_path / "b.nii.gz")
        data = SamDataset([tmp_path / "a.nii"], [tmp_path / "b.nii.gz"])
        assert np.array_equal(data.instances(2), LABELS)
        assert np.array_equal(data.images[1], volume[..., 1].T)


@pytest.mark.parametrize("value", [0, float("nan"), 1.1, -1])
@pytest.mark.parametrize("name", ["a.nii", "b.nii"])
def test_a_nifti_of_another_place_is_refused(tmp_path: Path, name: str, value: float) -> None:
    """Without an affine that can be inverted, with larger voxels, or mirrored."""
    for each in ("a.nii", "b.nii"):
        affine = np.eye(4)
        affine[0, 0] = value if each == name else 1
        volume = nibabel.Nifti1Image(LABELS.T[..., None], None)
        volume.header.set_sform(affine, code=1)
        nibabel.save(volume, tmp_path / each)
    with pytest.raises(ValueError, match=r"b\.nii .* other axes, or lies elsewhere"):
        SamDataset([tmp_path / "a.nii"], [tmp_path / "b.nii"])
