"""Augmentation by the transforms of MONAI."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddp_magic.sam.arrays.items import Item, no_prompts
from ddp_magic.sam.arrays.masks import box_of

MOVES = {"Transposed", "RandSmoothDeformd"}  # beside MONAI's spatial transforms, crops and pads


class MonaiTransform:
    """Augment items with dictionary transforms of MONAI, as `transform` of `train`.

    For example, `MonaiTransform(RandFlipd(["image", "masks"], 0.5, spatial_axis=1))`.
    Clicks do not follow the image. New ones are drawn on the transformed masks, and objects that
    have left the image are removed. An object with a box gets the box around its new mask.
    """

    def __init__(self, *transforms: Any) -> None:  # noqa: ANN401 -- of MONAI
        """Compose the transforms.

        Args:
            transforms: transforms of `image`, (3, H, W) in gray levels from 0 to 255, and `masks`,
                (N, H, W). Those of positions need both keys, and `mode="nearest"` for `masks`.

        Raises:
            ValueError: A transform has other keys.
        """
        from monai.transforms import Compose

        for each in transforms:
            _check(each)
        self.compose = Compose(transforms)

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        """Return the transformed item; see `ddp_magic.sam.arrays.items`."""
        self.compose.set_random_state(int(torch.randint(2**31, (), generator=generator)))
        n = len(item["masks"])
        follow: list[str] = [name for name in ("instances", "ignored") if name in item]
        # Numbers from 1 instead of labels, which may be too large for float32; 0 is background.
        values = {name: torch.unique(item[name], return_inverse=True) for name in follow}
        planes = [item["masks"].float(), *(at[None].float() + 1 for _, at in values.values())]
        given = {"image": item["image"].float(), "masks": torch.cat(planes)}
        moved: Any = self.compose(given)
        if isinstance(moved, list):  # RandCropByPosNegLabeld and others return several samples
            if len(moved) != 1:
                raise ValueError(f"a transform has returned {len(moved)} images: num_samples=1")
            (moved,) = moved
        made = {n: torch.as_tensor(v).as_subclass(Tensor) for n, v in moved.items()}
        shapes = [(*made[n].shape,) if n in made else () for n in ("image", "masks")]
        if shapes != [(3, *shapes[0][1:]), (n + len(values), *shapes[0][1:])]:
            raise ValueError(
                f"the transforms returned an image {shapes[0]} and masks {shapes[1]}: they must "
                f"stay (3, H, W) and ({n + len(values)}, H, W)"
            )
        if not made["image"].isfinite().all():
            raise ValueError("the transforms returned an image with NaN or infinity")
        masks = made["masks"][:n] > 0.5
        followed: dict[str, Tensor] = {}
        for (name, (levels, _)), plane in zip(values.items(), made["masks"][n:], strict=True):
            numbers = plane.round().long()
            if (plane - numbers).abs().max() > 0.01:
                raise ValueError(
                    "a transform has interpolated between labels: it needs mode='nearest' for "
                    "'masks', such as RandRotated(['image', 'masks'], mode=['bilinear', 'nearest'])"
                )
            followed[name] = torch.cat([levels.new_zeros(1), levels])[numbers]
        left = masks.flatten(1).any(1)  # (N,)
        boxes = item["boxes"][left].clone()
        for box, mask in zip(boxes, masks[left], strict=True):
            if not box.isnan().any():
                box[:] = torch.from_numpy(box_of(mask.numpy()))
        return {
            **item,
            **followed,
            **no_prompts(int(left.sum())),
            "image": made["image"].round().clamp(0, 255).to(torch.uint8),
            "masks": masks[left],
            "keys": item["keys"][left],
            "boxes": boxes,
        }


def _check(transform: Any) -> None:  # noqa: ANN401 -- of MONAI
    """Check which entries of an item a transform, and those in it, change.

    Raises:
        ValueError: It has other keys, moves only the image, or changes the levels of the masks.
    """
    for each in getattr(transform, "transforms", ()):  # of Compose, OneOf and others
        _check(each)
    keys = set(getattr(transform, "keys", ()))
    rooms = {kind.__module__.removeprefix("monai.transforms.") for kind in type(transform).__mro__}
    rooms = {room.partition(".")[0] for room in rooms}
    name, both = type(transform).__name__, {"image", "masks"}
    if not keys <= both:
        raise ValueError(f"{name} has the keys {sorted(keys)}: items have 'image' and 'masks'")
    moves = rooms & {"spatial", "croppad"} or name in MOVES
    if keys and keys != both and moves and name != "RandSimulateLowResolutiond":
        raise ValueError(
            f"{name} moves {' and '.join(keys)} only: it needs both keys, such as "
            "RandFlipd(['image', 'masks'], 0.5, spatial_axis=1)"
        )
    if "masks" in keys and "intensity" in rooms:
        raise ValueError(f"{name} changes gray levels, also those of 'masks': use the key 'image'")
