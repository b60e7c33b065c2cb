"""Maps without what the extractor padded, for consumers that infer a level's scale from its size."""

import math

from torch import Tensor


def crop_padding(features: Tensor, images: Tensor, stride: float) -> Tensor:
    """``features [B, C, h, w]`` without the rows and columns that lie in what the extractor padded."""
    height, width = (math.ceil(side / stride) for side in images.shape[-2:])
    return features[:, :, :height, :width]
