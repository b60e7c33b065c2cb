"""Losses of grounding: which place names the box, and how well its box fits."""

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import generalized_box_iou_loss

from sat_vg.grounding.models.network import place_centres

_L1, _GIOU = 5.0, 2.0  # weights of DETR (Carion et al., 2020)
_WIDTH = 0.2  # standard deviation of the target around the box's centre, in widths and heights of the box


def target_places(boxes: Tensor, num_places: int, is_padding: Tensor) -> Tensor:
    """Weights ``[P, N]`` of the places, which sum to 1: a Gaussian around the centre of each box (Zhou et al., 2019).

    Args:
        boxes: corners ``[P, 4]`` in fractions of the canvas.
        num_places: N.
        is_padding: bool ``[P, N]``.
    """
    side = round(num_places**0.5)
    centres = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2  # [P, 1, 2]
    spread = _WIDTH * (boxes[:, None, 2:] - boxes[:, None, :2]) + 0.25 / side
    distance = ((place_centres(side, boxes.device) - centres) / spread).square().sum(-1)
    weights: Tensor = (-distance / 2).masked_fill(is_padding, -torch.inf).softmax(-1)
    return weights


def grounding_loss(scores: Tensor, found: Tensor, boxes: Tensor) -> Tensor:
    """Loss ``[P]`` of each phrase: cross-entropy of the places, L1 and generalised IoU (Rezatofighi et al., 2019).

    Args:
        scores: logits ``[P, N]``, -inf where there is padding.
        found: corners ``[P, N, 4]`` in fractions of the canvas.
        boxes: the true corners ``[P, 4]``.
    """
    weights = target_places(boxes, scores.shape[1], scores.isneginf())
    places = -(weights * scores.log_softmax(-1).nan_to_num(neginf=0.0)).sum(-1)
    targets = boxes[:, None].expand_as(found)
    l1 = functional.l1_loss(found, targets, reduction="none").mean(-1)
    giou: Tensor = generalized_box_iou_loss(found, targets)
    loss: Tensor = places + (weights * (_L1 * l1 + _GIOU * giou)).sum(-1)
    return loss
