"""``sat-vg search INDEX QUERY``: what is the most like an image."""

from sat_vg.backbone_finetuning.commands.command_line import main_of
from sat_vg.scenes.options import SearchOptions

_DESCRIPTION = """\
The entries of a file of vectors that are the most like an image, by cosine.

  an index of a scene      sat-vg extract best_model.pt scene.tif --size 64 --out index.npz
  by an image              %(prog)s index.npz image.png --top 20
  by one of its windows    %(prog)s index.npz scene.tif/000512_000256_64x64

Writes a contact sheet and, of windows, where they lie."""
main = main_of(
    "search", SearchOptions, "similarity.search_index", _DESCRIPTION, {"index": "INDEX", "query": "QUERY"}
)  # fmt: skip
