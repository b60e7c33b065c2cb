"""Decoders: an image file → a tensor with the traits of its values."""

import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from torch import Tensor

from sat_vg.backbone_finetuning.data.reading.files import read_file
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.unreadable import Unreadable

Scaling = tuple[tuple[float, float], ...]


class Traits(NamedTuple):
    """Traits of an image's values, by its file."""

    depth: str = "8-bit"  # kind of the values: ``8-bit``, ``16-bit``; of chosen bands their type
    # empty: there is none, or it is 0 or full everywhere. ``soft``: it has values in between, by which the colours
    # were made darker. ``ignored``: a band that is marked as alpha, and is none by its values.
    alpha: str = ""
    scaling: Scaling = ()  # scale and offset by band; empty where all are 1 and 0
    is_scaled: bool = False  # whether scale and offset were applied
    nodata: tuple[float | None, ...] = ()  # by chosen band
    names: tuple[str | None, ...] = ()  # descriptions of the bands that were chosen by their number
    levels: int = 0  # how many levels of grey deep pixels have as 8 bits, at most; 0: they are no deep pixels
    fills: tuple[float, ...] = ()  # values that were taken for "no value" without a tag
    # percentage of the pixels that are 0 in all chosen bands and look like nodata that no tag declares
    blank: int = 0
    # colours of the bands of a TIFF by its descriptions; empty: it has none, or its bands were chosen
    marks: tuple[str, ...] = ()
    # percentage of the pixels that nodata or a mask in the file declares as missing and that are read as colours
    shown: int = 0
    has_more: bool = False  # whether more frames or pages follow the one that was read

    @property
    def left_a_choice(self) -> bool:
        """Whether the image could have been read otherwise: alpha, values missing or not, further frames."""
        return bool(self.alpha or self.fills or self.shown or self.has_more)

    def to_json(self) -> str:
        """The traits as a text, for a file."""
        return json.dumps(self)

    @classmethod
    def from_json(cls, text: str) -> "Traits":
        """Restore what ``to_json`` gave. Raises ValueError where it is none."""
        try:
            values = [_frozen(value) for value in json.loads(text)]
            if list(map(type, values)) != list(map(type, cls())):
                raise TypeError(f"{len(values)} values")
            return cls(*values)
        except (TypeError, RecursionError) as error:
            raise ValueError(f"no traits: {error}") from None


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


class Picture(NamedTuple):
    """A decoded image ``[C, H, W]`` and the traits of its values."""

    pixels: Tensor
    traits: Traits = Traits()

    def of_several(self, has_more: bool) -> "Picture":
        """The same where frames or pages follow it."""
        return self._replace(traits=self.traits._replace(has_more=True)) if has_more else self


class Decoder:
    """Makes images of files; subclasses are frozen dataclasses, so that equal ones read alike."""

    @property
    def key(self) -> str:
        """What the images depend on beside the file, as a text; empty for 8-bit RGB."""
        return ""

    def decode(self, file: BinaryIO) -> Picture:
        """The image of an open file. Raises Unreadable."""
        raise NotImplementedError

    def read(self, path: str | Path) -> Tensor:
        """The image ``[C, H, W]``.

        Raises:
            DataError: the file cannot be read; names file, reason and remedy.
        """
        return self.picture(path).pixels

    def picture(self, path: str | Path) -> Picture:
        """The image with its traits.

        Raises:
            DataError: the file cannot be read; names file, reason and remedy.
        """
        try:
            return self._read(path)
        except Unreadable as problem:
            raise DataError(f"cannot read the image {str(path)!r}: {problem.reason}; {problem.remedy}") from None

    def examine(self, path: str | Path) -> Picture | str:
        """The image with its traits, or the reason why the file cannot be read, without its path."""
        try:
            return self._read(path)
        except Unreadable as problem:
            return problem.reason

    def _read(self, path: str | Path) -> Picture:
        """The image with its traits. Raises Unreadable."""
        return read_file(path, self.decode)

    def read_or_reason(self, path: str | Path) -> Tensor | str:
        """The image, or the reason why the file cannot be read, without its path."""
        picture = self.examine(path)
        return picture if isinstance(picture, str) else picture.pixels


def fingerprint(image: Tensor) -> int:
    """A fingerprint of size and pixels of an image, uint8 or float32 ``[C, H, W]``: 63 bits of a hash.

    Of the pixels and not of the file, so that a copy with other metadata or in another lossless format is one.
    Two different images in a million share one with a chance of 1 in 10**7.
    """
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=8)
    digest.update(pixels.reshape(-1).data)  # numbers of another type take more bytes, so none are taken for these
    return int.from_bytes(digest.digest(), "little") >> 1
