"""``sat-vg predict CHECKPOINT IMAGE …``: print the classes and probabilities of images."""

from sat_vg.backbone_finetuning.configs.option_parser import parse_options
from sat_vg.backbone_finetuning.utils.exit_codes import run_command

_DESCRIPTION = """\
Classes and probabilities of images by a best_model.pt.

  some images              %(prog)s best_model.pt a.jpg b.png
  folders, at any depth    %(prog)s best_model.pt DIR --top 1
  for another program      find DIR -name '*.png' | %(prog)s best_model.pt - --json true
  what it looked at        %(prog)s best_model.pt a.jpg --overlays looked_at
  a map of a large image   %(prog)s best_model.pt scene.tif --size 64 --stride 32 --out map.tif

An IMAGE is a file, a folder, a glob in quotes, or - for paths on standard input, one a line, which are answered as
they come. An image that cannot be read is reported, the others go on, and the exit code at the end is 2."""


def main(arguments: list[str] | None = None, prog: str = "sat-vg predict") -> int:
    """Run the command; returns its exit code."""

    def action() -> None:
        from sat_vg.backbone_finetuning.commands.predict.options import PredictOptions

        positionals = {"checkpoint": "CHECKPOINT", "images": "IMAGE"}
        options = parse_options(PredictOptions, arguments, prog, _DESCRIPTION, positionals)
        # Imported only now: torch takes seconds, and --help or a mistyped flag should be answered at once.
        if options.out or options.size or options.stride:
            from sat_vg.scenes.prediction import map_scene

            map_scene(options)
        else:
            from sat_vg.backbone_finetuning.commands.predict.run import predict_images

            predict_images(options)

    return run_command(action)
