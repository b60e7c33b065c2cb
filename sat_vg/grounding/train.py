"""The training command: ``python -m sat_vg.grounding.train``."""

from sat_vg.backbone_finetuning.configs.option_parser import parse_options
from sat_vg.backbone_finetuning.utils.exit_codes import run_command

_DESCRIPTION = """\
Train a visual-grounding model: an image and a phrase give the box of what the phrase names.

  own data       %(prog)s --data DIR --backbone checkpoints/finetune/best_model.pt
  frozen         %(prog)s --data DIR --backbone best_model.pt --freeze_backbone true
  no arguments   a small run on built-in drawn tiles

Results: CHECKPOINT_DIR/best_model.pt (the product), CHECKPOINT_DIR/last.pt (the state; the same command continues),
LOG_DIR (TensorBoard and metrics.jsonl). Exit codes: 0 done, 1 stopped by an error while running, 2 a setting or an
input is wrong, 130 stopped by Ctrl-C, 75 by SIGTERM or SIGUSR1."""


def main(arguments: list[str] | None = None, prog: str = "python -m sat_vg.grounding.train") -> int:
    """Run the command; returns its exit code."""

    def action() -> None:
        from sat_vg.grounding.config import GroundingConfig

        config = parse_options(GroundingConfig, arguments, prog, _DESCRIPTION)
        # Imported only now: torch takes seconds, and --help or a mistyped flag should be answered at once.
        from sat_vg.grounding.training import train_grounding

        train_grounding(config)

    return run_command(action)


if __name__ == "__main__":
    raise SystemExit(main())
