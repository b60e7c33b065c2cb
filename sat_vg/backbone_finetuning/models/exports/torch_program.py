"""``pt2``: a program of ``torch.export``, which torch runs without this package."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sat_vg.backbone_finetuning.models.exports.contract import Asked, Contract, Format, Reading
from sat_vg.backbone_finetuning.models.exports.program_archives import require_program
from sat_vg.backbone_finetuning.models.exports.snippets import prepare_lines
from sat_vg.backbone_finetuning.models.exports.tracing import REFUSALS, first_line, quiet, trace, why_fixed
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.errors import CheckpointError

DESCRIPTION = "sat_vg.json"  # an extra file within the archive


def write(model: FineTuneModel, asked: Asked, path: Path) -> Contract:
    """Write the program with its description.

    Raises:
        ConfigError: the model does not run at the size that is asked for.
        ExportFailedError: it cannot be traced so.
        OSError: the file cannot be written.
    """
    program, contract = trace(model, asked, "pt2")
    program.example_inputs = None
    description = {
        "contract": contract.to_dict(),
        "backbone": model.backbone,
        "class_names": list(model.class_names),
        "temperature": model.temperature,
        "task": model.task,
        "preprocessing": model.preprocessing.to_dict(),
    }
    with quiet():
        torch.export.save(program, path, extra_files={DESCRIPTION: json.dumps(description)})
    return contract


def read(path: Path, model: FineTuneModel) -> Reading:
    """Read a program back; only such as ``write`` makes, since others can name code of any kind.

    Raises:
        CheckpointError: the file is missing, damaged, or another program.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {str(path)!r}; check the path")
    description = _description(path)
    contract = Contract.from_dict(description.get("contract"))
    with quiet():
        try:
            module = torch.export.load(path).module()
        except REFUSALS as error:
            raise CheckpointError(
                f"{str(path)!r} cannot be loaded by torch {torch.__version__}: {first_line(error)}; export it again"
            ) from error

    def run(images: Tensor) -> Mapping[str, Tensor]:
        outputs: dict[str, Tensor] = module(images)
        return outputs

    return Reading(contract, run)


def _description(path: Path) -> dict[str, Any]:
    require_program(path)
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(f"/extra/{DESCRIPTION}")]
        if len(names) != 1:
            raise CheckpointError(f"{str(path)!r} is no export of sat_vg: it has no description; export it again")
        content: dict[str, Any] = json.loads(archive.read(names[0]))
    return content


def usage(model: FineTuneModel, contract: Contract, name: str) -> str:
    """How the file is used."""
    return (
        "import torch\nfrom torchvision.transforms import v2\n\n"
        f"program = torch.export.load({name!r}).module()\n"
        f"{prepare_lines(model.preprocessing, contract)}\n"
        f"# program(prepare(image)[None]) gives a dictionary with {', '.join(contract.outputs)}"
    )


FORMAT = Format(
    endings=(".pt2",),
    options=frozenset({"part", "with_normalisation", "fixed_size"}),
    write=write,
    read=read,
    usage=usage,
    why_fixed=why_fixed,
)
