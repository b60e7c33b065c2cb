"""``pt2``: a program of ``torch.export``, which torch runs without this package."""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from torch import Tensor

from sat_vg.backbone_finetuning.models.exports.contract import Asked, Contract, Format, Reading
from sat_vg.backbone_finetuning.models.exports.program_archives import require_program
from sat_vg.backbone_finetuning.models.exports.snippets import prepare_lines
from sat_vg.backbone_finetuning.models.exports.tracing import REFUSALS, first_line, quiet, trace, why_fixed
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.errors import CheckpointError
from sat_vg.backbone_finetuning.utils.json_reading import MOST_BYTES, UnsoundJSONError, parse_json
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write

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
    with atomic_write(path) as file:
        kept = _FirstError(file)
        with quiet():
            torch.export.save(program, cast("IO[bytes]", kept), extra_files={DESCRIPTION: json.dumps(description)})
        if kept.error is not None:
            raise kept.error
    return contract


class _FirstError(io.RawIOBase):
    """Passes bytes on until that fails: an error out of the file would make torch's writer end the process."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._try(lambda: self._file.write(data))
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._try(lambda: self._file.seek(offset, whence))
        return self.tell()

    def tell(self) -> int:
        return self._file.tell()

    def _try(self, action: Callable[[], object]) -> None:
        if self.error is None:
            try:
                action()
            except OSError as error:
                self.error = error


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
        if archive.getinfo(names[0]).file_size > MOST_BYTES:
            raise CheckpointError(
                f"{str(path)!r} is no export of sat_vg: its description is too long; export it again"
            )
        try:
            content = parse_json(archive.read(names[0]))
        except UnsoundJSONError as error:
            raise CheckpointError(f"{str(path)!r} is damaged or made up: {error}; export it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{str(path)!r} is no export of sat_vg: it has no description; export it again")
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
