"""The preprocessing that belongs to a set of weights: geometry on pixel values, then normalisation."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Literal, cast

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from sat_vg.backbone_finetuning.utils.errors import CheckpointError, UserError
from sat_vg.backbone_finetuning.utils.pil_pixels import CONVERT, rgb_of, upright
from sat_vg.backbone_finetuning.utils.tiff_layouts import layout_of_image, require_picture, why_not_pillow
from sat_vg.backbone_finetuning.utils.unreadable import Unreadable

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Interpolation = Literal["bilinear", "bicubic"]
Scaling = Literal["tagged", "plain", "applied", "ignored"]
RGB = ("red", "green", "blue")
_MAX_IMAGE_SIZE = 4096  # as in the configuration
_SHOWN = 2.05  # deviations from the mean: 96 % of a normal distribution


@dataclass(frozen=True)
class BandFiles:
    """The GeoTIFFs that a model's images are read from.

    Attributes:
        bands: where each channel lies in a file: the number of a band, from 1, or its description.
        dtype: of the values in the files, such as ``uint16``.
        count: bands in a file.
        nodata: a stored value that stands for none, beside those that the files name; None: no other.
        scaling: what becomes of scale and offset tags. ``tagged``: they are applied, and files without a scale are
            refused; ``plain``: files with a scale are refused; ``applied``: either is taken; ``ignored``: values are
            taken as stored, as before tags were applied.
    """

    bands: tuple[int | str, ...]
    dtype: str
    count: int
    nodata: float | None = None
    scaling: Scaling = "applied"

    def is_sound(self) -> bool:
        """Whether the values can be what they say."""
        return (
            isinstance(self.bands, tuple)
            and all(isinstance(band, (int, str)) and not isinstance(band, bool) for band in self.bands)
            and all(1 <= band <= self.count for band in self.bands if isinstance(band, int))
            and isinstance(self.dtype, str)
            and isinstance(self.count, int)
            and (self.nodata is None or (isinstance(self.nodata, (int, float)) and math.isfinite(self.nodata)))
            and self.scaling in ("tagged", "plain", "applied", "ignored")
        )


@dataclass(frozen=True)
class Levels:
    """Which values of deep RGB images become black and which become full colour.

    Attributes:
        low: by band, the value that becomes 0, scale and offset applied.
        high: by band, the value that becomes 255.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def is_sound(self) -> bool:
        """Whether the values can be what they say."""
        return (
            isinstance(self.low, tuple)
            and isinstance(self.high, tuple)
            and len(self.low) == len(self.high) == len(RGB)
            and all(math.isfinite(value) for value in (*self.low, *self.high))
            and all(low < high for low, high in zip(self.low, self.high, strict=True))
        )

    def spread(self, values: Tensor) -> Tensor:
        """``[…, 3, H, W]`` of any type → uint8 of the same shape: from ``low`` to ``high`` evenly from 0 to 255."""
        low, high = (torch.tensor(one, dtype=torch.float64).view(-1, 1, 1) for one in (self.low, self.high))
        low, high = low.to(values.device, torch.float32), high.to(values.device, torch.float32)
        scaled = (values.to(torch.float32) - low).div_(high - low).mul_(255)
        return scaled.nan_to_num_(nan=0.0).round_().clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes the backbone's input. Plain data, stored with the weights.

    Attributes:
        image_size: height and width in pixels after resizing and cropping.
        mean: per-channel mean of images divided by ``scale``.
        std: per-channel standard deviation of images divided by ``scale``.
        interpolation: how images are resized; always with antialiasing.
        bands: what the channels are, in order.
        scale: 255 where images are uint8, so that ``mean`` and ``std`` are those of images in [0, 1]; 1 where they
            are float32 values as they stand in the files.
        files: the GeoTIFFs that images are read from; None: 8-bit RGB images.
        levels: by which deep RGB images become 8-bit ones; None: by their high byte.
    """

    image_size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Interpolation = "bilinear"
    bands: tuple[str, ...] = RGB
    scale: float = 255.0
    files: BandFiles | None = None
    levels: Levels | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Restore what ``to_dict`` gave.

        Raises:
            CheckpointError: the values are not such; a file that they came from is altered.
        """
        try:
            plain = _with_tuples(values)
            if plain.get("files") is not None:
                plain["files"] = BandFiles(**{"scaling": "ignored", **_with_tuples(plain["files"])})
            if plain.get("levels") is not None:
                plain["levels"] = Levels(**_with_tuples(plain["levels"]))
            restored = cls(**plain)
            sound = (
                isinstance(restored.image_size, int)
                and 1 <= restored.image_size <= _MAX_IMAGE_SIZE
                and len(restored.mean) == len(restored.std) == len(restored.bands)
                and all(math.isfinite(value) for value in restored.mean)
                and all(math.isfinite(value) and value > 0 for value in restored.std)
                and restored.interpolation in ("bilinear", "bicubic")
                and all(isinstance(band, str) for band in restored.bands)
                and math.isfinite(restored.scale)
                and restored.scale > 0
                and (restored.files is None or restored.files.is_sound())
                and (restored.files is None or len(restored.files.bands) == len(restored.bands))
                and (restored.levels is None or (restored.levels.is_sound() and restored.bands == RGB))
            )
        except (TypeError, AttributeError, ValueError, OverflowError):
            sound = False
        if not sound:
            raise CheckpointError("the stored preprocessing is not sound: the file is altered; use another one")
        return restored

    def to_dict(self) -> dict[str, Any]:
        """Plain data: numbers, strings and lists; of 8-bit RGB images no more than there was before GeoTIFFs."""
        values = _with_lists(asdict(self))
        if self.files is None:
            del values["files"]
        elif self.files.nodata is None:
            del values["files"]["nodata"]
        if self.scale == Preprocessing.scale:
            del values["scale"]
        if self.levels is None:
            del values["levels"]
        return values

    def geometry(self) -> nn.Module:
        """``[C, H, W]`` of any size → ``[C, image_size, image_size]``, of the same type.

        The shorter side is resized to ``image_size`` and the centre is cut out, so a square image is kept whole.
        """
        steps = v2.Compose(
            [
                MiddleOfLong(),
                v2.Resize(self.image_size, interpolation=v2.InterpolationMode(self.interpolation), antialias=True),
                v2.CenterCrop(self.image_size),
            ]
        )
        return cast(nn.Module, steps)

    def normalise(self, images: Tensor) -> Tensor:
        """``[B, C, H, W]`` → float32 of the same shape with the weights' mean and deviation removed.

        Args:
            images: uint8, deep values spread by ``levels``; of GeoTIFFs the values in the files, scale and offset
                applied. ``[C, H, W]`` is taken too.

        Raises:
            UserError: they are of another type or number of channels.
        """
        self._require_pixels(images)
        # A tracer's tensors must not be remembered.
        constants = _constants.__wrapped__ if torch.compiler.is_compiling() else _constants
        mean, scale = constants(self.mean, self.std, self.scale, images.device)
        return images.to(torch.float32, copy=True).sub_(mean).mul_(scale)

    def _require_pixels(self, images: object) -> None:
        """Refuse what would be normalised to something else than in the training, by its type and shape alone.

        Floats of 8-bit images are refused whatever their values: in [0, 1], as most loaders give them, they would be
        divided by 255 once more, and a dark image in [0, 255] cannot be distinguished from them.
        """
        channels = len(self.mean)
        if not isinstance(images, Tensor):
            raise UserError(
                f"images are of type {type(images).__name__}: give a tensor [B, {channels}, H, W]; of an array "
                "[H, W, C] it is torch.from_numpy(array).permute(2, 0, 1)[None]"
            )
        if images.ndim not in (3, 4) or images.shape[-3] != channels:
            raise UserError(
                f"images of shape {list(images.shape)}: give [B, {channels}, H, W] or [{channels}, H, W], the "
                f"channels being {', '.join(self.bands)}"
            )
        if self.files is None and self.scale == Preprocessing.scale and images.dtype != torch.uint8:
            raise UserError(
                f"images of type {images.dtype}: this model normalises 8-bit images, so give torch.uint8, 0 to 255. "
                "Of floats in [0, 1] make them by (255 * images).round().to(torch.uint8); images that are normalised "
                "already go to the model as they are"
                + ("" if self.levels is None else ". Deep values: preprocessing.levels.spread(values)")
            )
        if images.dtype.is_complex or images.dtype == torch.bool:
            raise UserError(f"images of type {images.dtype}: give real numbers, as they stand in the files")

    def pictures(self, images: Tensor) -> Tensor:
        """``[B, C, H, W]``, not normalised → uint8 ``[B, 3, H, W]`` for display; 8-bit RGB as it is.

        Drawn are the bands that are named red, green and blue; where these are not all there, the first three, or
        the first in grey. Of other values than uint8 what lies from 2 to 98 % of a normal distribution with the data
        set's mean and deviation is spread from black to white: the same in all images, so that colours can be
        compared, and missing values are grey.
        """
        wanted = self._drawn()
        chosen = images if wanted == list(range(images.shape[1])) else images[:, wanted]
        if images.dtype == torch.uint8:
            return chosen
        kept = replace(self, mean=self._of(wanted, self.mean), std=self._of(wanted, self.std))
        spread = kept.normalise(chosen.detach().cpu()).div_(2 * _SHOWN).add_(0.5)
        return spread.mul_(255).round_().clamp_(0, 255).to(torch.uint8)

    @staticmethod
    def _of(places: list[int], values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(values[place] for place in places)

    def _drawn(self) -> list[int]:
        if set(RGB) <= set(self.bands):
            return [self.bands.index(name) for name in RGB]
        return [0, 1, 2] if len(self.bands) >= len(RGB) else [0, 0, 0]

    def transforms(self) -> nn.Module:
        """A PIL image or tensor ``[C, H, W]`` → float32 ``[C, image_size, image_size]``, normalised."""
        return cast(nn.Module, v2.Compose([ToPixels(self), self.geometry(), v2.Lambda(_Normalise(self))]))


class ToPixels(nn.Module):
    """A PIL image or a tensor → pixels ``[C, H, W]`` with the channels of the training.

    Where these are red, green and blue, PIL images are read as the files of the training are: turned by their EXIF
    orientation, transparency on black, grey and CMYK as RGB. Other bands are taken as they are.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing

    def forward(self, image: Image.Image | Tensor) -> Tensor:
        """``[C, H, W]``.

        Raises:
            UserError: it is neither, or of other values than the training's.
        """
        if not isinstance(image, Image.Image | Tensor):
            raise UserError(
                f"image of type {type(image).__name__}: give a PIL image or a tensor [C, H, W]; of a path "
                "PIL.Image.open(path), of an array [H, W, 3] PIL.Image.fromarray(array)"
            )
        pixels: Tensor
        if isinstance(image, Image.Image):
            self._require_8_bits(image)
            is_rgb = self.preprocessing.bands == RGB
            pixels = _rgb_pixels(image) if is_rgb else v2.functional.pil_to_tensor(upright(image))
        elif self.preprocessing.bands == RGB and image.ndim >= 3 and image.shape[-3] == 1:
            pixels = v2.RGB()(image)
        else:
            pixels = image
        self.preprocessing._require_pixels(pixels)
        return pixels

    def _require_8_bits(self, image: Image.Image) -> None:
        """Refuse a PIL image of which the training reads values that Pillow does not give.

        Raises:
            UserError: names what to give.
        """
        files, levels = self.preprocessing.files, self.preprocessing.levels
        if files is not None and files.dtype != "uint8":
            raise UserError(
                f"PIL image of mode {image.mode!r}: this model reads the {files.dtype} values of GeoTIFFs; give a "
                "tensor [C, H, W] of them, scale and offset applied"
            )
        if levels is not None and image.format is not None:  # in memory it may be what the levels gave
            raise UserError(
                f"PIL image of a file, of mode {image.mode!r}: this model spreads values of more than 8 bits, of "
                "which Pillow gives the highest 8; give a tensor, preprocessing.levels.spread(values)"
            )


def _rgb_pixels(image: Image.Image) -> Tensor:
    """uint8 ``[3, H, W]`` of a PIL image, as the training reads its file.

    Raises:
        UserError: its values have no plain 8-bit reading, or Pillow misreads such a file.
    """
    if image.mode.startswith(("I", "F")):
        raise UserError(
            f"PIL image of mode {image.mode!r}: its values do not fit into 8 bits, and Pillow would cut them "
            "off; scale them to 0 … 255 first"
        )
    if image.mode == "HSV":  # no file is read as such
        image = image.convert("RGB")
    layout = layout_of_image(image)
    try:
        if layout is not None:
            require_picture(layout)
            if (why := why_not_pillow(layout)) is not None:
                raise Unreadable(f"it is a TIFF with {why}, which Pillow misreads", CONVERT)
        pixels, _ = rgb_of(upright(image), layout, image.format)
    except Unreadable as problem:
        raise UserError(f"PIL image of mode {image.mode!r}: {problem.reason}; {problem.remedy}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


class MiddleOfLong(nn.Module):
    """The middle of an image that is more than eight times as long as wide; any other image as it is.

    Resizing a line of 30 000 x 1 pixels to a width of 224 would take 4.5 GB, of which the crop keeps the middle.
    """

    def forward(self, image: Tensor) -> Tensor:
        """``[C, H, W]`` → a part of it, without a copy."""
        height, width = image.shape[-2:]
        longest = 8 * min(height, width)
        if max(height, width) <= longest:
            return image
        dim = -2 if height > width else -1
        return image.narrow(dim, (image.shape[dim] - longest) // 2, longest)


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _with_lists(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _with_lists(value) if isinstance(value, dict) else list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
    }


@lru_cache(maxsize=32)
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], scale: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    # Made once per device: a copy from the host in every step would make the host wait for the device.
    with torch.inference_mode(False):
        as_column = [
            torch.tensor(values, dtype=torch.float32, device=device).mul(scale).view(-1, 1, 1)
            for values in (mean, std)
        ]
        return as_column[0], as_column[1].reciprocal()


@dataclass(frozen=True)
class _Normalise:
    """``Preprocessing.normalise`` as an object, so that the transform can be pickled."""

    preprocessing: Preprocessing

    def __call__(self, image: Tensor) -> Tensor:
        return self.preprocessing.normalise(image)
