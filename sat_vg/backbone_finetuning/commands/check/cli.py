"""``sat-vg check DATA``: report what is wrong with a data set before anything is trained on it."""

from dataclasses import dataclass

from sat_vg.backbone_finetuning.commands.command_line import main_of
from sat_vg.backbone_finetuning.configs.band_choice import Bands
from sat_vg.backbone_finetuning.configs.choices import Rescale, Split
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.configs.ranges import PositiveFloat

_DESCRIPTION = """\
Read every image of a data set and report what a training would stumble over: images that cannot be read, the same
image in train and val or under two labels, near copies, classes out of balance, odd sizes. Nothing is changed.

  class folders      %(prog)s DIR
  a table            %(prog)s images.csv
  a known set        %(prog)s --dataset eurosat
  GeoTIFFs           %(prog)s DIR --bands red=4,green=3,blue=2,nir=8

Exit codes: 0 clean, or warnings only; 2 errors."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Options of ``sat-vg check``; those with the name of a training field mean the same."""

    data: str | None = None
    """Class folders, or train/ and val/ with class folders, or a .csv table; with --dataset the folder of a copy, or
    nothing."""
    dataset: str | None = None
    """A data set that torchvision reads, such as eurosat or cifar10. What DATA (unset: the cache folder) lacks of it
    is downloaded."""
    bands: Bands | None = None
    """Read GeoTIFFs, and these bands of them, such as red=4,green=3,blue=2,nir=8. Unset: 8-bit RGB."""
    nodata: float | None = None
    """With bands: a value that stands for no value, beside those that the files declare."""
    rescale: Rescale = FinetuneConfig.rescale
    """How 16-bit RGB images become 8-bit ones: by their high byte, or from the 2nd to the 98th percentile."""
    allow_outside: bool = False
    """A table may name images outside its own folder."""
    train_split: str = FinetuneConfig.train_split
    """Name of the training folder."""
    val_split: str = FinetuneConfig.val_split
    """Name of the validation folder."""
    val_fraction: float = FinetuneConfig.val_fraction
    """Share of each class that becomes val where the data have none."""
    seed: int = FinetuneConfig.seed
    """Seed of that split."""
    split: Split = FinetuneConfig.split
    """How val is drawn: image by image, or with spatial by blocks of ground."""
    block_size: PositiveFloat | None = None
    """With split spatial: side of a block in metres."""
    group_column: str | None = None
    """Of a table: the column whose images stay on one side."""
    label_separator: str = FinetuneConfig.label_separator
    """What stands between the classes of an image in a table's column labels."""
    json: bool = False
    """Print one JSON object that leaves nothing out."""


main = main_of("check", CheckOptions, "check", _DESCRIPTION, {"data": "DATA"})
