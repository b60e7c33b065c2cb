"""``sat-vg extract CHECKPOINT IMAGES``: write feature vectors or maps of images into one file."""

from sat_vg.backbone_finetuning.configs.option_parser import parse_options
from sat_vg.backbone_finetuning.utils.exit_codes import run_command

_DESCRIPTION = """\
Write the feature vectors of images, or feature maps, into one file.

  a vector per image         %(prog)s best_model.pt DIR --out features.npz
  maps of two stages         %(prog)s best_model.pt DIR --out maps.safetensors --stages layer3,layer4
  images of a list           %(prog)s best_model.pt images.csv --out features.parquet
  windows of a large image   %(prog)s best_model.pt scene.tif --size 64 --out index.npz

IMAGES is a folder, searched at any depth; a list (.txt: a path a line; .csv: a column path and perhaps label); a
glob in quotes; or one image. Images in class folders are labelled by them. Stopped or killed, the same command goes
on where it was; the file appears once it is complete."""


def main(arguments: list[str] | None = None, prog: str = "sat-vg extract") -> int:
    """Run the command; returns its exit code."""

    def action() -> None:
        from sat_vg.backbone_finetuning.commands.extract.options import ExtractOptions

        options = parse_options(
            ExtractOptions,
            arguments,
            prog,
            _DESCRIPTION,
            positionals={"checkpoint": "CHECKPOINT", "images": "IMAGES"},
            renamed={"knn=yes": "knn=true", "knn=no": "knn=false", "knn=auto": "knn=null"},
        )
        # Imported only now: torch takes seconds, and --help or a mistyped flag should be answered at once.
        from sat_vg.backbone_finetuning.commands.extract.run import extract_features

        extract_features(options)

    return run_command(action)
