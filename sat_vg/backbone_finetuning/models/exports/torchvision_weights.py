"""``torchvision``: a plain state dict for ``torchvision.models``."""

import inspect
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from sat_vg.backbone_finetuning.models.exports.contract import Asked, Contract, Format, Reading
from sat_vg.backbone_finetuning.models.exports.snippets import prepare_lines
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.networks.table import new_layers
from sat_vg.backbone_finetuning.models.stages import find_member
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, ConfigError
from sat_vg.backbone_finetuning.utils.preprocessing import RGB
from sat_vg.backbone_finetuning.utils.tensor_files import load_tensors, save_tensors


def write(model: FineTuneModel, asked: Asked, path: Path) -> Contract:
    """Write the weights, with the layers that give the classes where torchvision's network has the same.

    Raises:
        ConfigError: torchvision has no such network, or not with this head.
        WriteError: the file cannot be written.
    """
    _require_known(model)
    can_hold_head = model.row.family.name != "SqueezeNet"
    with_head = can_hold_head if asked.with_head is None else asked.with_head
    if with_head and not can_hold_head:
        raise ConfigError(
            f"--with_head: {model.backbone} has a linear head here and a convolution in torchvision; leave it out, "
            "or use another format"
        )
    head = () if with_head else new_layers(model.network, model.row.family)
    state = model.network.state_dict()
    kept = OrderedDict((name, value.detach().cpu()) for name, value in state.items() if name not in head)
    kept._metadata = getattr(state, "_metadata", {})  # type: ignore[attr-defined]  # MNASNet's version number
    save_tensors(path, kept)
    return _contract(model, with_head)


def _require_known(model: FineTuneModel) -> None:
    if model.backbone not in models.list_models(module=models):
        raise ConfigError(
            f"backbone = {model.backbone!r}: torchvision has no such network; use --format safetensors, onnx or pt2"
        )
    if model.preprocessing.bands != RGB:
        raise ConfigError(
            f"bands = {', '.join(model.preprocessing.bands)}: torchvision's networks take red, green, blue; use "
            "--format safetensors, onnx or pt2"
        )


def _contract(model: FineTuneModel, with_head: bool) -> Contract:
    size = model.preprocessing.image_size
    return Contract(
        format="torchvision",
        part="classifier" if with_head else "vector",
        fixed_size=size if {"image_size", "input_size"} & set(build_arguments(model)) else None,
        smallest=max(model.row.family.smallest_image, 1),
        outputs=("logits",) if with_head else ("vector",),
    )


def build_arguments(model: FineTuneModel) -> dict[str, Any]:
    """What ``torchvision.models.get_model`` has to be told beside the name, so that the weights fit."""
    size = model.preprocessing.image_size
    family = model.row.family.name
    if family == "ViT":
        return {"image_size": size}
    if family == "MaxViT":
        return {"input_size": (size, size)}
    if model.row.family.auxiliary_heads:
        has_heads = all(
            find_member(model.network, head.module) is not None for head in model.row.family.auxiliary_heads
        )
        return {"aux_logits": has_heads, "init_weights": False}
    return {}


def read(path: Path, model: FineTuneModel) -> Reading:
    """Load the file into torchvision's own network, strictly but for the head.

    Raises:
        CheckpointError: the file is missing, damaged, or does not fit.
    """
    _require_known(model)
    state = load_tensors(path)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{str(path)!r} is no state dict: export it again")
    head = set(new_layers(model.network, model.row.family))
    expected = set(model.network.state_dict()) - head
    with_head = head <= set(state)
    differing = expected ^ (set(state) - head)
    if differing:
        raise CheckpointError(
            f"{str(path)!r} is no {model.backbone}: {len(differing)} names differ, {min(differing)!r} first"
        )
    arguments = {"num_classes": model.num_classes, **build_arguments(model)}
    with torch.random.fork_rng(devices=[]):
        network: nn.Module = models.get_model(model.backbone, weights=None, **arguments).eval()
    try:
        network.load_state_dict(state, strict=with_head)  # without the head only its own names are missing, see above
    except RuntimeError as error:
        raise CheckpointError(f"{str(path)!r} does not fit {model.backbone}: {error}") from error
    if not with_head:
        _take_head_off(network, model)
    contract = _contract(model, with_head)

    def run(images: Tensor) -> Mapping[str, Tensor]:
        return {contract.outputs[0]: network(images)}

    return Reading(contract, run)


def _take_head_off(network: nn.Module, model: FineTuneModel) -> None:
    """Make torchvision's network give the vector that its last linear layer would see."""
    if model.row.family.name == "SqueezeNet":
        network.classifier = nn.AdaptiveAvgPool2d(1)
        return
    parent, _, leaf = model.row.family.classifier.rpartition(".")
    setattr(network.get_submodule(parent), leaf, nn.Identity())


def usage(model: FineTuneModel, contract: Contract, name: str) -> str:
    """How the file is used."""
    shown = {**build_arguments(model)}
    known = inspect.signature(models.get_model).parameters  # name and config; the rest goes to the network
    assert not set(shown) & set(known)
    arguments = "".join(f", {key}={value!r}" for key, value in shown.items())
    without_head = contract.part != "classifier"
    strict, removal = (", strict=False", f"{_head_removal(model)}\n") if without_head else ("", "")
    return (
        "import torch\nimport torchvision\nfrom torchvision.transforms import v2\n\n"
        f"network = torchvision.models.{model.backbone}(num_classes={model.num_classes}{arguments})\n"
        f"network.load_state_dict(torch.load({name!r}, weights_only=True){strict})\n{removal}network.eval()\n"
        f"{prepare_lines(model.preprocessing, contract)}\n"
        f"# network(prepare(image)[None]) gives the {contract.outputs[0]}"
    )


def _head_removal(model: FineTuneModel) -> str:
    """The line of Python that does what ``_take_head_off`` does."""
    if model.row.family.name == "SqueezeNet":
        return "network.classifier = torch.nn.AdaptiveAvgPool2d(1)  # the classifier is not in the file"
    parent, _, leaf = model.row.family.classifier.rpartition(".")
    place = f"{parent}[{leaf}]" if leaf.isdigit() else model.row.family.classifier
    return f"network.{place} = torch.nn.Identity()  # the classifier is not in the file"


FORMAT = Format(
    endings=(".pth", ".pt"), options=frozenset({"with_head"}), write=write, read=read, usage=usage, packages=()
)
