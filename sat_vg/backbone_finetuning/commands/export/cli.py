"""``sat-vg export CHECKPOINT --format F --out PATH``: write a model for other programs."""

from dataclasses import dataclass
from typing import Annotated

from sat_vg.backbone_finetuning.commands.command_line import main_of
from sat_vg.backbone_finetuning.configs.choices import ExportFormat, ExportPart
from sat_vg.backbone_finetuning.configs.ranges import PositiveFloat, Range

_DESCRIPTION = """\
Write a best_model.pt for other programs, read the file back, and compare it with the model.

  state dict for torchvision.models    %(prog)s best_model.pt --format torchvision --out weights.pth
  checkpoint for DETR or TransVG       %(prog)s best_model.pt --format detr --out detr.pth
  weights that can hold no code        %(prog)s best_model.pt --format safetensors --out weights.safetensors
  feature maps in ONNX Runtime         %(prog)s best_model.pt --format onnx --part extractor --out maps.onnx
  program of torch.export              %(prog)s best_model.pt --format pt2 --out program.pt2
  is this file that model?             %(prog)s best_model.pt --verify maps.onnx

Beside the file lie PATH.card.json and PATH.card.md: what it takes and gives, and what it was made of. A file whose
numbers differ from the model's by more than the tolerance is not left behind."""


@dataclass(frozen=True, kw_only=True)
class ExportCommandOptions:
    """Options of ``sat-vg export``."""

    checkpoint: str
    """A best_model.pt."""
    format: ExportFormat | None = None
    """What to write. With --verify: what the file is, where its ending does not say so."""
    out: str | None = None
    """File to write."""
    verify: str | None = None
    """Compare this earlier export with CHECKPOINT; nothing is written."""
    part: ExportPart | None = None
    """onnx, pt2: what is computed. Unset: classifier."""
    with_normalisation: bool = False
    """onnx, pt2: take uint8 images."""
    with_head: bool | None = None
    """torchvision: write the classifier too. Unset: where torchvision's network has a place for it."""
    fixed_size: Annotated[int, Range(lowest=1, highest=4096, example=224)] | None = None
    """onnx, pt2: the only height and width, in pixels. Unset: any, where the backbone allows it."""
    tolerance: PositiveFloat = 1e-4
    """Largest difference from the model's numbers."""
    license: str | None = None
    """For the card, such as CC-BY-4.0."""
    readme: bool = False
    """Name the card for readers README.md, as model hubs show it: the folder of --out can then be uploaded as it
    is."""


main = main_of(
    "export",
    ExportCommandOptions,
    "export_or_verify",
    _DESCRIPTION,
    {"checkpoint": "CHECKPOINT"},
    renamed={"without_head": "with_head=false"},
)
