"""``sat-vg recommend``: a backbone, a strategy and a batch size to begin with."""

from dataclasses import dataclass

from sat_vg.backbone_finetuning.commands.command_line import main_of
from sat_vg.backbone_finetuning.configs.ranges import ImageSize, PositiveFloat, PositiveInt

_DESCRIPTION = """\
A backbone, a strategy and a batch size to begin with, by the number of images, the memory and the time for an image.

  own images      %(prog)s DATA
  by numbers      %(prog)s --images 1200 --memory_gib 8
  for a phone     %(prog)s --images 1200 --mobile
  all backbones   %(prog)s --table

Nothing is trained: docs/choosing.md says by which rules; sat-vg compare and sat-vg tune measure it on your images."""


@dataclass(frozen=True, kw_only=True)
class RecommendOptions:
    """Options of ``sat-vg recommend``."""

    data: str | None = None
    """Images, as for the training; their number is counted. Or give --images."""
    images: PositiveInt | None = None
    """Number of training images."""
    memory_gib: PositiveFloat | None = None
    """Memory for a training step in GiB: of the GPU, or of the machine. Unset: what this machine has."""
    mixed_precision: bool | None = None
    """Whether a step computes in bf16 or fp16, as GPUs do, or in fp32, which takes up to twice the memory. Unset: as
    this machine does; with --memory_gib or --table, true."""
    latency_ms: PositiveFloat | None = None
    """Longest time for one image in milliseconds, on a machine like the one that the table was measured on."""
    mobile: bool = False
    """Only networks for phones: 6 M parameters and 1 GFLOP at the most."""
    image_size: ImageSize | None = None
    """Height and width of the images in pixels. Unset: that of each backbone's weights."""
    rows: PositiveInt = 5
    """Backbones to show."""
    table: bool = False
    """Show all backbones, with the batch sizes for 8, 16, 24 and 80 GB; nothing is recommended."""
    json: bool = False
    """Print one JSON object."""


main = main_of("recommend", RecommendOptions, "show_recommendation", _DESCRIPTION, {"data": "DATA"})
