"""Files of weights as people have them: which of their tensors are the network's, and under which prefix."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sat_vg.backbone_finetuning.models.networks.families.timm_cutting import TRUNK
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, WeightsError
from sat_vg.backbone_finetuning.utils.json_reading import UnsoundJSONError, parse_json
from sat_vg.backbone_finetuning.utils.printable import counted, list_some
from sat_vg.backbone_finetuning.utils.tensor_files import is_safetensors, load_tensors, safetensors_metadata

_MAX_DEPTH = 8  # dictionaries within dictionaries
# What torch.compile, FSDP and activation checkpointing put into names, anywhere in them.
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Roots under which checkpoints keep a state dict, for names that only timm's own conversion understands.
_ROOTS = (
    "state_dict_ema.", "model_ema.", "ema.", "teacher.", "state_dict.", "model_state_dict.", "model.", "weights.",
)  # fmt: skip
_PREFIXES = ("module.", "backbone.", "model.")
# Of two copies of the same network an average is taken first, and a slowly following one last, as their papers do:
# teacher and student (DINO, Caron et al., 2021), encoder_q and encoder_k (MoCo, He et al., 2020).
_AVERAGES = frozenset({"ema", "teacher", "swa", "average", "averaged", "avg"})
_FOLLOWERS = frozenset({"k", "key", "momentum", "target"})


class WeightsFile(NamedTuple):
    """Content of a file of weights."""

    path: Path
    tensors: dict[str, Tensor]
    """By name; nested dictionaries are joined with dots: ``teacher.backbone.conv1.weight``."""
    facts: Mapping[str, Any]
    """Other content of a file of this package (``backbone``, ``class_names``, ``preprocessing``, ``task``)."""


class ChosenTensors(NamedTuple):
    """The part of a file that is the network's, under the network's names; floating-point tensors as float32."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    """Decisions that were made, in words."""


def read_weights(path: Path) -> WeightsFile:
    """Read a file of ``torch.save`` or of safetensors, whatever its name ends in; no code in it is run.

    Published checkpoints of DINO, MAE and DETR hold their command line as an ``argparse.Namespace``: it is left out,
    with all else that is no tensor. Objects of any other class are refused.

    Raises:
        CheckpointError: it cannot be read.
        WeightsError: it holds no named tensors.
    """
    content = load_tensors(path, with_namespace=True)
    values = {_WRAPPERS.sub("", name): value for name, value in _flatten(content, "", set(), _MAX_DEPTH)}
    # Two numbers of 4 bits in a byte, with which torch computes nothing, are read as the integers that they are.
    tensors = {
        name: value.view(torch.uint8) if value.dtype is torch.float4_e2m1fn_x2 else value
        for name, value in values.items()
        if isinstance(value, Tensor)
    }
    if not tensors:
        held = f"a {type(content).__name__}"
        if isinstance(content, Mapping):
            held = list_some([f"{name} ({type(value).__name__})" for name, value in values.items()]) or "nothing"
        raise WeightsError(
            f"weights = {str(path)!r}: the file holds no state dict, but {held}; expected names with tensors, such "
            "as torch.save(network.state_dict(), PATH) writes"
        )
    return WeightsFile(path, tensors, _facts(content, path))


def _flatten(content: Any, prefix: str, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    """Names and values of nested dictionaries; each dictionary once, so that one within itself ends."""
    if not isinstance(content, Mapping) or id(content) in seen or not depth:
        return
    seen.add(id(content))
    for name, value in content.items():
        if not isinstance(name, str):
            continue
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.", seen, depth - 1)
        else:
            yield f"{prefix}{name}", value


def _facts(content: Any, path: Path) -> Mapping[str, Any]:
    if not is_safetensors(path):
        is_own = isinstance(content, Mapping) and str(content.get("format", "")).startswith("sat_vg.")
        return content if is_own else {}
    metadata = safetensors_metadata(path)
    if not {"backbone", "class_names", "preprocessing"} <= set(metadata):
        return {}
    try:
        parsed = {name: parse_json(metadata[name]) for name in ("class_names", "preprocessing")}
    except UnsoundJSONError as error:
        raise CheckpointError(f"{str(path)!r} has metadata that are altered: {error}") from None
    return {**metadata, **parsed}


def choose_tensors(file: WeightsFile, network: nn.Module, needed: frozenset[str]) -> ChosenTensors:
    """The tensors that fit a network best, by the prefix under which most of its names and shapes are found.

    ``needed`` are the names of the network's tensors that decide, without the classifier.

    Raises:
        WeightsError: several parts of the file fit equally well, and nothing tells which is meant.
    """
    own = network.state_dict()
    shapes = {name: own[name].shape for name in needed}
    shapes |= {name.removeprefix(TRUNK): shape for name, shape in shapes.items()}
    fits = _fits(file.tensors, shapes)
    best = max(fits.values(), default=(0, 0))
    in_order = _by_position(file, network, needed) if best[1] < len(needed) else None
    if in_order is not None:
        return in_order
    if 10 * best[1] < len(needed):
        return _under_known_prefixes(file)
    equal = _distinct(sorted((prefix for prefix, fit in fits.items() if fit == best), key=len), file, shapes)
    equal.sort(key=_rank)
    prefix, *rest = equal
    if rest and _rank(rest[0]) == _rank(prefix):
        raise WeightsError(
            f"weights = {str(file.path)!r}: {' and '.join(map(repr, equal))} fit equally well, and they differ. "
            "Write the tensors of the part that is meant into a file of its own, with torch.save"
        )
    return _under(file, prefix, rest)


def _fits(tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, tuple[int, int]]:
    """For each prefix under which a name is found: how many have the shape too, and how many there are."""
    fits: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for name, value in tensors.items():
        starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
        for start in starts:
            shape = shapes.get(name[start:])
            if shape is not None:
                same, found = fits[name[:start]]
                fits[name[:start]] = (same + (value.shape == shape), found + 1)
    return fits


def _distinct(prefixes: list[str], file: WeightsFile, shapes: Mapping[str, torch.Size]) -> list[str]:
    """Prefixes of parts that differ: not the same tensors under two names, nor tensors of the same values."""
    kept: dict[str, dict[str, Tensor]] = {}
    for prefix in prefixes:
        found = _without_prefix(file.tensors, prefix)
        part = {name.removeprefix(TRUNK): value for name, value in found.items() if name in shapes}
        if not any(_are_equal(part, other) for other in kept.values()):
            kept[prefix] = part
    return list(kept)


def _are_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value is other[name] or (value.dtype == other[name].dtype and torch.equal(value, other[name]))
        for name, value in one.items()
    )


def _rank(prefix: str) -> int:
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", prefix)}
    return 0 if words & _AVERAGES else 2 if words & _FOLLOWERS else 1


def _under(file: WeightsFile, prefix: str, rest: list[str]) -> ChosenTensors:
    part = _without_prefix(file.tensors, prefix)
    notes = []
    if rest:
        notes.append(f"taken from {prefix!r} and not from {', '.join(map(repr, rest))}")
    elif prefix and not file.facts:
        notes.append(f"names under {prefix!r}")
    others = len(file.tensors) - len(part)
    if others:
        notes.append(f"{counted(others, 'other tensor')} of the file not used")
    return _as_float32(part, notes)


def _without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _by_position(file: WeightsFile, network: nn.Module, needed: frozenset[str]) -> ChosenTensors | None:
    """Weights of ``nn.Sequential(*network.children())``, where ``0.weight`` is ``conv1.weight``, if they are such."""
    places = {name: str(index) for index, (name, _) in enumerate(network.named_children())}
    own = network.state_dict()
    by_position = {}
    for name in own:
        child, _, inner = name.partition(".")
        by_position[f"{places.get(child, child)}.{inner}"] = name
    fits = _fits(file.tensors, {place: own[name].shape for place, name in by_position.items() if name in needed})
    complete = [prefix for prefix, (_, found) in fits.items() if found == len(needed)]
    if not complete:
        return None
    prefix = min(complete, key=lambda prefix: (-fits[prefix][0], _rank(prefix)))
    part = {by_position.get(name, name): value for name, value in _without_prefix(file.tensors, prefix).items()}
    return _as_float32(part, [f"layers by their position, under {prefix!r}"])


def _under_known_prefixes(file: WeightsFile) -> ChosenTensors:
    """The tensors as their publisher named them, for a conversion by timm or for the message that they do not fit."""
    root = next((root for root in _ROOTS if any(name.startswith(root) for name in file.tensors)), "")
    part = _without_prefix(file.tensors, root)
    while prefix := next((one for one in _PREFIXES if all(name.startswith(one) for name in part)), None):
        part, root = _without_prefix(part, prefix), root + prefix
    return _as_float32(part, [f"names under {root!r}"] if root else [])


def _as_float32(part: dict[str, Tensor], notes: list[str]) -> ChosenTensors:
    kinds = {value.dtype for value in part.values() if value.is_floating_point()} - {torch.float32}
    if kinds:
        notes.append(f"converted from {', '.join(sorted(str(kind).removeprefix('torch.') for kind in kinds))}")
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in part.items()}
    return ChosenTensors(tensors, tuple(notes))
