"""``sat-vg extract CHECKPOINT IMAGES``: write feature vectors or maps of images into one file."""

from sat_vg.backbone_finetuning.commands.command_line import main_of

_DESCRIPTION = """\
Write the feature vectors of images, or feature maps, into one file.

  a vector per image         %(prog)s best_model.pt DIR --out features.npz
  maps of two stages         %(prog)s best_model.pt DIR --out maps.safetensors --stages layer3,layer4
  images of a list           %(prog)s best_model.pt images.csv --out features.parquet
  windows of a large image   %(prog)s best_model.pt scene.tif --size 64 --out index.npz

IMAGES is a folder, searched at any depth; a list (.txt: a path a line; .csv: a column path and perhaps label); a
glob in quotes; or one image. Images in class folders are labelled by them. Stopped or killed, the same command goes
on where it was; the file appears once it is complete."""
main = main_of(
    "extract",
    "ExtractOptions",
    "extract_features",
    _DESCRIPTION,
    {"checkpoint": "CHECKPOINT", "images": "IMAGES"},
    renamed={"knn=yes": "knn=true", "knn=no": "knn=false", "knn=auto": "knn=null"},
)
