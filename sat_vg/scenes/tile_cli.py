"""``sat-vg tile SCENE …``: windows of scenes with their classes."""

from sat_vg.backbone_finetuning.configs.option_parser import parse_options
from sat_vg.backbone_finetuning.utils.exit_codes import run_command

_DESCRIPTION = """\
Cut labelled windows out of large images, or list them without copying a pixel.

  class folders                 %(prog)s scene.tif --labels labels.geojson --size 64 --out tiles
  a table to train from         %(prog)s scene.tif --labels labels.geojson --size 64 --virtual true --out tiles.csv
  parts that are far apart      %(prog)s scene.tif --labels labels.geojson --split blocks --block_size 1000
  one window a feature          %(prog)s scene.tif --labels points.geojson --windows features

A SCENE is a GeoTIFF of any size, or a PNG or JPEG with labels in its pixels. A window has the class of the polygons
that cover most of it, or of the points in it."""


def main(arguments: list[str] | None = None, prog: str = "sat-vg tile") -> int:
    """Run the command; returns its exit code."""

    def action() -> None:
        from sat_vg.scenes.options import TileOptions

        options = parse_options(TileOptions, arguments, prog, _DESCRIPTION, {"scenes": "SCENE"})
        # Imported only now: torch takes seconds, and --help or a mistyped flag should be answered at once.
        from sat_vg.scenes.tiling import tile_scenes

        tile_scenes(options)

    return run_command(action)
