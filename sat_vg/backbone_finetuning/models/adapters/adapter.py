"""What most adapters begin with."""

from torch import nn

from sat_vg.backbone_finetuning.models.feature_pyramid import Extractor


class Adapter(nn.Module):
    """A module around an extractor; ``num_channels`` are those of its last map."""

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.extractor = extractor
        self.num_channels = extractor.num_channels
