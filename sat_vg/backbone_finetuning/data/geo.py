"""Where ``reading.geo`` stood before the tree was laid anew; this name goes with the next version."""

from sat_vg.backbone_finetuning.data.reading.geo import decoder_of, decoder_of_files

__all__ = ["decoder_of", "decoder_of_files"]
