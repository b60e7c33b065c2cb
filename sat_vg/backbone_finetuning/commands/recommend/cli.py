"""``sat-vg recommend``: a backbone, a strategy and a batch size to begin with."""

from sat_vg.backbone_finetuning.commands.command_line import main_of

_DESCRIPTION = """\
A backbone, a strategy and a batch size to begin with, by the number of images, the memory and the time for an image.

  own images      %(prog)s DATA
  by numbers      %(prog)s --images 1200 --memory_gib 8
  for a phone     %(prog)s --images 1200 --mobile
  all backbones   %(prog)s --table

Nothing is trained: docs/choosing.md says by which rules; sat-vg compare and sat-vg tune measure it on your images."""
main = main_of("recommend", "RecommendOptions", "show_recommendation", _DESCRIPTION, {"data": "DATA"})
