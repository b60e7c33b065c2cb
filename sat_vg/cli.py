"""``sat-vg COMMAND``: every command of the package under one name."""

import sys
from importlib import import_module

from sat_vg.backbone_finetuning.utils.stop_signals import ignore_from_now_on

COMMANDS = {
    "train": ("sat_vg.backbone_finetuning.train", "fine-tune a backbone on images in class folders"),
    "evaluate": ("sat_vg.backbone_finetuning.evaluate", "tell how well a best_model.pt does on images"),
    "compare": ("sat_vg.backbone_finetuning.compare", "train backbones and strategies over seeds, and rank them"),
    "predict": ("sat_vg.backbone_finetuning.predict", "tell what a best_model.pt takes images for"),
    "extract": ("sat_vg.backbone_finetuning.extract", "write the feature vectors or maps of images into a file"),
    "export": ("sat_vg.backbone_finetuning.export", "write a best_model.pt for ONNX Runtime, torchvision, DETR, …"),
    "check": ("sat_vg.backbone_finetuning.check", "tell what is wrong with a data set before training on it"),
    "shard": (
        "sat_vg.backbone_finetuning.shard",
        "write images into tar files to train from, and list or check such",
    ),
    "backbones": (
        "sat_vg.backbone_finetuning.backbones",
        "list the backbones: parameters, stages, channels, strides",
    ),
}


def main() -> int:
    """Run the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        module = import_module(COMMANDS[name][0])
        code = int(module.main(sys.argv[2:], f"sat-vg {name}"))
        ignore_from_now_on()
        return code
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {command.ljust(width)}  {text}" for command, (_, text) in COMMANDS.items())
    usage = f"usage: sat-vg COMMAND [...]\n\n{listing}\n\nsat-vg COMMAND --help says more"
    if name in ("-h", "--help"):
        print(usage)
        return 0
    print(f"error: sat-vg has no command {name!r}\n{usage}", file=sys.stderr)
    return 2
