"""The training command with a head at each place of the last map, whose probabilities are averaged.

    python tests/bench/placewise.py --dataset_path DIR --backbone mobilenet_v2 ...    # all flags of the command

Only the training loss changes: the mean over the places of each place's probabilities, in place of the probability
of the mean place. Validation and best_model.pt are as always, for the classifier is linear.
"""

import math
import sys

from torch import Tensor

from sat_vg.backbone_finetuning.models.staged_classifier import StagedClassifier
from sat_vg.backbone_finetuning.train import main


def placewise_outputs(model: StagedClassifier, value: Tensor, start: int = 0) -> tuple[tuple[float, Tensor], ...]:
    """Logarithms ``[B, num_classes]`` of the probabilities averaged over places; see ``training_outputs``."""
    features = model.run_stages(model.run_frozen(value, start), start=max(start, model.num_frozen_stages))
    places = features.flatten(2).transpose(1, 2)  # [B, h * w, D]
    logits = model.forward_head(places).float()
    return ((1.0, logits.log_softmax(-1).logsumexp(1) - math.log(places.shape[1])),)


if __name__ == "__main__":
    StagedClassifier.training_outputs = placewise_outputs  # type: ignore[method-assign]
    sys.exit(main())
