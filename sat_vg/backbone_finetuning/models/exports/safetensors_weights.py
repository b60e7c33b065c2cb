"""``safetensors``: the weights under torchvision's names, in a format that can hold nothing else."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
from torch import Tensor

from sat_vg.backbone_finetuning.models.exports.contract import Asked, Contract, Format, Reading
from sat_vg.backbone_finetuning.models.exports.snippets import prepare_lines
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.errors import CheckpointError
from sat_vg.backbone_finetuning.utils.preprocessing import RGB
from sat_vg.backbone_finetuning.utils.tensor_files import load_tensors


def write(model: FineTuneModel, asked: Asked, path: Path) -> Contract:
    """Write all weights, the classifier's included; backbone, classes and preprocessing lie in the metadata.

    Raises:
        WriteError: the file cannot be written.
    """
    model.save_safetensors(path)
    return _contract(model)


def _contract(model: FineTuneModel) -> Contract:
    size = model.preprocessing.image_size
    trained_only = model.row.family.fixed_image_size(model.network) or model.row.family.position_embedding
    return Contract(
        format="safetensors",
        part="classifier",
        fixed_size=size if trained_only or model.row.family.name == "MaxViT" else None,
        smallest=model.row.family.smallest_image,
    )


def read(path: Path, model: FineTuneModel) -> Reading:
    """Load the file into a copy of the model.

    Raises:
        CheckpointError: the file is missing, damaged, or of another model.
    """
    state = load_tensors(path)
    with safetensors.safe_open(path, "pt") as file:  # load_tensors has read it whole, so it opens
        metadata = file.metadata() or {}
    told = {
        "backbone": model.backbone,
        "class_names": json.dumps(model.class_names),
        "preprocessing": json.dumps(model.preprocessing.to_dict()),
    }
    differing = [name for name, value in told.items() if metadata.get(name) != value]
    if differing:
        raise CheckpointError(
            f"{str(path)!r} has other {', '.join(differing)} than the checkpoint: it is of another model"
        )
    restored = copy.deepcopy(model)
    try:
        restored.network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{str(path)!r} does not fit {model.backbone}: {error}") from error

    def run(images: Tensor) -> Mapping[str, Tensor]:
        return {"logits": restored(images)}

    return Reading(_contract(model), run)


def usage(model: FineTuneModel, contract: Contract, name: str) -> str:
    """How the file is used."""
    pixels = model.preprocessing
    bands = "" if pixels.bands == RGB else f", bands={pixels.bands!r}"
    return (
        "import torch\nfrom safetensors.torch import load_file\nfrom torchvision.transforms import v2\n\n"
        "from sat_vg.backbone_finetuning import FineTuneModel\n\n"
        f"model = FineTuneModel({model.backbone!r}, {model.num_classes}, pretrained=False, "
        f"image_size={pixels.image_size}{bands})\n"
        f"model.network.load_state_dict(load_file({name!r}))  # under torchvision's names, the classifier included\n"
        "model.eval()\n"
        f"{prepare_lines(pixels, contract)}\n"
        "# model(prepare(image)[None]) gives the logits"
    )


FORMAT = Format(endings=(".safetensors",), options=frozenset(), write=write, read=read, usage=usage)
