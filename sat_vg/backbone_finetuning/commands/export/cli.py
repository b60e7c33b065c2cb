"""``sat-vg export CHECKPOINT --format F --out PATH``: write a model for other programs."""

from sat_vg.backbone_finetuning.configs.option_parser import parse_options
from sat_vg.backbone_finetuning.utils.exit_codes import run_command

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


def main(arguments: list[str] | None = None, prog: str = "sat-vg export") -> int:
    """Run the command; returns its exit code."""

    def action() -> None:
        from sat_vg.backbone_finetuning.commands.export.options import ExportCommandOptions

        options = parse_options(
            ExportCommandOptions,
            arguments,
            prog,
            _DESCRIPTION,
            positionals={"checkpoint": "CHECKPOINT"},
            renamed={"without_head": "with_head=false"},
        )
        # Imported only now: torch takes seconds, and --help or a mistyped flag should be answered at once.
        from sat_vg.backbone_finetuning.commands.export.run import export_checkpoint, verify_export

        export_checkpoint(options) if options.verify is None else verify_export(options)

    return run_command(action)
