"""``sat-vg extract CHECKPOINT IMAGES``: write feature vectors or maps of images into one file."""

from dataclasses import dataclass
from typing import Literal

from sat_vg.backbone_finetuning.commands.command_line import main_of
from sat_vg.backbone_finetuning.configs.ranges import PositiveInt

_DESCRIPTION = """\
Write the feature vectors of images, or feature maps, into one file.

  a vector per image         %(prog)s best_model.pt DIR --out features.npz
  maps of two stages         %(prog)s best_model.pt DIR --out maps.safetensors --stages layer3,layer4
  images of a list           %(prog)s best_model.pt images.csv --out features.parquet
  windows of a large image   %(prog)s best_model.pt scene.tif --size 64 --out index.npz

IMAGES is a folder, searched at any depth; a list (.txt: a path a line; .csv: a column path and perhaps label); a
glob in quotes; or one image. Images in class folders are labelled by them. Stopped or killed, the same command goes
on where it was; the file appears once it is complete."""


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """Options of ``sat-vg extract``."""

    checkpoint: str
    """A best_model.pt."""
    images: str
    """Folder, list, glob or image."""
    size: PositiveInt | None = None
    """Take the images for scenes: of each, the windows of this width and height in pixels."""
    stride: PositiveInt | None = None
    """Of scenes: pixels from one window to the next. Unset: as size."""
    out: str = "features.npz"
    """The .npz, .safetensors or .parquet file to write."""
    stages: tuple[str, ...] | None = None
    """Write the maps of these stages, such as layer3,layer4. Unset: the pooled vectors."""
    dtype: Literal["float32", "float16"] = "float32"
    """Format of the numbers in the file."""
    batch_size: PositiveInt = 64
    """Images at once."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    mixed_precision: bool = False
    """Compute in bfloat16 or float16 where the device is quick at it."""
    on_bad_image: Literal["error", "skip"] = "error"
    """Stop at an image that cannot be read, or leave it out."""
    allow_outside: bool = False
    """A list may name files outside its own folder."""
    label_separator: str = "|"
    """What stands between the classes of an image in a table's column labels."""
    knn: bool | None = None
    """Compute the nearest neighbours' accuracy on labelled vectors. Unset: for up to 50 000 of them."""


main = main_of(
    "extract",
    ExtractOptions,
    "extract_features",
    _DESCRIPTION,
    {"checkpoint": "CHECKPOINT", "images": "IMAGES"},
    renamed={"knn=yes": "knn=true", "knn=no": "knn=false", "knn=auto": "knn=null"},
)
