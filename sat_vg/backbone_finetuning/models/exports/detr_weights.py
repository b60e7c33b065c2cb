"""``detr``: weights under the names of DETR (Carion et al., 2020), which TransVG (Deng et al., 2021) reads too."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torchvision import models
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops.misc import FrozenBatchNorm2d

from sat_vg.backbone_finetuning.models.adapters.detr import (
    DETR_PREFIX,
    export_detr_state_dict,
    is_torchvisions_resnet,
    torchvision_name,
)
from sat_vg.backbone_finetuning.models.exports.contract import (
    Contract,
    ExportOptions,
    Format,
    LoadedExport,
    put_weights,
)
from sat_vg.backbone_finetuning.models.exports.model_card import prepare_lines
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, ConfigError
from sat_vg.backbone_finetuning.utils.preprocessing import RGB
from sat_vg.backbone_finetuning.utils.tensor_files import load_tensors

_LAYERS = ("layer1", "layer2", "layer3", "layer4")
_CONTRACT = Contract(format="detr", part="extractor", outputs=_LAYERS)


def write(model: FineTuneModel, options: ExportOptions, path: Path) -> Contract:
    """Write ``{"model": {"backbone.0.body.…": …}}``."""
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
    return _CONTRACT


def is_own(path: Path) -> bool:
    """Whether the file holds a dictionary under ``model``."""
    content = load_tensors(path)
    return isinstance(content, Mapping) and isinstance(content.get("model"), Mapping)


def read(path: Path, model: FineTuneModel) -> LoadedExport:
    """Load the file into a backbone that is built as DETR builds its own."""
    content = load_tensors(path)
    state = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(str(name).startswith(DETR_PREFIX) for name in state):
        raise CheckpointError(f"{str(path)!r} holds no {DETR_PREFIX}…: it is no backbone of DETR; export it again")
    if not is_torchvisions_resnet(model.backbone, model.network.state_dict()):
        raise CheckpointError(f"{str(path)!r} holds a ResNet; the checkpoint's backbone is {model.backbone}")
    with torch.random.fork_rng(devices=[]):
        network = models.get_model(torchvision_name(model.backbone), weights=None, norm_layer=FrozenBatchNorm2d)
    weights = {name.removeprefix(DETR_PREFIX): value for name, value in state.items()}
    differing = put_weights(network.eval(), weights, path, model.backbone, strict=False)
    wrong = [name for name in differing if not name.startswith("fc.")]
    if wrong:
        raise CheckpointError(
            f"{str(path)!r} does not fit {model.backbone}: {len(wrong)} {'name' if len(wrong) == 1 else 'names'} "
            f"differ, {wrong[0]!r} first"
        )
    return LoadedExport(_CONTRACT, IntermediateLayerGetter(network, {name: name for name in _LAYERS}))


def usage(model: FineTuneModel, contract: Contract, name: str) -> str:
    """How the file is used."""
    layers = ", ".join(repr(layer) for layer in _LAYERS)
    builder = torchvision_name(model.backbone)
    return (
        "import torch\nimport torchvision\nfrom torchvision.models._utils import IntermediateLayerGetter\n"
        "from torchvision.transforms import v2\n\n"
        f'weights = torch.load({name!r}, weights_only=True)["model"]\n'
        f"# detr.load_state_dict(weights, strict=False), of a DETR or TransVG built with {builder}; or by itself:\n"
        f"network = torchvision.models.{builder}(norm_layer=torchvision.ops.misc.FrozenBatchNorm2d).eval()\n"
        f"own = {{key.removeprefix({DETR_PREFIX!r}): value for key, value in weights.items()}}\n"
        "network.load_state_dict(own, strict=False)  # all but the classifier\n"
        f"body = IntermediateLayerGetter(network, {{layer: layer for layer in ({layers})}})\n"
        f"{prepare_lines(model.preprocessing, contract)}\n"
        "# body(prepare(image)[None]) gives the maps by layer"
    )


FORMAT = Format(endings=(".pth", ".pt"), write=write, read=read, usage=usage, is_own=is_own)
