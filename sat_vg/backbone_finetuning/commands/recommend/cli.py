"""``sat-vg recommend``: a backbone, a strategy and a batch size to begin with."""

from sat_vg.backbone_finetuning.configs.option_parser import parse_options
from sat_vg.backbone_finetuning.utils.exit_codes import run_command

_DESCRIPTION = """\
A backbone, a strategy and a batch size to begin with, by the number of images, the memory and the time for an image.

  own images      %(prog)s DATA
  by numbers      %(prog)s --images 1200 --memory_gib 8
  for a phone     %(prog)s --images 1200 --mobile
  all backbones   %(prog)s --table

Nothing is trained: docs/choosing.md says by which rules; sat-vg compare and sat-vg tune measure it on your images."""


def main(arguments: list[str] | None = None, prog: str = "sat-vg recommend") -> int:
    """Run the command; returns its exit code."""

    def action() -> None:
        from sat_vg.backbone_finetuning.commands.recommend.options import RecommendOptions

        options = parse_options(RecommendOptions, arguments, prog, _DESCRIPTION, {"data": "DATA"})
        # Imported only now: torch takes seconds, and --help or a mistyped flag should be answered at once.
        from sat_vg.backbone_finetuning.commands.recommend.run import show_recommendation

        show_recommendation(options)

    return run_command(action)
