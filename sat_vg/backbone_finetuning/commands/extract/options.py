"""The options of ``sat-vg extract``."""

from dataclasses import dataclass
from typing import Literal

from sat_vg.backbone_finetuning.configs.ranges import PositiveInt


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
