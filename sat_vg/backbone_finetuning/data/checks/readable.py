"""Every image decoded once before training, so that a bad file shows at the start and not in epoch 7.

On the way each image gets a fingerprint of its pixels, by which ``duplicates`` finds copies, and is measured. All of
it is remembered between runs, so the second run on the same images decodes none.
"""

import hashlib
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import PIL
import torchvision
from torch import Tensor
from tqdm import tqdm

from sat_vg.backbone_finetuning.data.reading.decoder import Decoder, Traits, fingerprint
from sat_vg.backbone_finetuning.data.reading.decoding import RGB_DECODER
from sat_vg.backbone_finetuning.data.reading.files import stamp_of_image
from sat_vg.backbone_finetuning.data.reading.threads import run_in_order
from sat_vg.backbone_finetuning.data.sources.splits import Splits
from sat_vg.backbone_finetuning.utils.errors import DataError, WriteError
from sat_vg.backbone_finetuning.utils.printable import list_lines, one_line
from sat_vg.backbone_finetuning.utils.regular_files import open_regular
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write, write_text
from sat_vg.backbone_finetuning.utils.torch_archives import DamagedFileError, RefusedFileError, require_plain_zip

_LISTED = 10
READABLE_IMAGES = "readable_images.npz"  # in the cache folder
LEFT_OUT = "skipped_images.txt"  # in the log folder
_MAX_RECORD_BYTES = 2**31  # of some 10**8 images; no cache of ours is larger
# What other versions could read is no promise for these.
_GDAL = "with" if find_spec("rasterio") else "without"
_RECORD_FORMAT = (
    f"sat_vg readable images 8; pillow {PIL.__version__}; torchvision {torchvision.__version__}; {_GDAL} rasterio"
)


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be decoded."""

    path: str  # the file, as it was given
    reason: str  # what is wrong with it, without the path


class Examined(NamedTuple):
    """What a pass over images found."""

    bad: list[BadImage]  # the images that cannot be decoded, in the order of the paths
    contents: dict[str, int]  # of every other path a fingerprint of its pixels (see ``fingerprint``)
    stats: dict[str, Any]  # of every other path what ``measure`` gave, if it was given
    sizes: dict[str, tuple[int, int]]  # of every other path its height and width in pixels
    traits: dict[str, Traits]  # of every other path the traits of its values


class Readable(NamedTuple):
    """Splits of which every image can be decoded."""

    splits: Splits  # the images
    left_out: list[BadImage]  # images that could not be decoded
    contents: dict[str, int]  # of every path a fingerprint of its pixels
    sizes: dict[str, tuple[int, int]]  # of every path its height and width in pixels
    traits: dict[str, Traits]  # of every path the traits of its values


class _Remembered(NamedTuple):
    content: int
    height: int
    width: int
    traits: Traits = Traits()


class _Checked(NamedTuple):
    path: str
    key: int | None  # under which the record holds an image that decodes
    seen: _Remembered | str  # or why it does not
    stats: Any = None


def examine_images(
    paths: Sequence[str],
    *,
    record: Path | None = None,
    measure: Callable[[Tensor], Any] | None = None,
    threads: int | None = None,
    decoder: Decoder = RGB_DECODER,
) -> Examined:
    """Decode every image; report those that cannot be, and fingerprint the others.

    Args:
        paths: image files.
        record: file that remembers which images decoded well, by path, size, inode and times, and their fingerprints,
            so that a later check passes over them. It is a cache: where it is damaged, of another version or cannot
            be written, the images are decoded. None remembers nothing.
        measure: called with every decoded image, uint8 ``[3, H, W]``, in some thread; the record is then not used.
        threads: images decoded at a time; by default one per available core.
        decoder: how they are decoded; what one could read is no promise for another.
    """
    known = _read_record(record) if record is not None else {}
    before = len(known)

    def check(path: str) -> _Checked:
        # Taken before decoding: a file that changes meanwhile is then decoded again next time.
        key = _key(path, decoder)
        if key is not None and key in known and measure is None:
            return _Checked(path, key, known[key])
        picture = decoder.examine(path)
        if isinstance(picture, str):
            return _Checked(path, None, picture)
        image = picture.pixels
        seen = _Remembered(fingerprint(image), image.shape[1], image.shape[2], picture.traits)
        return _Checked(path, key, seen, measure(image) if measure else None)

    examined = Examined([], {}, {}, {}, {})
    bar = tqdm(total=len(paths), desc="checking images", unit="image", disable=None)
    try:
        for path, key, seen, stats in run_in_order(paths, check, threads, bar):
            if isinstance(seen, str):
                examined.bad.append(BadImage(path, seen))
                continue
            if key is not None:
                known[key] = seen
            examined.contents[path], examined.traits[path] = seen.content, seen.traits
            examined.sizes[path] = seen.height, seen.width
            if measure is not None:
                examined.stats[path] = stats
    finally:  # what was checked before Ctrl-C need not be checked again
        if record is not None and (len(known) > before or measure is not None):
            _write_record(record, known)
    return examined


def require_readable(
    splits: Splits,
    policy: Literal["error", "skip"],
    max_bad_fraction: float = 0.01,
    *,
    record: Path | None = None,
    decoder: Decoder = RGB_DECODER,
) -> Readable:
    """Check all images of the splits and deal with the bad ones; ``record`` and ``decoder`` as in ``examine_images``.

    With the policy ``"error"`` any bad image raises; ``"skip"`` leaves out up to ``max_bad_fraction`` of all images.

    Raises:
        DataError: an image is bad and ``policy`` is ``"error"``, or too many are, or leaving the bad ones out
            would empty val or a class of train.
    """
    paths = [path for split in splits.parts for path in split.paths]
    bad, contents, _, sizes, traits = examine_images(paths, record=record, decoder=decoder)
    if not bad:
        return Readable(splits, [], contents, sizes, traits)
    listed = list_lines([f"{image.path!r}: {image.reason}" for image in bad], _LISTED)
    if policy == "error":
        raise DataError(
            f"{len(bad)} of {len(paths)} images cannot be read:\n{listed}\n"
            "Mend or remove them, or leave them out with --on_bad_image skip"
        )
    fraction = len(bad) / len(paths)
    if fraction > max_bad_fraction:
        enough = math.ceil(1000 * fraction) / 1000
        raise DataError(
            f"{len(bad)} of {len(paths)} images cannot be read, {100 * fraction:.2g} % of them, and at most "
            f"{100 * max_bad_fraction:g} % may be left out:\n{listed}\n"
            f"So many point to a damaged copy: mend them, or allow it with --on_bad_image skip:{enough:g}"
        )
    kept = splits.without({image.path for image in bad})
    counts = kept.train.class_counts()
    emptied = [name for name, count in zip(kept.class_names, counts, strict=True) if not count]
    if emptied or not len(kept.val):
        what = "val" if not emptied else f"train's classes {', '.join(map(repr, emptied[:_LISTED]))}"
        raise DataError(
            f"leaving out the {len(bad)} images that cannot be read would leave nothing of {what}:\n"
            f"{listed}\nMend these images or add others"
        )
    return Readable(kept, bad, contents, sizes, traits)


def write_left_out(path: Path, left_out: Sequence[BadImage]) -> None:
    """Write a line for each image that was left out, its path and the reason with a tab between; none: no file.

    Raises:
        WriteError: the file cannot be written.
    """
    lines = [f"{one_line(image.path)}\t{one_line(image.reason)}\n" for image in left_out]
    try:
        if lines:
            write_text(path, "".join(lines))
        else:
            path.unlink(missing_ok=True)  # of an earlier run in the same folder
    except OSError as error:
        raise WriteError(f"{str(path)!r} cannot be written ({error.strerror or error}); make room there") from error


def _key(path: str, decoder: Decoder = RGB_DECODER) -> int | None:
    """64 bits of a hash of path, size, inode, times and decoder; None if there is no such file.

    A million images take 8 MB as such; that a bad image passes for a known one has a chance of 1 in 10**13.
    """
    try:
        stamp = stamp_of_image(path)
    except (OSError, ValueError):
        return None
    text = os.fsencode(Path(path).absolute()) + b"\0" + stamp.encode()
    if decoder.key:
        text += b"\0" + decoder.key.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _read_record(record: Path) -> dict[int, _Remembered]:
    """The images that are known to decode; none if the record is missing, damaged or foreign."""
    try:
        with open_regular(record) as file:
            if os.fstat(file.fileno()).st_size > _MAX_RECORD_BYTES:
                return {}
            require_plain_zip(file)
            file.seek(0)
            content = np.load(file, allow_pickle=False)
            columns = [content[name] for name in ("keys", "contents", "heights", "widths")]
            if str(content["format"]) != _RECORD_FORMAT or any(column.dtype != np.uint64 for column in columns):
                return {}
            traits = [Traits.from_json(str(text)) for text in content["traits"].ravel()]
            kinds = content["kinds"].ravel().tolist()
            rows = zip(*(column.ravel().tolist() for column in columns), kinds, strict=True)
            return {key: _Remembered(one, height, width, traits[kind]) for key, one, height, width, kind in rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, MemoryError):
        return {}
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, DamagedFileError, RefusedFileError):
        return {}


def _write_record(record: Path, known: Mapping[int, _Remembered]) -> None:
    number_of: dict[Traits, int] = {}  # most images share them
    rows = [(key, *known[key][:3], number_of.setdefault(known[key].traits, len(number_of))) for key in sorted(known)]
    table = np.array(rows, dtype=np.uint64).reshape(-1, 5)
    columns = dict(zip(("keys", "contents", "heights", "widths", "kinds"), table.T, strict=True))
    traits = np.array([one.to_json() for one in number_of], dtype=np.str_)
    try:
        record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with atomic_write(record) as file:
            Path(file.name).chmod(0o600)
            np.savez(file, format=np.array(_RECORD_FORMAT), traits=traits, **columns)
    except OSError:
        return  # a read-only or full disk costs the next check time, nothing more
