"""What an exported file takes and gives, and what a format has to offer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from sat_vg.backbone_finetuning.models.exports import FORMATS
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.errors import CheckpointError

PARTS_GIVEN = {
    "classifier": "[B, classes], the logits",
    "extractor": "[B, channels, h, w], the feature maps by stage",
    "vector": "[B, D], what the classifier saw",
}


class ExportFailedError(Exception):
    """An export that could not be made, or does not compute what the model does; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What an export is to be like.

    Attributes:
        part: ``classifier`` or ``extractor``; of formats that hold a computation.
        with_normalisation: the file takes uint8 images and normalises them itself.
        with_head: a file of weights holds the classifier too; None: where it can.
        fixed_size: the only height and width that it takes, in pixels; None: any.
    """

    part: str = "classifier"
    with_normalisation: bool = False
    with_head: bool | None = None
    fixed_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What an exported file takes and gives; files that hold a computation carry it with them.

    Attributes:
        format: name of the format.
        part: ``classifier``, ``extractor`` or ``vector``.
        dtype: of the images: ``float32``, normalised, or ``uint8``.
        fixed_size: the only height and width, in pixels; None: any from ``smallest`` on.
        smallest: fewest pixels a side.
        multiple: height and width must be multiples of this.
        outputs: names, in order.
    """

    format: str
    part: str
    dtype: str = "float32"
    fixed_size: int | None = None
    smallest: int = 1
    multiple: int = 1
    outputs: tuple[str, ...] = ("logits",)

    @property
    def sizes(self) -> str:
        """The sizes of images that it takes, in words."""
        if self.fixed_size is not None:
            return f"{self.fixed_size} × {self.fixed_size} pixels, and no other size"
        multiples = "" if self.multiple == 1 else f", multiples of {self.multiple}"
        smallest = "" if self.smallest == 1 else f" from {self.smallest} pixels on"
        return f"any height and width{smallest}{multiples}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Any) -> Contract:
        """Restore what ``to_dict`` gave.

        Raises:
            CheckpointError: the values are not such; the file that they came from is foreign or altered.
        """
        try:
            restored = cls(**{**values, "outputs": tuple(values["outputs"])})
            numbers = (restored.smallest, restored.multiple, restored.fixed_size or 1)
            sound = (
                restored.part in PARTS_GIVEN
                and restored.dtype in ("float32", "uint8")
                and all(isinstance(number, int) and 1 <= number <= 4096 for number in numbers)
                and all(isinstance(name, str) for name in restored.outputs)
            )
        except (TypeError, KeyError):
            sound = False
        if not sound:
            raise CheckpointError("the file's own description is not sound: it is altered; export it again")
        return restored


@dataclass(frozen=True)
class Reading:
    """An exported file, read back.

    Attributes:
        contract: what it takes and gives.
        run: images as the contract says → its outputs by name.
    """

    contract: Contract
    run: Callable[[Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format of files.

    Attributes:
        endings: of file names, the first one is the usual one.
        options: what it knows beside the model: names of fields of ``Asked``.
        write: ``(model, asked, path) ->`` contract. Raises ``ExportFailedError`` where the model cannot be written
            so, ``ConfigError`` where it never can.
        read: ``(path, model) ->`` the file read back. Raises ``CheckpointError`` where it is damaged or foreign.
        usage: ``(model, contract, file name) ->`` lines of Python that use the file.
        packages: whose versions matter beside torch's.
        why_fixed: ``model ->`` why it can be written for one size only, or None.
    """

    endings: tuple[str, ...]
    options: frozenset[str]
    write: Callable[[FineTuneModel, Asked, Path], Contract]
    read: Callable[[Path, FineTuneModel], Reading]
    usage: Callable[[FineTuneModel, Contract, str], str]
    packages: tuple[str, ...] = ()
    why_fixed: Callable[[FineTuneModel], str | None] = lambda model: None


def load_format(name: str) -> Format:
    """The format of that name; its module is imported only now."""
    module = import_module(f"{__package__}.{FORMATS[name]}")
    found: Format = module.FORMAT
    return found
