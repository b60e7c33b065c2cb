"""Training at growing image sizes: small images first, which are quick, full ones last (Howard, 2018).

The images of a batch are resized on the device, right before the model, so loaders and caches know nothing of it. The
validation keeps the full size. (Touvron et al., 2019, train at a smaller size than they test at throughout.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.freezing import in_eval_mode
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.precision import Precision

# (images [B, C, H, W], number of the optimizer step) → images [B, C, h, w]
Resizing = Callable[[Tensor, int], Tensor]


def keep_size(values: Tensor, step: int) -> Tensor:
    """What the model takes, as it is."""
    return values


@dataclass(frozen=True)
class GrowingImages:
    """Equal shares of the epochs at each size.

    Attributes:
        sizes: height and width in pixels, ascending.
        num_epochs: of the run, without those that take no steps.
        steps_per_epoch: optimizer steps.
    """

    sizes: tuple[int, ...]
    num_epochs: int
    steps_per_epoch: int

    def size_in(self, epoch: int) -> int:
        """The size in an epoch, counted from 0 without those that take no steps."""
        return self.sizes[min(epoch * len(self.sizes) // self.num_epochs, len(self.sizes) - 1)]

    def __call__(self, values: Tensor, step: int) -> Tensor:
        """Normalised images ``[B, C, H, W]`` at the size of the step's epoch, in their memory format."""
        size = self.size_in(step // self.steps_per_epoch)
        if values.shape[-2:] == (size, size):
            return values
        return functional.interpolate(values, size=(size, size), mode="bilinear", antialias=True)

    @property
    def description(self) -> str:
        """Sizes and epochs in words."""
        runs = [(size, len(list(group))) for size, group in groupby(map(self.size_in, range(self.num_epochs)))]
        parts = [f"{size} pixels for {count} epoch{'' if count == 1 else 's'}" for size, count in runs]
        return "training images: " + ", then ".join(parts)


def require_sizes(model: FineTuneModel, sizes: Sequence[int], precision: Precision) -> None:
    """See that the network takes images of these sizes, by running it on some.

    Args:
        model: on its device; left as it was.
        sizes: height and width in pixels.
        precision: device and formats.

    Raises:
        ConfigError: it does not.
    """
    family, bands = model.row.family, len(model.preprocessing.bands)
    for size in sizes:
        images = torch.zeros(2, bands, size, size, device=precision.device)
        try:
            if size < family.smallest_image:
                raise ValueError(f"it needs {family.smallest_image} or more")
            with torch.no_grad(), in_eval_mode(model), precision.autocast():
                model.training_outputs(precision.place_images(images))
        except (RuntimeError, ValueError, AssertionError) as error:  # networks have no common error for this
            reason = (str(error).splitlines() or ["it refuses them"])[0]
            raise ConfigError(
                f"train_image_size = {list(sizes)}: {model.backbone}, built for images of "
                f"{model.preprocessing.image_size} pixels, cannot take {size} pixels ({reason}). Choose other sizes, "
                "or leave train_image_size out"
            ) from error
