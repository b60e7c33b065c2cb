"""``sat-vg predict CHECKPOINT IMAGE …``: print the classes and probabilities of images."""

from dataclasses import dataclass
from typing import Annotated

from sat_vg.backbone_finetuning.commands.command_line import main_of
from sat_vg.backbone_finetuning.configs.choices import MOST_VIEWS
from sat_vg.backbone_finetuning.configs.ranges import PositiveInt, Range

_DESCRIPTION = """\
Classes and probabilities of images by a best_model.pt.

  some images              %(prog)s best_model.pt a.jpg b.png
  folders, at any depth    %(prog)s best_model.pt DIR --top 1
  for another program      find DIR -name '*.png' | %(prog)s best_model.pt - --json true
  what it looked at        %(prog)s best_model.pt a.jpg --overlays looked_at
  a map of a large image   %(prog)s best_model.pt scene.tif --size 64 --stride 32 --out map.tif

An IMAGE is a file, a folder, a glob in quotes, or - for paths on standard input, one a line, which are answered as
they come. An image that cannot be read is reported, the others go on, and the exit code at the end is 2."""


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
    views: Annotated[int, Range(lowest=1, highest=MOST_VIEWS, example=MOST_VIEWS)] = 1
    """Average the probabilities over so many of each image's flips and quarter turns; 8: all of them. The network
    runs as often."""
    ensemble: tuple[str, ...] = ()
    """More best_model.pt of the same classes, whose probabilities are averaged with those of CHECKPOINT."""
    json: bool = False
    """Print a JSON object a line instead of a table."""
    overlays: str | None = None
    """Folder for a PNG of each image: where the class was seen in it. One with pictures of an earlier call is
    refused."""
    out: str | None = None
    """Of a scene: the map to write, a .tif (class raster), .geojson (regions) or .csv (a line a window)."""
    size: PositiveInt | None = None
    """Of a scene: width and height of a window in pixels. Unset: the size of the model's images."""
    stride: PositiveInt | None = None
    """Of a scene: pixels from one window to the next. Unset: half of size."""
    probabilities: bool = False
    """Of a scene: write the probability of each class too, as bands of MAP.probabilities.tif or columns."""
    preview: bool = True
    """Of a scene: write a picture of the map over it, MAP.preview.png."""
    batch_size: PositiveInt = 16
    """Images at once."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""


main = main_of("predict", PredictOptions, "predict", _DESCRIPTION, {"checkpoint": "CHECKPOINT", "images": "IMAGE"})
