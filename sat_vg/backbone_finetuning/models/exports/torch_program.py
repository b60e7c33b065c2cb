"""``pt2``: a program of ``torch.export``, which torch runs without this package."""

import io
import zipfile
import zlib
from pathlib import Path

import torch
from torch.export import ExportedProgram

from sat_vg.backbone_finetuning.models.exports.contract import (
    REFUSALS,
    Contract,
    ExportFailedError,
    ExportOptions,
    Format,
    LoadedExport,
    describe,
    first_line,
    read_description,
)
from sat_vg.backbone_finetuning.models.exports.model_card import prepare_lines
from sat_vg.backbone_finetuning.models.exports.tracing import quiet, trace
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.errors import CheckpointError
from sat_vg.backbone_finetuning.utils.json_reading import MOST_BYTES
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write

DESCRIPTION = "sat_vg.json"  # an extra file within the archive


def write(model: FineTuneModel, options: ExportOptions, path: Path) -> Contract:
    """Write the program with its description."""
    program, contract = trace(model, options, "pt2")
    content = _archive(program, describe(model, contract))
    with atomic_write(path) as file:
        file.write(content)
    return contract


def _archive(program: ExportedProgram, description: str) -> memoryview:
    """The bytes of the file. In memory, since torch's own writer ends the process where a disk is full."""
    program.example_inputs = None
    content = io.BytesIO()
    with quiet():
        torch.export.save(program, content, extra_files={DESCRIPTION: description})
    return content.getbuffer()


def require_own(path: Path, model: FineTuneModel) -> None:
    """Refuse a program that is not, byte for byte, what ``write`` makes of this model.

    ``torch.export.load`` evaluates expressions and looks up names that stand in the file, so a foreign one could run
    code. Nothing of a file is loaded before it has been found equal to a new export.

    Raises:
        CheckpointError: the file is missing, damaged, or has no description.
        ExportFailedError: it is another program.
    """
    contract = _contract_in(path)
    options = ExportOptions(
        part=contract.part, with_normalisation=contract.dtype == "uint8", fixed_size=contract.fixed_size
    )
    program, own_contract = trace(model, options, "pt2")
    expected = _archive(program, describe(model, own_contract))
    if path.stat().st_size != len(expected) or path.read_bytes() != expected:
        raise ExportFailedError(
            f"a new export by torch {torch.__version__} is another file. Only what is equal to the byte is loaded, "
            "since a foreign .pt2 could run code; one that was made with another version of torch is not"
        )


def read(path: Path, model: FineTuneModel) -> LoadedExport:
    """Load a program; ``torch.export.load`` trusts the file, see ``require_own``."""
    contract = _contract_in(path)
    with quiet():
        try:
            module = torch.export.load(path).module()
        except REFUSALS as error:
            raise CheckpointError(
                f"{str(path)!r} cannot be loaded by torch {torch.__version__}: {first_line(error)}; export it again"
            ) from error
    return LoadedExport(contract, module)


def _contract_in(path: Path) -> Contract:
    if not path.is_file():
        raise CheckpointError(f"there is no file {str(path)!r}; check the path")
    try:
        with zipfile.ZipFile(path) as archive:
            found = [entry for entry in archive.infolist() if entry.filename.endswith(f"/extra/{DESCRIPTION}")]
            is_bounded = len(found) == 1 and found[0].file_size <= MOST_BYTES
            description = archive.read(found[0]) if is_bounded else None
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{str(path)!r} cannot be read: {error}. The file is cut short, altered, or no program of torch.export; "
            "export it again"
        ) from error
    return read_description(path, description)


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
    require_own=require_own,
)
