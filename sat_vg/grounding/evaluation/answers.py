"""What a model answers to phrases."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sat_vg.backbone_finetuning.utils.precision import Precision
from sat_vg.backbone_finetuning.utils.terminal import progress
from sat_vg.grounding.data.batches import Phrases
from sat_vg.grounding.data.records import Record
from sat_vg.grounding.evaluation.metrics import Overlaps, overlaps_of
from sat_vg.grounding.models.grounding_model import GroundingModel, best_boxes


@dataclass(frozen=True)
class Answers:
    """Predicted boxes, one of each phrase.

    Attributes:
        records: the phrases with their true boxes.
        boxes: predicted corners ``[P, 4]`` in pixels of the image.
        scores: probabilities ``[P]``.
        overlaps: overlaps with the true boxes.
    """

    records: Sequence[Record]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float32]
    overlaps: Overlaps


@torch.no_grad()
def answer(model: GroundingModel, phrases: Phrases, batch_size: int, precision: Precision) -> Answers:
    """The answers of a model, which is left in eval mode, to all phrases."""
    model.eval()
    records: list[Record] = []
    found, scores = [], []
    for batch in progress(phrases.in_order(batch_size), total=phrases.num_batches(batch_size), desc="evaluation"):
        moved = batch.to(precision.device)
        with precision.autocast():
            chosen, boxes = best_boxes(*model(moved.images, moved.masks, moved.image_of, moved.words))
        for record, box in zip(batch.records, boxes.cpu(), strict=True):
            found.append(phrases.store.boxes[record.image].to_image(box).numpy())
        records += batch.records
        scores.append(chosen.float().cpu().numpy())
    corners = np.array(found, dtype=np.float64)
    targets = np.array([record.box for record in records], dtype=np.float64)
    return Answers(records, corners, np.concatenate(scores), overlaps_of(corners, targets))
