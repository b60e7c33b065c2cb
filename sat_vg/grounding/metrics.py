"""Metrics of grounding with bootstrap intervals by image, groups of phrases, and baselines that see no image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sat_vg.grounding.words import Vocabulary, tokens_of

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
Numbers = NDArray[np.float64]
_RESAMPLES = 1000

_FAMILIES = {
    "relation": "of above below between near next beside behind around adjacent nearest",
    "position": "left right top bottom upper lower middle center centre leftmost rightmost topmost bottommost north "
    "south east west northern southern eastern western corner side",
    "size": "large small big tiny huge largest smallest biggest long short larger smaller",
    "colour": "red green blue white black gray grey yellow orange brown dark light purple pink",
}
_BOX_SIZES = {"small (below 1 %)": 0.01, "medium (1 to 5 %)": 0.05, "large (5 % and above)": float("inf")}


def overlaps_of(found: Numbers, targets: Numbers) -> Numbers:
    """Intersections and unions ``[2, P]``, in square pixels, of predicted and true corners ``[P, 4]``, row by row."""
    sides = np.minimum(found[:, 2:], targets[:, 2:]) - np.maximum(found[:, :2], targets[:, :2])
    intersections = np.clip(sides, 0, None).prod(1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(1) for boxes in (found, targets)]
    return np.stack([intersections, areas[0] + areas[1] - intersections])


def ious_of(overlaps: Numbers) -> Numbers:
    """Intersection over union ``[P]``."""
    return np.asarray(overlaps[0] / np.maximum(overlaps[1], 1e-9))


def metrics_of(overlaps: Numbers) -> dict[str, float]:
    """``pr@0.5`` … ``pr@0.9`` and ``mean_iou``, and ``cum_iou``, the sum of intersections over that of unions."""
    ious, (intersections, unions) = ious_of(overlaps), overlaps
    return {
        **{f"pr@{threshold}": float((ious >= threshold).mean()) for threshold in THRESHOLDS},
        "mean_iou": float(ious.mean()),
        "cum_iou": float(intersections.sum() / max(unions.sum(), 1e-9)),
    }


def intervals_of(overlaps: Numbers, images: Sequence[str]) -> dict[str, list[float]]:
    """95 % intervals of all metrics by a bootstrap over images (Efron, 1979), whose phrases are drawn together."""
    groups: dict[str, list[int]] = {}
    for place, image in enumerate(images):
        groups.setdefault(image, []).append(place)
    places, generator = [np.array(group) for group in groups.values()], np.random.default_rng(0)
    drawn = []
    for _ in range(_RESAMPLES):
        chosen = np.concatenate([places[group] for group in generator.integers(len(places), size=len(places))])
        drawn.append(metrics_of(overlaps[:, chosen]))
    return {name: np.quantile([one[name] for one in drawn], (0.025, 0.975)).tolist() for name in drawn[0]}


def family_of(words: Sequence[str]) -> str:
    """What a phrase tells its thing by: the first of relation, position, size and colour that it has."""
    known = (name for name, family in _FAMILIES.items() if set(words) & set(family.split()))
    return next(known, "name alone")


def box_size_of(share: float) -> str:
    """The class of a box that takes this share of its image."""
    return next(name for name, limit in _BOX_SIZES.items() if share < limit)


def by_group(overlaps: Numbers, groups: Sequence[str]) -> dict[str, dict[str, float]]:
    """The metrics of each group of phrases, with its number of phrases as ``count``."""
    members = {name: np.array(groups) == name for name in dict.fromkeys(groups)}
    return {name: {"count": int(here.sum()), **metrics_of(overlaps[:, here])} for name, here in members.items()}


def fit_baselines(phrases: Sequence[str], boxes: Numbers, vocabulary: Vocabulary) -> dict[str, Numbers]:
    """Boxes told from the words alone: weights ``[V + 1, 4]`` of the words and of a constant, by name.

    ``blind``: ridge regression from all words (Hoerl & Kennard, 1970); ``position only``: from those about position;
    ``constant box``: the median box. ``boxes`` are corners ``[P, 4]`` in fractions of the image.
    """
    counts = _counts(phrases, vocabulary)
    about_position = [family_of([word]) in ("relation", "position") for word in vocabulary.words]
    constant = np.zeros((counts.shape[1], 4))
    constant[-1] = np.median(boxes, axis=0)
    return {
        "blind": _ridge(counts, boxes),
        "position only": _ridge(counts * [*about_position, True], boxes),
        "constant box": constant,
    }


def baseline_metrics(
    baselines: Mapping[str, Any], phrases: Sequence[str], targets: Numbers, sizes: Numbers, vocabulary: Vocabulary
) -> dict[str, dict[str, float]]:
    """Metrics of each baseline of ``fit_baselines``.

    ``targets`` are true corners ``[P, 4]`` in pixels, ``sizes`` width, height, width and height of the images.
    """
    counts = _counts(phrases, vocabulary)
    found = {name: np.clip(counts @ np.asarray(weights), 0, 1) * sizes for name, weights in baselines.items()}
    return {name: metrics_of(overlaps_of(boxes, targets)) for name, boxes in found.items()}


def _counts(phrases: Sequence[str], vocabulary: Vocabulary) -> NDArray[np.float32]:
    """How often each word is in each phrase, and a column of ones ``[P, V + 1]``."""
    places = {word: place for place, word in enumerate(vocabulary.words)}
    counts = np.zeros((len(phrases), len(places) + 1), dtype=np.float32)
    counts[:, -1] = 1
    for row, phrase in zip(counts, phrases, strict=True):
        for word in tokens_of(phrase):
            if word in places:
                row[places[word]] += 1
    return counts


def _ridge(inputs: NDArray[np.float32], targets: Numbers) -> Numbers:
    strength = np.eye(inputs.shape[1])
    strength[-1, -1] = 0  # of the constant
    return np.asarray(np.linalg.lstsq(inputs.T @ inputs + strength, inputs.T @ targets, rcond=None)[0])
