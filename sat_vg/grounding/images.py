"""Images in pixels: letterboxed to a square, decoded once for the whole run, turned and flipped with their boxes."""

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from sat_vg.backbone_finetuning.data.reading.decoder import Decoder, Picture
from sat_vg.backbone_finetuning.data.reading.threads import run_in_order
from sat_vg.backbone_finetuning.utils.errors import DataError, UserError
from sat_vg.backbone_finetuning.utils.pil_pixels import PILLOW_ERRORS, pixel_step
from sat_vg.backbone_finetuning.utils.terminal import progress
from sat_vg.grounding.words import Symmetry


class Letterbox(NamedTuple):
    """How an image of ``width`` x ``height`` pixels lies on a canvas of ``size`` x ``size``; scaled, top left."""

    width: int
    height: int
    size: int

    @property
    def scale(self) -> float:
        """Canvas pixels per image pixel."""
        return self.size / max(self.width, self.height)

    @property
    def extent(self) -> tuple[int, int]:
        """Width and height of the image on the canvas, in pixels; the rest is padding."""
        return max(1, round(self.width * self.scale)), max(1, round(self.height * self.scale))

    @property
    def mask(self) -> Tensor:
        """Bool ``[size, size]``, True where there is padding."""
        width, height = self.extent
        mask = torch.ones(self.size, self.size, dtype=torch.bool)
        mask[:height, :width] = False
        return mask

    def to_canvas(self, boxes: Tensor) -> Tensor:
        """Corners ``[..., 4]`` in pixels of the image → in fractions of the canvas."""
        return boxes * (self.scale / self.size)

    def to_image(self, boxes: Tensor) -> Tensor:
        """Corners ``[..., 4]`` in fractions of the canvas → in pixels of the image, clipped to it."""
        limits = boxes.new_tensor([self.width, self.height, self.width, self.height])
        return (boxes * (self.size / self.scale)).clamp(min=0).minimum(limits)


def letterbox(image: Tensor, size: int) -> tuple[Tensor, Letterbox]:
    """An image uint8 ``[3, H, W]`` on a black canvas uint8 ``[3, size, size]``."""
    box = Letterbox(image.shape[2], image.shape[1], size)
    width, height = box.extent
    resized = functional.resize(image, [height, width], antialias=True)
    return functional.pad(resized, [0, 0, size - width, size - height]), box


def read_image(path: str | Path, decoder: Decoder) -> Picture:
    """An image file; raises DataError where it cannot be read pixel by pixel, as boxes are in pixels."""
    picture, size = decoder.picture(path), (1, 1)
    if 4 * picture.pixels[0].numel() > (Image.MAX_IMAGE_PIXELS or math.inf):  # it may have been read at half its size
        with suppress(*PILLOW_ERRORS), Image.open(path) as image:
            size = image.size
    require_every_pixel(*size, repr(str(path)))
    return picture


def require_every_pixel(width: int, height: int, name: str) -> None:
    """Raise DataError where an image is so large that not all of its pixels are read."""
    if pixel_step(width, height) > 1:
        raise DataError(
            f"the image {name} has {width} x {height} pixels, of which no more than {Image.MAX_IMAGE_PIXELS} are "
            "read, so boxes in pixels would not fit it; cut it into tiles"
        )


class ImageStore:
    """The letterboxed images of a run, each decoded once, in a temporary memory-mapped file without a name.

    The file takes 3 × ``size``² bytes an image in ``folder``; DataError: there is no room. ``decode`` makes a uint8
    ``[3, H, W]`` of a path.
    """

    def __init__(self, paths: Sequence[str], size: int, decode: Callable[[str], Tensor], folder: Path) -> None:
        self._places = {path: place for place, path in enumerate(paths)}
        self.boxes: dict[str, Letterbox] = {}  # how each image lies in its canvas
        self.digests: dict[str, bytes] = {}  # a hash of each letterboxed image
        self.problems: dict[str, str] = {}  # why an image could not be read
        shape = (max(1, len(paths)), 3, size, size)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.truncate(math.prod(shape))
                if hasattr(os, "posix_fallocate"):  # writing into a mapped file on a full disk would end the process
                    os.posix_fallocate(file.fileno(), 0, math.prod(shape))
                self._canvases = np.memmap(file, dtype=np.uint8, mode="r+", shape=shape)
        except OSError as error:
            raise DataError(
                f"{len(paths)} images of {size} pixels need {math.prod(shape) / 2**30:.1f} GiB in {str(folder)!r} "
                f"({error.strerror}); make room, name another folder by SAT_VG_CACHE, or lower image_size"
            ) from error

        def store(path: str) -> None:
            try:
                canvas, self.boxes[path] = letterbox(decode(path), size)
            except (UserError, OSError) as error:
                self.problems[path] = str(error)
            else:
                self._canvases[self._places[path]] = canvas.numpy()
                self.digests[path] = hashlib.blake2b(canvas.numpy().tobytes(), digest_size=16).digest()

        for _ in run_in_order(paths, store, bar=progress(total=len(paths), desc="decoding", unit="img")):
            pass

    def canvas(self, path: str) -> Tensor:
        """The letterboxed image uint8 ``[3, size, size]``."""
        return torch.from_numpy(self._canvases[self._places[path]].copy())


def turn_images(images: Tensor, symmetry: Symmetry) -> Tensor:
    """Images ``[..., S, S]`` turned and flipped."""
    turned = torch.rot90(images, symmetry.turns, dims=(-2, -1))
    return turned.flip(-1) if symmetry.flip else turned


def turn_boxes(boxes: Tensor, symmetry: Symmetry) -> Tensor:
    """Corners ``[..., 4]`` in fractions of a square canvas, turned and flipped with the image."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    for _ in range(symmetry.turns):
        x1, y1, x2, y2 = y1, 1 - x2, y2, 1 - x1
    return torch.stack([1 - x2, y1, 1 - x1, y2] if symmetry.flip else [x1, y1, x2, y2], dim=-1)
