"""What an exported file takes and gives, and what a format has to offer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

from torch import Tensor, nn

from sat_vg.backbone_finetuning.models.exports import FORMATS
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.errors import CheckpointError
from sat_vg.backbone_finetuning.utils.json_reading import UnsoundJSONError, parse_json

OUTPUT_KINDS = {
    "classifier": "[B, classes], the logits",
    "extractor": "[B, channels, h, w], the feature maps by stage",
    "vector": "[B, D], what the classifier saw",
}


class ExportFailedError(Exception):
    """An export that could not be made, or does not compute what the model does; the message says why."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What an export is to be like.

    Attributes:
        part: ``classifier`` or ``extractor``; of formats that hold a computation.
        with_normalisation: whether the file takes uint8 images and normalises them itself.
        with_head: whether a file of weights holds the classifier too; None: where it can.
        fixed_size: only height and width that it takes, in pixels; None: any.
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
        dtype: number type of the images: ``float32``, normalised, or ``uint8``.
        fixed_size: only height and width, in pixels; None: any from ``smallest`` on.
        smallest: fewest pixels a side.
        multiple: number that height and width must be multiples of.
        outputs: names of the outputs, in order.
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


def describe(model: FineTuneModel, contract: Contract) -> str:
    """The description in a file that holds a computation, as JSON."""
    return json.dumps(
        {
            "contract": asdict(contract),
            "backbone": model.backbone,
            "class_names": list(model.class_names),
            "temperature": model.temperature,
            "task": model.task,
            "pool": model.row.pool,
            "preprocessing": model.preprocessing.to_dict(),
        }
    )


def read_description(path: Path, text: str | bytes | None) -> Contract:
    """The contract in the description that was found in a file.

    Raises:
        CheckpointError: there is no sound description; the file is foreign or altered.
    """
    try:
        values = parse_json(text or "null")["contract"]
        contract = Contract(**{**values, "outputs": tuple(values["outputs"])})
        numbers = (contract.smallest, contract.multiple, contract.fixed_size or 1)
        is_sound = (
            contract.part in OUTPUT_KINDS
            and contract.dtype in ("float32", "uint8")
            and all(isinstance(number, int) and 1 <= number <= 4096 for number in numbers)
            and all(isinstance(name, str) for name in contract.outputs)
        )
    except (UnsoundJSONError, TypeError, KeyError):
        is_sound = False
    if not is_sound:
        raise CheckpointError(
            f"{str(path)!r} is no export of sat_vg: it has no description of its own that is sound; export it again"
        )
    return contract


def trained_size_only(model: FineTuneModel) -> int | None:
    """The size of the training in pixels, where the network itself takes no other; else None."""
    size, family = model.preprocessing.image_size, model.row.family
    is_built_for_size = not {"image_size", "input_size"}.isdisjoint(family.builder_options(size))
    return size if is_built_for_size or family.fixed_image_size(model.network) else None


def put_weights(
    network: nn.Module, state: Mapping[str, Tensor], path: Path, backbone: str, strict: bool = True
) -> list[str]:
    """Load the weights of a file into a network.

    Returns:
        Names that one of the two has and the other not; empty where it is ``strict``.

    Raises:
        CheckpointError: they do not fit.
    """
    try:
        missing, unexpected = network.load_state_dict(state, strict=strict)
    except RuntimeError as error:
        raise CheckpointError(f"{str(path)!r} does not fit {backbone}: {error}") from error
    return [*missing, *unexpected]


@dataclass(frozen=True)
class LoadedExport:
    """An exported file, read back.

    Attributes:
        contract: description of inputs and outputs.
        run: function from images as the contract says to outputs by name.
    """

    contract: Contract
    run: Callable[[Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format of files.

    Attributes:
        endings: endings of file names, the usual one first.
        options: names of the fields of ``ExportOptions`` that it uses.
        write: ``(model, options, path) ->`` contract. Raises ``ExportFailedError`` where the model cannot be written
            so, ``ConfigError`` where it never can.
        read: ``(path, model) ->`` the file read back. Raises ``CheckpointError`` where it is damaged or foreign.
        usage: ``(model, contract, file name) ->`` lines of Python that use the file.
        packages: names of packages whose versions matter beside torch's.
        why_fixed: ``model ->`` why it can be written for one size only, or None.
        is_own: ``path ->`` whether a file of one of these endings is of this format.
        require_own: ``(path, model) ->`` nothing; run before a file that was not written just now is read. Raises
            ``CheckpointError`` or ``ExportFailedError`` where reading it could run foreign code.
    """

    endings: tuple[str, ...]
    options: frozenset[str] = frozenset()
    write: Callable[[FineTuneModel, ExportOptions, Path], Contract]
    read: Callable[[Path, FineTuneModel], LoadedExport]
    usage: Callable[[FineTuneModel, Contract, str], str]
    packages: tuple[str, ...] = ()
    why_fixed: Callable[[FineTuneModel], str | None] = lambda model: None
    is_own: Callable[[Path], bool] = lambda path: True
    require_own: Callable[[Path, FineTuneModel], None] = lambda path, model: None


def load_format(name: str) -> Format:
    """The format of that name; its module is imported only now."""
    module = import_module(f"{__package__}.{FORMATS[name]}")
    found: Format = module.FORMAT
    return found
