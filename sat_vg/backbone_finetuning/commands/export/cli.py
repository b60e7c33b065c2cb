"""``sat-vg export CHECKPOINT --format F --out PATH``: write a model for other programs."""

from sat_vg.backbone_finetuning.commands.command_line import main_of

_DESCRIPTION = """\
Write a best_model.pt for other programs, read the file back, and compare it with the model.

  state dict for torchvision.models    %(prog)s best_model.pt --format torchvision --out weights.pth
  checkpoint for DETR or TransVG       %(prog)s best_model.pt --format detr --out detr.pth
  weights that can hold no code        %(prog)s best_model.pt --format safetensors --out weights.safetensors
  feature maps in ONNX Runtime         %(prog)s best_model.pt --format onnx --part extractor --out maps.onnx
  program of torch.export              %(prog)s best_model.pt --format pt2 --out program.pt2
  is this file that model?             %(prog)s best_model.pt --verify maps.onnx

Beside the file lie PATH.card.json and PATH.card.md: what it takes and gives, and what it was made of. A file whose
numbers differ from the model's by more than the tolerance is not left behind."""
main = main_of(
    "export",
    "ExportCommandOptions",
    "export_or_verify",
    _DESCRIPTION,
    {"checkpoint": "CHECKPOINT"},
    renamed={"without_head": "with_head=false"},
)
