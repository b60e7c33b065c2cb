"""``torchvision``: a plain state dict for ``torchvision.models``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from sat_vg.backbone_finetuning.models.artifact import on_cpu
from sat_vg.backbone_finetuning.models.exports.contract import (
    Contract,
    ExportOptions,
    Format,
    LoadedExport,
    put_weights,
    weights_contract,
)
from sat_vg.backbone_finetuning.models.exports.model_card import prepare_lines
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.networks.families.convolutional import SQUEEZENET
from sat_vg.backbone_finetuning.models.networks.table import new_layers
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, ConfigError
from sat_vg.backbone_finetuning.utils.preprocessing import RGB
from sat_vg.backbone_finetuning.utils.tensor_files import load_tensors, save_tensors


def write(model: FineTuneModel, options: ExportOptions, path: Path) -> Contract:
    """Write the weights, with the layers that give the classes where torchvision's network has the same."""
    _require_known(model)
    can_hold_head = model.row.family is not SQUEEZENET
    with_head = can_hold_head if options.with_head is None else options.with_head
    if with_head and not can_hold_head:
        raise ConfigError(
            f"--with_head: {model.backbone} has a linear head here and a convolution in torchvision; leave it out, "
            "or use another format"
        )
    state = on_cpu(model.network.state_dict())
    for name in () if with_head else new_layers(model.network, model.row.family):
        del state[name]
    save_tensors(path, state)
    return weights_contract(model, "torchvision", "classifier" if with_head else "vector")


def _require_known(model: FineTuneModel) -> None:
    others = "use --format safetensors, onnx or pt2"
    if model.backbone not in models.list_models(module=models):
        raise ConfigError(f"backbone = {model.backbone!r}: torchvision has no such network; {others}")
    if model.preprocessing.bands != RGB:
        bands = ", ".join(model.preprocessing.bands)
        raise ConfigError(f"bands = {bands}: torchvision's networks take red, green, blue; {others}")
    if model.row.pool != "default":
        raise ConfigError(
            f"pool = {model.row.pool!r}: torchvision's {model.backbone} classifies by its class token; {others}"
        )


def _build_arguments(model: FineTuneModel) -> dict[str, Any]:
    """What ``torchvision.models.get_model`` needs beside the name, so that the weights fit."""
    options = model.row.family.builder_options(model.preprocessing.image_size)
    return {**options, "init_weights": False} if "init_weights" in options else options


def read(path: Path, model: FineTuneModel) -> LoadedExport:
    """Load the file into torchvision's own network, strictly but for the head."""
    _require_known(model)
    state = load_tensors(path)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{str(path)!r} is no state dict: export it again")
    head = set(new_layers(model.network, model.row.family))
    with_head = head <= set(state)
    differing = (set(model.network.state_dict()) - head) ^ (set(state) - head)
    if differing:
        raise CheckpointError(
            f"{str(path)!r} is no {model.backbone}: {len(differing)} names differ, {min(differing)!r} first"
        )
    with torch.random.fork_rng(devices=[]):
        network: nn.Module = models.get_model(
            model.backbone, weights=None, num_classes=model.num_classes, **_build_arguments(model)
        ).eval()
    # Without the head only its own names are missing, see above.
    put_weights(network, state, path, model.backbone, strict=with_head)
    if not with_head:
        network.set_submodule(*_without_head(model))
    contract = weights_contract(model, "torchvision", "classifier" if with_head else "vector")
    return LoadedExport(contract, lambda images: {contract.outputs[0]: network(images)})


def _without_head(model: FineTuneModel) -> tuple[str, nn.Module]:
    """Which layer of torchvision's network is replaced by which, so that it gives the pooled vector."""
    if model.row.family is SQUEEZENET:
        return "classifier", nn.AdaptiveAvgPool2d(1)
    return model.row.family.classifier, nn.Identity()


def usage(model: FineTuneModel, contract: Contract, name: str) -> str:
    """How the file is used."""
    arguments = "".join(f", {key}={value!r}" for key, value in _build_arguments(model).items())
    strict, removal = "", ""
    if contract.part != "classifier":
        place, layer = _without_head(model)
        strict = ", strict=False"
        removal = f"network.set_submodule({place!r}, torch.nn.{layer})  # the classifier is not in the file\n"
    return (
        "import torch\nimport torchvision\nfrom torchvision.transforms import v2\n\n"
        f"network = torchvision.models.{model.backbone}(num_classes={model.num_classes}{arguments})\n"
        f"network.load_state_dict(torch.load({name!r}, weights_only=True){strict})\n{removal}network.eval()\n"
        f"{prepare_lines(model.preprocessing, contract)}\n"
        f"# network(prepare(image)[None]) gives the {contract.outputs[0]}"
    )


FORMAT = Format(endings=(".pth", ".pt"), options=frozenset({"with_head"}), write=write, read=read, usage=usage)
