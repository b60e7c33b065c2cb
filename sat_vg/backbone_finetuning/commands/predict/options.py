"""The options of ``sat-vg predict``."""

from dataclasses import dataclass

from sat_vg.backbone_finetuning.configs.ranges import PositiveInt


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Options of ``sat-vg predict``."""

    checkpoint: str
    """A best_model.pt."""
    images: tuple[str, ...]
    """Files, folders, globs, and - for paths on standard input."""
    top: PositiveInt | None = None
    """Classes for each image, the likeliest first. Unset: 5, or where an image can have several classes, all that are
    likelier than not."""
    json: bool = False
    """Print a JSON object a line instead of a table."""
    overlays: str | None = None
    """Folder for a PNG of each image: where the class was seen in it."""
    batch_size: PositiveInt = 16
    """Images at once."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
