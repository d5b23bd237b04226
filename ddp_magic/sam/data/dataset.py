"""The data set: images, masks, and the prompts of the objects.

Its items are described in `items`; `batches` combines them into batches.

In shapes, N is the number of objects of one image, P the number of clicks, and H x W the size in
pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ddp_magic.sam.arguments import check_flags, is_integer
from ddp_magic.sam.arrays.checks import check_shape, check_sizes, check_thin, note_on_axes
from ddp_magic.sam.arrays.items import Item, no_prompts, object_keys, pick_objects
from ddp_magic.sam.arrays.label_checks import check_mask, note_on
from ddp_magic.sam.arrays.masks import (
    Encoded,
    Mask,
    components_of,
    label_map,
    object_labels,
    object_masks,
)
from ddp_magic.sam.arrays.prompt_checks import (
    objects_clicked,
    objects_in_boxes,
    prompt_rows,
)
from ddp_magic.sam.process_group import print0
from ddp_magic.sam.reading.files import in_memory, looked_at, name_of, open_pair, size_of_item
from ddp_magic.sam.reading.gray_levels import check_levels, gray_window, to_rgb

LOOKED_PIXELS = 2**24  # of masks that are checked at once
FLAT = 4  # gray levels; in fewer, no object can be seen

Choice = Callable[[int], ArrayLike]  # from the number of objects to the indices of the chosen ones
Images = Sequence[ArrayLike] | NDArray[Any] | str | Path


class SamDataset(Dataset[Item]):
    """A data set of images, masks, and prompts.

    A click prompts the object under it. All clicks on the same object, and a box around it, form
    one prompt. Objects without a prompt are not used; an image without prompts stays in the data
    set, without objects. If the data set has neither clicks nor boxes, all objects are used, and
    each epoch draws new prompts for them.
    """

    def __init__(
        self,
        images: Images,
        masks: Images,
        coordinates: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        window: tuple[float, float] | None = None,
        *,
        ignore_label: int | None = None,
        components: bool = False,
    ) -> None:
        """Check images, masks and prompts, so that a mistake is an error and not a low score.

        Args:
            images: n images (H, W) or (H, W, 3), of equal or different sizes, all of the same
                dtype: arrays, PIL images, or arrays of zarr and h5py, which are read one image at a
                time. uint8 images are used as they are; other dtypes are scaled to 0..255 by one
                rule for the whole data set, which is printed. Or a folder, or a list of files: PNG,
                JPEG and other images, TIFF (each page), NIfTI (each slice), DICOM, or .npy. They
                are turned as their metadata says.
            masks: n label maps (H, W), where 0 is background and every other number is an object;
                boolean, 0/1 or 0/255 masks of a single object; or stacks (N, H, W) with one mask
                per object, which may overlap. Or a folder with the same names as the images, up to
                words such as `_mask`; a list of files in the order of the images, in which a list
                of files is a stack; or a .json file in the format of COCO, which may have more
                images than a list of files. Images that are not in it are left out.
            coordinates: clicks (P, 3) or (P, 4), rows (image index, y, x) or (image index, y, x,
                label), in pixels, where integers are pixel centers. The label is 1 on the object
                and 0 off it. A click with label 0 belongs to the object of the click before it. In
                a stack, a click prompts the smallest mask under it.
            boxes: boxes (Q, 5), rows (image index, y0, x0, y1, x1) in pixels, each around one
                object.
            window: the two image values that are scaled to 0 and 255, for example the `window` of
                the training set for a validation set. None: the rule above.
            ignore_label: label of pixels that belong to no object and count neither in the loss nor
                in the scores, such as 255 in PASCAL VOC.
            components: whether each connected part of a label is an object, as in 0/255 masks of
                many cells.

        Raises:
            ValueError: Images, masks and prompts do not match, or a file may mean something else.
                The message contains the file, or the row and the mask with the click in it.
            FileNotFoundError: A file does not exist.
            ImportError: A file needs a package that is not installed.
            TypeError: Images or masks are not sequences.
        """
        if ignore_label is not None and (not is_integer(ignore_label) or ignore_label == 0):
            raise ValueError(
                f"invalid ignore_label {ignore_label!r}: use an integer other than 0, which is the "
                "background"
            )
        check_flags(components=components)
        self.ignore_label, self.components = ignore_label, components
        self.images, self.masks = open_pair(images, masks)
        self._checked: set[int] = set()  # the masks that are known to be valid
        if len(self.images) != len(self.masks):
            raise ValueError(
                f"{len(self.images)} images but {len(self.masks)} masks, which begin with "
                f"{self.name(0, 'image')} and {self.name(0)}: pass a mask for each image; masks in "
                "the pages of one file need images in one file"
            )
        self._check_masks()
        self.window = gray_window(self.images, window)
        self.dtype = np.asarray(self.images[0]).dtype if len(self.images) else np.dtype(np.uint8)
        self.has_prompts = coordinates is not None or boxes is not None
        clicks = prompt_rows(
            coordinates, "coordinates", len(self.images), (3, 4), "(image, y, x[, label])"
        )
        box_rows = prompt_rows(boxes, "boxes", len(self.images), (5,), "(image, y0, x0, y1, x1)")
        lookup = (lambda i: self._mask(i)[0]), (lambda i: self.name(i, "image"))
        of_click = objects_clicked(clicks, *lookup)  # (P,)
        of_box = objects_in_boxes(box_rows, *lookup)  # (Q,)
        self._prompts: list[NDArray[Any]] = []  # (image, y, x, label, object), (image, box, object)
        for rows, of in ((clicks, of_click), (box_rows, of_box)):
            self._prompts.append(np.column_stack([rows, of])[np.argsort(rows[:, 0], kind="stable")])
        # Where the prompts of each image are, so that finding them takes the same time for all.
        ends = np.arange(len(self.images) + 1)
        self._starts = [np.searchsorted(rows[:, 0], ends) for rows in self._prompts]

    def _check_masks(self) -> None:
        """Check the sizes of all images, and some masks; the others are checked when used."""
        if note := note_on_axes(getattr(self.masks, "shape", ())):
            print0(note)
        for i in range(len(self.images)):
            size, mask_size = size_of_item(self.images, i), size_of_item(self.masks, i)
            if not size:
                continue
            name = self.name(i, "image")
            check_shape(name, size)
            check_thin(name, size)
            if mask_size and mask_size[-2:] != size[:2]:
                check_sizes(name, size, self.name(i), np.asarray(self.masks[i]))
        pixels = np.prod(np.shape(self.masks[0])[-2:]) if len(self.masks) else 1
        many = max(16, LOOKED_PIXELS // int(pixels))
        some = looked_at(self.masks, many if in_memory(self.masks) else min(many, 64))
        notes: dict[str, list[str]] = {}  # by what to do
        for i in some:
            what, remedy = note_on(self.name(i), self._mask(i)[0])
            notes.setdefault(remedy, []).append(what)
        for remedy, found in notes.items():
            if remedy:
                more = f" ({len(found)} such masks of {len(some)})" if len(found) > 1 else ""
                print0(f"{found[0]}{more}. {remedy}")

    def name(self, index: int, kind: str = "mask") -> str:
        """Return the name of a mask or an image for messages."""
        return name_of(self.masks if kind == "mask" else self.images, kind, index)

    def _mask(self, index: int) -> tuple[Mask, NDArray[np.bool_] | None]:
        """Return a mask, checked, and its ignored pixels (H, W), if there can be any."""
        given = self.masks[index]
        mask: Mask = given if isinstance(given, Encoded) else np.asarray(given)
        ignored = None
        if mask.ndim == 3 and (self.components or self.ignore_label is not None):
            raise ValueError(
                f"{self.name(index)} is a stack with one mask per object: components and "
                "ignore_label are for label maps (H, W)"
            )
        if isinstance(mask, Encoded) and mask.crowd:
            ignored = mask.ignored()
        elif self.ignore_label is not None and mask.ndim == 2:
            ignored = mask == self.ignore_label
            mask = np.where(ignored, 0, mask)
        if index not in self._checked:
            check_mask(self.name(index), mask, components=self.components)
            self._checked.add(index)
        if self.components and mask.ndim == 2:
            mask = components_of(mask)
        return mask, ignored

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        """Return one image and its objects; see `ddp_magic.sam.arrays.items`."""
        return self.item(index)

    def item(self, index: int, objects: Choice | None = None) -> Item:
        """Return one image and some of its objects; only their masks are made.

        Args:
            index: index of the image.
            objects: function that returns the indices of the chosen objects, given their number;
                None: all objects.
        """
        target, image = self.target(index, objects), self.image(index)
        names = self.name(index, "image"), self.name(index)
        check_sizes(names[0], image.shape[1:], names[1], target["masks"].numpy())
        return {**target, "image": torch.from_numpy(image)}

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return one image, (3, H, W) uint8.

        Raises:
            ValueError: It is not like the other images, or its objects cannot be seen.
        """
        given, name = np.asarray(self.images[index]), self.name(index, "image")
        check_levels(name, given, self.dtype, self.window)
        image = to_rgb(given, self.window)
        low, high = self.window or (0, 255)
        flat = image.size and given.min() < given.max() and image.max() - image.min() < FLAT
        if flat and len(object_labels(self._mask(index)[0])):
            raise ValueError(
                f"{name} comes out with the gray levels {image.min()} to {image.max()}, in which "
                f"its objects cannot be seen: its values are {given.min():g}..{given.max():g}, and "
                f"{low:g}..{high:g} is scaled to 0..255: scale it like the other images, or leave "
                "it out"
            )
        return image

    def target(self, index: int, objects: Choice | None = None) -> Item:
        """Return an item without its image; see `item`."""
        index = range(len(self))[index]  # supports negative indices; raises IndexError
        mask, ignored = self._mask(index)
        if self.has_prompts:
            labels, prompts = self.prompts(index)
        else:
            labels = object_labels(mask)
            prompts = no_prompts(len(labels))
        item = {**prompts, "keys": object_keys(index, len(labels))}
        if objects is not None:
            chosen = np.asarray(objects(len(labels)), dtype=np.int64)
            item, labels = pick_objects(item, torch.from_numpy(chosen)), labels[chosen]
        item["masks"] = torch.from_numpy(object_masks(mask, labels))  # (N, H, W)
        return item if ignored is None else item | {"ignored": torch.from_numpy(ignored)}

    def instances(self, index: int) -> Tensor:
        """Return the label map (H, W) of all objects, prompted or not; -1 is ignored."""
        mask, ignored = self._mask(index)
        every = label_map(mask)
        if ignored is not None:
            every[ignored] = -1
        return torch.from_numpy(every)

    @property
    def levels(self) -> dict[str, Any]:
        """The dtype of the images and the values that are scaled to 0 and 255, for JSON."""
        return {"dtype": str(self.dtype), "window": self.window and list(self.window)}

    def prompts(self, index: int) -> tuple[NDArray[Any], Item]:
        """Return the labels (N,) of the objects of an image, and their clicks and boxes."""
        clicks, given = (
            rows[starts[index] : starts[index + 1]]
            for rows, starts in zip(self._prompts, self._starts, strict=True)
        )
        of = [int(label) for label in (*clicks[:, -1], *given[:, -1])]
        labels = list(dict.fromkeys(of))  # in the order of their first prompts
        number = np.array([labels.index(label) for label in of], dtype=np.int64)
        own = number[: len(clicks)]
        clicks = clicks[np.argsort(own, kind="stable")]
        boxes = np.full((len(labels), 4), np.nan, dtype=np.float32)  # (x0, y0, x1, y1)
        boxes[number[len(clicks) :]] = given[:, [2, 1, 4, 3]]
        return np.array(labels, dtype=np.int64), {
            "points": torch.from_numpy(clicks[:, [2, 1]].astype(np.float32)),  # (x, y) as in SAM
            "labels": torch.from_numpy(clicks[:, 3].astype(np.int64)),
            "counts": torch.from_numpy(np.bincount(own, minlength=len(labels))),
            "boxes": torch.from_numpy(boxes),
        }
