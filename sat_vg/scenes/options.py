"""The options of ``sat-vg tile`` and ``sat-vg search``."""

from dataclasses import dataclass
from typing import Annotated, Literal

from sat_vg.backbone_finetuning.configs.ranges import (
    AreaShare,
    Fraction,
    PositiveFloat,
    PositiveInt,
    Range,
    WholeNumber,
)


@dataclass(frozen=True, kw_only=True)
class TileOptions:
    """Options of ``sat-vg tile``."""

    scenes: tuple[str, ...]
    """GeoTIFFs, or plain pictures, of one CRS."""
    labels: str | None = None
    """A GeoJSON file of points and polygons with their classes."""
    label_column: str = "class"
    """The property of a feature that names its class."""
    labels_crs: str | None = None
    """CRS of the labels, such as EPSG:32632, or pixels (column, row). Unset: what the file names, else longitude and
    latitude; for pictures pixels."""
    out: str = "tiles"
    """Folder to write class folders to; with virtual the .csv file, or the folder of tiles.csv."""
    virtual: bool = False
    """Write a table of windows (scene, window, label) in place of images: a training reads the windows out of the
    scenes."""
    size: PositiveInt = 256
    """Width and height of a window in pixels."""
    stride: PositiveInt | None = None
    """Pixels from one window to the next. Unset: as size, so that windows do not overlap."""
    windows: Literal["grid", "features"] = "grid"
    """A grid over the scene, or one window around each feature."""
    min_cover: AreaShare = 0.5
    """Of a grid: the share of a window that polygons of its class have to cover."""
    min_valid: AreaShare = 0.5
    """The share of a window that must not be nodata."""
    split: Literal["none", "random", "blocks"] = "none"
    """Into train, val and test: not at all, window by window, or by blocks of ground, a block apart."""
    block_size: PositiveFloat | None = None
    """With split blocks: side of a block in metres (of pictures: pixels)."""
    val_fraction: Fraction = 0.2
    """Share of the windows that becomes val."""
    test_fraction: Annotated[float, Range(lowest=0, below=1, example=0.1)] = 0.0
    """Share of the windows that becomes test."""
    seed: WholeNumber = 0
    """Seed of the split."""
    on_bad_label: Literal["error", "skip"] = "error"
    """Stop at features that are invalid or outside the scenes and at classes without a window, or leave them out."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options of ``sat-vg search``."""

    index: str
    """A file that sat-vg extract has written of vectors: .npz or .parquet."""
    query: str
    """An image, or a window as the index names it: SCENE.tif/000512_000256_64x64."""
    top: PositiveInt = 20
    """How many of the most similar entries."""
    out: str = "hits"
    """Name of the files to write: NAME.png, a contact sheet, and NAME.geojson."""
    checkpoint: str | None = None
    """The best_model.pt that the vectors are of. Unset: the one that the index names."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
