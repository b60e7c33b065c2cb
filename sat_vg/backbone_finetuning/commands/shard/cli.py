"""``sat-vg shard DATA --out OUT``: write images into tar files to train from."""

from dataclasses import dataclass
from typing import Annotated

from sat_vg.backbone_finetuning.commands.command_line import main_of
from sat_vg.backbone_finetuning.configs.band_choice import Bands
from sat_vg.backbone_finetuning.configs.choices import OnDuplicates
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.configs.ranges import BadImagePolicy, PositiveInt, Range

_DESCRIPTION = """\
Write a data set into WebDataset tar files (shards) and an index of them, shards.json. A training takes their folder
in place of DATA. Few large files copy and stream well; the images' bytes stay as they are.

  write shards                 %(prog)s DATA --out OUT
  index tar files of others    %(prog)s --index DIR
  check that all are whole     %(prog)s --check DIR

DATA is what a training takes: class folders, train/ and val/ with class folders, or a .csv table. Stopped or killed,
the same command goes on where it was. Writing needs pip install 'sat_vg[webdataset]'."""


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """Options of ``sat-vg shard``; those with the name of a training field mean the same."""

    data: str | None = None
    """The images: class folders, train/ and val/ with class folders, or a .csv table."""
    index: str | None = None
    """Write shards.json of the tar files in this folder."""
    check: str | None = None
    """Read all shards in this folder and compare them with their index."""
    out: str | None = None
    """Folder that shards are written to."""
    images_per_shard: PositiveInt | None = None
    """Images in a shard, at the most."""
    shard_mib: Annotated[float, Range(above=0, below=2**30, example=256)] | None = None
    """Size of a shard in MiB, at the most. Unset: 256, if images_per_shard is unset too."""
    seed: int = FinetuneConfig.seed
    """Seed of the shards' mixture and of val."""
    val_fraction: float = FinetuneConfig.val_fraction
    """Share of each class that becomes val where the data have none."""
    train_split: str = FinetuneConfig.train_split
    """Name of the training folder."""
    val_split: str = FinetuneConfig.val_split
    """Name of the validation folder."""
    bands: Bands | None = None
    """The images are GeoTIFFs, of which these bands can be read, such as red=4,green=3,blue=2,nir=8."""
    on_bad_image: BadImagePolicy = "error"
    """What to do with images that cannot be read. error: stop. skip: leave them out, up to 1 % of all images;
    skip:0.05: up to 5 %."""
    max_bad_fraction: float = 0.01
    """Earlier spelling of on_bad_image = skip:SHARE; it works for one more version."""
    on_duplicates: OnDuplicates = "error"
    """What to do with the same image in two splits."""
    allow_outside: bool = False
    """A table may name images outside its own folder."""
    label_separator: str = FinetuneConfig.label_separator
    """What stands between the classes of an image in a table's column labels."""


main = main_of(
    "shard",
    ShardOptions,
    "shard",
    _DESCRIPTION,
    {"data": "DATA"},
    renamed={"output_dir": "out"},
    usage="%(prog)s (DATA --out OUT | --index DIR | --check DIR) [--OPTION VALUE ...]",
)
