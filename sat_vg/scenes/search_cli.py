"""``sat-vg search INDEX QUERY``: what is the most like an image."""

from sat_vg.backbone_finetuning.configs.option_parser import parse_options
from sat_vg.backbone_finetuning.utils.exit_codes import run_command

_DESCRIPTION = """\
The entries of a file of vectors that are the most like an image, by cosine.

  an index of a scene      sat-vg extract best_model.pt scene.tif --size 64 --out index.npz
  by an image              %(prog)s index.npz image.png --top 20
  by one of its windows    %(prog)s index.npz scene.tif/000512_000256_64x64

Writes a contact sheet and, of windows, where they lie."""


def main(arguments: list[str] | None = None, prog: str = "sat-vg search") -> int:
    """Run the command; returns its exit code."""

    def action() -> None:
        from sat_vg.scenes.options import SearchOptions

        options = parse_options(SearchOptions, arguments, prog, _DESCRIPTION, {"index": "INDEX", "query": "QUERY"})
        # Imported only now: torch takes seconds, and --help or a mistyped flag should be answered at once.
        from sat_vg.scenes.similarity import search_index

        search_index(options)

    return run_command(action)
