"""Where ``reading.decoding`` stood before the tree was laid anew; this name goes with the next version."""

from sat_vg.backbone_finetuning.data.reading.decoding import decode_or_reason, decode_rgb

__all__ = ["decode_or_reason", "decode_rgb"]
