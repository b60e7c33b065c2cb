"""The commands for scenes as Python functions, with the options of the command lines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sat_vg.backbone_finetuning.commands.functions import checked_options
from sat_vg.backbone_finetuning.commands.predict.cli import PredictOptions
from sat_vg.scenes.drawn import DrawOptions, draw
from sat_vg.scenes.options import SearchOptions, TileOptions
from sat_vg.scenes.prediction import map_scene
from sat_vg.scenes.similarity import Hit, search_index
from sat_vg.scenes.tiling import tile_scenes


def tile(scenes: str | Path | Sequence[str | Path], labels: str | Path, **options: Any) -> Path:
    """Write the labelled windows of scenes, as ``sat-vg tile SCENE … --labels FILE``.

    Args:
        scenes: one or more GeoTIFFs of one CRS, or plain pictures.
        labels: a GeoJSON file of points and polygons.
        options: of the command, such as ``size=64``, ``split="blocks"``, ``block_size=1000``, ``virtual=True``.

    Returns:
        The folder of class folders, or the table of references.

    Raises:
        UserError: scenes, labels or an option cannot be used.
    """
    several = [scenes] if isinstance(scenes, str | Path) else scenes
    given = {"scenes": tuple(map(str, several)), "labels": labels, **options}
    return tile_scenes(checked_options(TileOptions, "tile", given))


def draw_scene(out: str | Path, **options: Any) -> Path:
    """Draw a scene to try things out with, as ``python -m sat_vg.scenes.drawn OUT``.

    Args:
        out: the GeoTIFF to write; labels and truth go beside it: STEM.geojson and STEM.truth.tif.
        options: ``size`` (pixels), ``crs``, ``resolution`` (metres), ``texture``, ``drift`` (grey levels), ``seed``.

    Returns:
        The path of the scene.

    Raises:
        UserError: an option cannot be used, or a file cannot be written.
    """
    command = "python -m sat_vg.scenes.drawn"
    return draw(checked_options(DrawOptions, "draw_scene", {"out": out, **options}, command))


def predict_scene(checkpoint: str | Path, scene: str | Path, out: str | Path, **options: Any) -> Path:
    """Write a map of a scene's classes, as ``sat-vg predict CHECKPOINT SCENE --out FILE``.

    Args:
        checkpoint: a best_model.pt, or the folder of a run.
        scene: a GeoTIFF of any size, or a plain picture.
        out: the .tif, .geojson or .csv file to write.
        options: of the command, such as ``size=256``, ``stride=128`` (pixels), ``probabilities=True``.

    Returns:
        The path of the map.

    Raises:
        UserError: the model, the scene or an option cannot be used.
    """
    given = {"checkpoint": checkpoint, "images": (str(scene),), "out": out, **options}
    return map_scene(checked_options(PredictOptions, "predict", given))


def search(index: str | Path, query: str | Path, **options: Any) -> list[Hit]:
    """Find the entries of an index that are the most like an image, as ``sat-vg search INDEX QUERY``.

    Args:
        index: a file of vectors that ``extract`` has written.
        query: an image, or a window as the index names it.
        options: of the command, such as ``top=20``, ``out="hits"``.

    Returns:
        The hits, the most similar first.

    Raises:
        UserError: the index, the image or an option cannot be used.
    """
    return search_index(checked_options(SearchOptions, "search", {"index": index, "query": query, **options}))
