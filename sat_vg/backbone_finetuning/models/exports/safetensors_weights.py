"""``safetensors``: the weights under torchvision's names, in a format that can hold nothing else."""

import copy
from pathlib import Path

from sat_vg.backbone_finetuning.models.artifact import safetensors_metadata_of
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
from sat_vg.backbone_finetuning.utils.errors import CheckpointError
from sat_vg.backbone_finetuning.utils.preprocessing import RGB
from sat_vg.backbone_finetuning.utils.tensor_files import is_safetensors, load_tensors, safetensors_metadata


def write(model: FineTuneModel, options: ExportOptions, path: Path) -> Contract:
    """Write all weights, the classifier's included; backbone, classes and preprocessing lie in the metadata."""
    model.save_safetensors(path)
    return weights_contract(model, "safetensors")


def read(path: Path, model: FineTuneModel) -> LoadedExport:
    """Load the file into a copy of the model."""
    state = load_tensors(path)
    metadata = safetensors_metadata(path) if is_safetensors(path) else {}
    facts = safetensors_metadata_of(model)
    facts = {name: facts[name] for name in ("backbone", "class_names", "preprocessing")}  # older files hold no more
    differing = [name for name, value in facts.items() if metadata.get(name) != value]
    if differing:
        raise CheckpointError(
            f"{str(path)!r} has other {', '.join(differing)} than the checkpoint: it is of another model"
        )
    restored = copy.deepcopy(model)
    put_weights(restored.network, state, path, model.backbone)
    return LoadedExport(weights_contract(model, "safetensors"), lambda images: {"logits": restored(images)})


def usage(model: FineTuneModel, contract: Contract, name: str) -> str:
    """How the file is used."""
    pixels = model.preprocessing
    pool = "" if model.row.pool == "default" else f", pool={model.row.pool!r}"
    bands = "" if pixels.bands == RGB else f", bands={pixels.bands!r}"
    return (
        "import torch\nfrom safetensors.torch import load_file\nfrom torchvision.transforms import v2\n\n"
        "from sat_vg.backbone_finetuning import FineTuneModel\n\n"
        f"model = FineTuneModel({model.backbone!r}, {model.num_classes}, pretrained=False, "
        f"image_size={pixels.image_size}{bands}{pool})\n"
        f"model.network.load_state_dict(load_file({name!r}))  # under torchvision's names, the classifier included\n"
        "model.eval()\n"
        f"{prepare_lines(pixels, contract)}\n"
        "# model(prepare(image)[None]) gives the logits"
    )


FORMAT = Format(endings=(".safetensors",), write=write, read=read, usage=usage)
