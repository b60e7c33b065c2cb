"""What an exported file takes and gives, what a format has to offer, and how far a file is from its model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_leaves

from sat_vg.backbone_finetuning.models.exports import FORMATS
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.errors import CheckpointError
from sat_vg.backbone_finetuning.utils.json_reading import UnsoundJSONError, parse_json
from sat_vg.backbone_finetuning.utils.machine_memory import machine_memory
from sat_vg.backbone_finetuning.utils.terminal import say

OUTPUT_KINDS = {
    "classifier": "[B, classes], the logits",
    "extractor": "[B, channels, h, w], the feature maps by stage",
    "vector": "[B, D], what the classifier saw",
}
_LAYERS_AT_A_TIME = 2  # whose inputs and outputs are in memory, with what convolutions unfold
# What torch's tracer and converters raise on a network that they cannot take.
REFUSALS = (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError, LookupError, AttributeError)


class ExportFailedError(Exception):
    """An export that could not be made, or does not compute what the model does; the message says why."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What an export is to be like."""

    part: str = "classifier"  # or extractor; of formats that hold a computation
    with_normalisation: bool = False  # the file takes uint8 images and normalises them itself
    with_head: bool | None = None  # whether a file of weights holds the classifier too; None: where it can
    fixed_size: int | None = None  # the only height and width that it takes, in pixels; None: any


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What an exported file takes and gives; files that hold a computation carry it with them."""

    format: str
    part: str  # classifier, extractor or vector
    dtype: str = "float32"  # of the images: float32, normalised, or uint8
    fixed_size: int | None = None  # the only height and width, in pixels; None: any from ``smallest`` on
    smallest: int = 1
    multiple: int = 1  # of height and width
    outputs: tuple[str, ...] = ("logits",)

    @property
    def sizes(self) -> str:
        """The sizes of images that it takes, in words."""
        if self.fixed_size is not None:
            return f"{self.fixed_size} × {self.fixed_size} pixels, and no other size"
        multiples = "" if self.multiple == 1 else f", multiples of {self.multiple}"
        smallest = "" if self.smallest == 1 else f" from {self.smallest} pixels on"
        return f"any height and width{smallest}{multiples}"


class LoadedExport(NamedTuple):
    """An exported file, read back: images as the contract says → outputs by name."""

    contract: Contract
    run: Callable[[Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format of files."""

    endings: tuple[str, ...]
    """Of file names, the usual one first."""
    options: frozenset[str] = frozenset()
    """Names of the fields of ``ExportOptions`` that it uses."""
    write: Callable[[FineTuneModel, ExportOptions, Path], Contract]
    """Raises ``ExportFailedError`` where the model cannot be written so, ``ConfigError`` where it never can."""
    read: Callable[[Path, FineTuneModel], LoadedExport]
    """Raises ``CheckpointError`` where the file is damaged or foreign."""
    usage: Callable[[FineTuneModel, Contract, str], str]
    """``(model, contract, file name) ->`` lines of Python that use the file."""
    packages: tuple[str, ...] = ()
    """Whose versions matter beside torch's."""
    is_own: Callable[[Path], bool] = lambda path: True
    """Whether a file of one of these endings is of this format."""
    require_own: Callable[[Path, FineTuneModel], None] = lambda path, model: None
    """Run before a file that was not written just now is read. Raises ``CheckpointError`` or ``ExportFailedError``
    where reading it could run foreign code."""


def load_format(name: str) -> Format:
    """The format of that name; its module is imported only now."""
    found: Format = import_module(f"{__package__}.{FORMATS[name]}").FORMAT
    return found


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


def weights_contract(model: FineTuneModel, format_name: str, part: str = "classifier") -> Contract:
    """That of a file of weights; it takes one size alone where the network itself does."""
    size, family = model.preprocessing.image_size, model.row.family
    is_built_for_size = not {"image_size", "input_size"}.isdisjoint(family.builder_options(size))
    return Contract(
        format=format_name,
        part=part,
        fixed_size=size if is_built_for_size or family.fixed_image_size(model.network) else None,
        smallest=family.smallest_image,
        outputs=("logits",) if part == "classifier" else ("vector",),
    )


def put_weights(
    network: nn.Module, state: Mapping[str, Tensor], path: Path, backbone: str, strict: bool = True
) -> list[str]:
    """Load the weights of a file into a network; gives the names that one of the two has and the other not.

    Raises:
        CheckpointError: they do not fit.
    """
    try:
        missing, unexpected = network.load_state_dict(state, strict=strict)
    except RuntimeError as error:
        raise CheckpointError(f"{str(path)!r} does not fit {backbone}: {error}") from error
    return [*missing, *unexpected]


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@dataclass(frozen=True)
class Difference:
    """Largest differences between the file's and the model's outputs on one batch of random images."""

    batch: int
    height: int
    width: int
    absolute: float
    relative: float  # as a share of the largest number of its output
    deviation: float  # absolute where an output stays within ±1, else relative; the tolerance is for this one


def compare(model: FineTuneModel, loaded: LoadedExport) -> list[Difference]:
    """Run the file and the model on random images of two batch sizes and, where it takes them, two sizes.

    A batch for which there is too little memory is left out, with a line.

    Raises:
        ExportFailedError: the file does not run, or gives other outputs.
    """
    contract, run = loaded
    reference = _reference(model, contract)
    generator = torch.Generator().manual_seed(0)
    found: list[Difference] = []
    bytes_per_pixel = 0.0  # of an image
    for batch, height, width in _trial_shapes(contract, model.preprocessing.image_size):
        needed, available = bytes_per_pixel * batch * height * width, machine_memory().available
        if needed > available:
            say(
                f"not compared on {batch} × {height} × {width}, which takes about {needed / 2**30:.1f} GiB: "
                f"{available / 2**30:.1f} GiB are free"
            )
            continue
        shape = (batch, model.in_channels, height, width)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        normalised = model.preprocessing.normalise(images)
        with torch.no_grad():
            with _largest_layer() as layer:
                expected = reference(normalised)
            bytes_per_pixel = _LAYERS_AT_A_TIME * layer[0] / (batch * height * width)
            try:
                given = run(images if contract.dtype == "uint8" else normalised)
            except REFUSALS as error:
                raise ExportFailedError(
                    f"it does not run on {batch} × {height} × {width}: {first_line(error)}"
                ) from error
        found.append(Difference(batch, height, width, *_largest(expected, given)))
    return found


@contextmanager
def _largest_layer() -> Iterator[list[int]]:
    """The bytes of the largest input and output of a layer that runs within the context."""
    largest = [0]

    def note(module: nn.Module, given: Any, output: Any) -> None:
        tensors = [leaf for leaf in tree_leaves((given, output)) if isinstance(leaf, Tensor)]
        largest[0] = max(largest[0], sum(tensor.nbytes for tensor in tensors))

    hook = register_module_forward_hook(note)
    try:
        yield largest
    finally:
        hook.remove()


def _trial_shapes(contract: Contract, trained: int) -> Sequence[tuple[int, int, int]]:
    """Batch, height and width of the trials."""
    if contract.fixed_size is not None:
        return [(batch, contract.fixed_size, contract.fixed_size) for batch in (1, 3)]
    unit = contract.multiple
    first = math.ceil(max(trained, contract.smallest) / unit) * unit
    down, across = (37, 22) if unit == 1 else (2 * unit, unit)  # odd sizes are where padding and rounding show
    return [(1, first, first), (3, first, first), (2, first + down, first + across)]


def _reference(model: FineTuneModel, contract: Contract) -> Callable[[Tensor], Mapping[str, Tensor]]:
    if contract.part == "classifier":
        return lambda images: {"logits": model(images)}
    if contract.part == "vector":
        return lambda images: {"vector": model.forward_pooled(images)}
    extractor = model.get_feature_extractor()
    return lambda images: {name: value for name, value in extractor(images).items() if name in contract.outputs}


def _largest(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> tuple[float, float, float]:
    """The largest absolute and relative difference, and the largest deviation; see ``Difference``."""
    theirs, ours = ([(name, list(value.shape)) for name, value in one.items()] for one in (given, expected))
    if theirs != ours:
        raise ExportFailedError(f"it gives {theirs} and the model {ours}")
    absolute = relative = deviation = 0.0
    for name, right in expected.items():
        difference = (given[name].double() - right.double()).abs().max().item()
        if math.isnan(difference):
            difference = math.inf
        scale = right.double().abs().max().item()
        absolute = max(absolute, difference)
        relative = max(relative, difference / scale if scale else math.inf if difference else 0.0)
        deviation = max(deviation, difference / max(1.0, scale))
    return absolute, relative, deviation
