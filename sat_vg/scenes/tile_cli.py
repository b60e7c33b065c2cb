"""``sat-vg tile SCENE …``: windows of scenes with their classes."""

from sat_vg.backbone_finetuning.commands.command_line import main_of
from sat_vg.scenes.options import TileOptions

_DESCRIPTION = """\
Cut labelled windows out of large images, or list them without copying a pixel.

  class folders                 %(prog)s scene.tif --labels labels.geojson --size 64 --out tiles
  a table to train from         %(prog)s scene.tif --labels labels.geojson --size 64 --virtual true --out tiles.csv
  parts that are far apart      %(prog)s scene.tif --labels labels.geojson --split blocks --block_size 1000
  one window a feature          %(prog)s scene.tif --labels points.geojson --windows features

A SCENE is a GeoTIFF of any size, or a PNG or JPEG with labels in its pixels. A window has the class of the polygons
that cover most of it, or of the points in it."""
main = main_of("tile", TileOptions, "tiling.tile_scenes", _DESCRIPTION, {"scenes": "SCENE"})
