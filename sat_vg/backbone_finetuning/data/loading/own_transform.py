"""A user's own change of training images, after all others; see ``finetune(config, transform)``."""

import hashlib
import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from sat_vg.backbone_finetuning.utils.errors import UserError
from sat_vg.backbone_finetuning.utils.preprocessing import Preprocessing
from sat_vg.backbone_finetuning.utils.seeding import seed_default_generator, torch_generator

Change = Callable[[Tensor], Tensor]
_NUM_PROBES = 3


class OwnTransform(nn.Module):
    """``change`` with the random numbers of the sample, and its result checked.

    The global generators of torch, NumPy and Python are seeded by the sample, so a change that draws from any of them
    does not depend on the number of workers.

    Args:
        change: ``[C, size, size]`` → the same shape and type: uint8, or float32 of GeoTIFFs.
    """

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change

    def forward(self, image: Tensor) -> Tensor:
        """The changed image.

        Raises:
            UserError: it is no tensor of the same shape and type.
        """
        seed = int(torch.randint(1 << 31, ()))  # of torch's default generator, which is the sample's
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global one is what a user's function may draw from
        changed = self.change(image)
        if not isinstance(changed, Tensor) or (changed.shape, changed.dtype) != (image.shape, image.dtype):
            found = f"{changed.dtype} {list(changed.shape)}" if isinstance(changed, Tensor) else repr(type(changed))
            raise UserError(
                f"transform gave {found} for an image {image.dtype} {list(image.shape)}: return a tensor of the same "
                "type and shape"
            )
        return changed


def digest_of(transform: OwnTransform, preprocessing: Preprocessing) -> str:
    """A hash of what a transform makes of fixed images, by which a resumed run tells another one."""
    digest, size = hashlib.sha256(), preprocessing.image_size
    with torch.random.fork_rng(devices=[]):
        for number in range(_NUM_PROBES):
            generator = torch_generator(number)
            image = torch.randint(256, (len(preprocessing.bands), size, size), dtype=torch.uint8, generator=generator)
            seed_default_generator(number)
            changed = transform(image if preprocessing.files is None else image.float())
            digest.update(changed.contiguous().numpy().tobytes())
    return digest.hexdigest()
