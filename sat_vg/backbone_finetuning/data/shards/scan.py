"""The content of a tar file of WebDataset: images with their labels, and where each begins. Nothing is unpacked.

Files with the same name up to its first dot form a sample: ``00000041_sea_7.jpg`` and ``00000041_sea_7.cls``.
"""

import hashlib
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from sat_vg.backbone_finetuning.data.shards.index import ListedShard, Sample, is_sample_name
from sat_vg.backbone_finetuning.data.sources.image_files import IMAGE_ENDINGS
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.json_reading import UnsoundJSONError, parse_json
from sat_vg.backbone_finetuning.utils.regular_files import open_regular

LABEL, LABELS = "cls", "json"  # endings: one class as a number or name, or several as a list of numbers
_LONGEST_LABEL = 2**12
_BLOCK = 2**20


class ScannedShard(NamedTuple):
    """The content of a tar file.

    Attributes:
        num_bytes: of the file.
        sha256: of its bytes.
        samples: images in their order; their labels are not known yet.
        labels: of each the text of its ``.cls``; of its ``.json``, if that is a list of numbers and there is no
            ``.cls``.
    """

    num_bytes: int
    sha256: str
    samples: tuple[Sample, ...]
    labels: tuple[str, ...]

    def listed(self, name: str, split: str, label_of: Callable[[str], int]) -> ListedShard:
        """Its entry in an index."""
        samples = tuple(
            sample._replace(label=label_of(text)) for sample, text in zip(self.samples, self.labels, strict=True)
        )
        return ListedShard(name, split, self.num_bytes, self.sha256, samples)


@dataclass
class _Sample:
    image: Sample | None = None
    labels: dict[str, str] = field(default_factory=dict)


def scan_shard(path: Path) -> ScannedShard:
    """Read a tar file from one end to the other.

    Raises:
        DataError: it cannot be read, is no tar file or cut short, or a sample has no label, or more than one image.
    """
    try:
        with open_regular(path) as file:
            samples = _samples_of(path, file)
            file.seek(0)
            digest, count = hashlib.sha256(), 0
            while block := file.read(_BLOCK):
                digest.update(block)
                count += len(block)
    except OSError as error:
        raise DataError(f"the shard {str(path)!r} cannot be read ({error.strerror or error})") from error
    except tarfile.TarError as error:
        raise DataError(
            f"{str(path)!r} is no tar file without compression, or it is cut short or damaged ({error}); copy or "
            "unpack it again"
        ) from error
    labelled = [_labelled(path, key, sample) for key, sample in samples.items() if sample.image or sample.labels]
    if not labelled:
        raise DataError(f"{str(path)!r} holds no images (endings looked for: {' '.join(IMAGE_ENDINGS)}); remove it")
    images, labels = zip(*labelled, strict=True)
    return ScannedShard(count, digest.hexdigest(), images, labels)


def _samples_of(path: Path, file: BinaryIO) -> dict[str, _Sample]:
    samples: dict[str, _Sample] = {}
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            if not member.isreg() or member.issparse():
                continue
            name = str(PurePosixPath(member.name))
            key, _, ending = PurePosixPath(name).name.partition(".")
            key = str(PurePosixPath(name).with_name(key)) if key else name
            sample = samples.setdefault(key, _Sample())
            if f".{ending.rpartition('.')[2]}".lower() in IMAGE_ENDINGS:
                if sample.image is not None:
                    raise DataError(
                        f"{str(path)!r} has two images under {key!r}; a sample must have one, and a .{LABEL}"
                    )
                if not is_sample_name(name):
                    raise DataError(f"{str(path)!r} has an image {name!r}, which is no name to read; rename it")
                content = _bytes_at(file, member)
                sample.image = Sample(name, -1, member.offset_data, member.size, zlib.crc32(content))
            elif ending in (LABEL, LABELS) and member.size <= _LONGEST_LABEL:
                sample.labels[ending] = _bytes_at(file, member).decode("utf-8", "replace").strip()
    return samples


def _bytes_at(file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    file.seek(member.offset_data)
    content = file.read(member.size)
    if len(content) < member.size:
        raise tarfile.ReadError(f"{member.name} ends early")
    return content


def _labelled(path: Path, key: str, sample: _Sample) -> tuple[Sample, str]:
    if sample.image is None:
        raise DataError(f"{str(path)!r} has a label and no image under {key!r}; add the image, or remove the label")
    label = sample.labels.get(LABEL, "")
    if not label and label_set_of(sample.labels.get(LABELS, "")) is not None:
        label = sample.labels[LABELS]
    if not label:
        raise DataError(
            f"{str(path)!r} has no label for {sample.image.name!r}; it needs a {key}.{LABEL} with the number or name "
            "of its class"
        )
    return sample.image, label


def label_set_of(text: str) -> tuple[int, ...] | None:
    """Several classes, or none, out of a text such as ``[0, 3]``; None where it is something else."""
    try:
        values = parse_json(text)
    except UnsoundJSONError:
        return None
    return tuple(values) if isinstance(values, list) and all(type(value) is int for value in values) else None
