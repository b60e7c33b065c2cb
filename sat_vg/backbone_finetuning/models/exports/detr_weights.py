"""``detr``: weights under the names of DETR (Carion et al., 2020), which TransVG (Deng et al., 2021) reads too."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torchvision import models
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops.misc import FrozenBatchNorm2d

from sat_vg.backbone_finetuning.models.adapters.detr import (
    export_detr_state_dict,
    is_torchvisions_resnet,
    torchvision_name,
)
from sat_vg.backbone_finetuning.models.exports.contract import Asked, Contract, Format, Reading
from sat_vg.backbone_finetuning.models.exports.snippets import prepare_lines
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, ConfigError
from sat_vg.backbone_finetuning.utils.preprocessing import RGB
from sat_vg.backbone_finetuning.utils.tensor_files import load_tensors

PREFIX = "backbone.0.body."
_LAYERS = ("layer1", "layer2", "layer3", "layer4")


def write(model: FineTuneModel, asked: Asked, path: Path) -> Contract:
    """Write ``{"model": {"backbone.0.body.…": …}}``.

    Raises:
        ConfigError: the backbone is no ResNet, or its images are not RGB, so nothing of it would be loaded.
        WriteError: the file cannot be written.
    """
    if model.preprocessing.bands != RGB:
        raise ConfigError(
            f"bands = {', '.join(model.preprocessing.bands)}: DETR's backbone takes red, green, blue; put this one "
            "in with sat_vg.backbone_finetuning.models.adapters.as_detr"
        )
    if not is_torchvisions_resnet(model.backbone, model.network.state_dict()):
        raise ConfigError(
            f"backbone = {model.backbone!r}: DETR's backbone is a ResNet (or ResNeXt) of torchvision's, built by "
            "that name, and would load nothing of this one. Fine-tune one such as resnet50, or put this one in with "
            "sat_vg.backbone_finetuning.models.adapters.as_detr"
        )
    export_detr_state_dict(model.get_feature_extractor(), path)
    return _contract()


def _contract() -> Contract:
    return Contract(format="detr", part="extractor", outputs=_LAYERS)


def read(path: Path, model: FineTuneModel) -> Reading:
    """Load the file into a backbone that is built as DETR builds its own.

    Raises:
        CheckpointError: the file is missing, damaged, or does not fit.
    """
    content = load_tensors(path)
    state = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(str(name).startswith(PREFIX) for name in state):
        raise CheckpointError(f"{str(path)!r} holds no {PREFIX}…: it is no backbone of DETR; export it again")
    if not is_torchvisions_resnet(model.backbone, model.network.state_dict()):
        raise CheckpointError(f"{str(path)!r} holds a ResNet; the checkpoint's backbone is {model.backbone}")
    with torch.random.fork_rng(devices=[]):
        network = models.get_model(
            torchvision_name(model.backbone), weights=None, norm_layer=FrozenBatchNorm2d
        ).eval()
    try:
        missing, unexpected = network.load_state_dict(
            {name.removeprefix(PREFIX): value for name, value in state.items()}, strict=False
        )
    except RuntimeError as error:
        raise CheckpointError(f"{str(path)!r} does not fit {model.backbone}: {error}") from error
    wrong = [name for name in (*missing, *unexpected) if not name.startswith("fc.")]
    if wrong:
        raise CheckpointError(
            f"{str(path)!r} does not fit {model.backbone}: {len(wrong)} names differ, {wrong[0]!r} first"
        )
    body = IntermediateLayerGetter(network, {name: name for name in _LAYERS})

    def run(images: Tensor) -> Mapping[str, Tensor]:
        maps: Mapping[str, Tensor] = body(images)
        return maps

    return Reading(_contract(), run)


def usage(model: FineTuneModel, contract: Contract, name: str) -> str:
    """How the file is used."""
    layers = ", ".join(repr(layer) for layer in _LAYERS)
    shown = torchvision_name(model.backbone)
    return (
        "import torch\nimport torchvision\nfrom torchvision.models._utils import IntermediateLayerGetter\n"
        "from torchvision.transforms import v2\n\n"
        f'weights = torch.load({name!r}, weights_only=True)["model"]\n'
        f"# detr.load_state_dict(weights, strict=False), of a DETR or TransVG built with {shown}; or by itself:\n"
        f"network = torchvision.models.{shown}(norm_layer=torchvision.ops.misc.FrozenBatchNorm2d).eval()\n"
        f"own = {{key.removeprefix({PREFIX!r}): value for key, value in weights.items()}}\n"
        "network.load_state_dict(own, strict=False)  # all but the classifier\n"
        f"body = IntermediateLayerGetter(network, {{layer: layer for layer in ({layers})}})\n"
        f"{prepare_lines(model.preprocessing, contract)}\n"
        "# body(prepare(image)[None]) gives the maps by layer"
    )


FORMAT = Format(endings=(".pth", ".pt"), options=frozenset(), write=write, read=read, usage=usage)
