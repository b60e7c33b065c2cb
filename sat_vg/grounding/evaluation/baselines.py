"""What can be had without the image: the best constant box, and boxes told from the words alone."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sat_vg.grounding.data.images import ImageStore
from sat_vg.grounding.data.records import Record
from sat_vg.grounding.data.words import tokens_of
from sat_vg.grounding.evaluation.metrics import family_of, metrics_of, overlaps_of

_STRENGTH = 1.0  # L2 of the regression
_POSITION = {"relation", "position"}


def baselines_of(train: Sequence[Record], test: Sequence[Record], store: ImageStore) -> dict[str, dict[str, float]]:
    """Metrics of boxes that no image was looked at for.

    ``blind``: ridge regression from the phrase's words (Hoerl & Kennard, 1970); ``position only``: from its words
    about position alone; ``constant box``: the median box.

    Args:
        train: what they are fitted to.
        test: what they are measured on.
        store: of the images, for their sizes.
    """
    words = sorted({word for record in train for word in tokens_of(record.phrase)})
    about_position = [word for word in words if family_of([word]) in _POSITION]
    boxes = _fractions(train, store)
    found = {
        "blind": _ridge(_bag(train, words), boxes, _bag(test, words)),
        "position only": _ridge(_bag(train, about_position), boxes, _bag(test, about_position)),
        "constant box": np.median(boxes, axis=0, keepdims=True).repeat(len(test), axis=0),
    }
    sizes = _sizes(test, store)
    targets = np.array([record.box for record in test], dtype=np.float64)
    return {name: metrics_of(overlaps_of(np.clip(box, 0, 1) * sizes, targets)) for name, box in found.items()}


def _fractions(records: Sequence[Record], store: ImageStore) -> NDArray[np.float64]:
    return np.array([record.box for record in records], dtype=np.float64) / _sizes(records, store)


def _sizes(records: Sequence[Record], store: ImageStore) -> NDArray[np.float64]:
    images = [store.boxes[record.image] for record in records]
    return np.array([(image.width, image.height, image.width, image.height) for image in images], dtype=np.float64)


def _bag(records: Sequence[Record], words: Sequence[str]) -> NDArray[np.float64]:
    """Counts of words ``[P, V + 1]``, and a column of ones."""
    places = {word: place for place, word in enumerate(words)}
    counts = np.zeros((len(records), len(words) + 1))
    counts[:, -1] = 1
    for row, record in enumerate(records):
        for word in tokens_of(record.phrase):
            if word in places:
                counts[row, places[word]] += 1
    return counts


def _ridge(
    inputs: NDArray[np.float64], targets: NDArray[np.float64], test: NDArray[np.float64]
) -> NDArray[np.float64]:
    strength = _STRENGTH * np.eye(inputs.shape[1])
    strength[-1, -1] = 0
    weights = np.linalg.lstsq(inputs.T @ inputs + strength, inputs.T @ targets, rcond=None)[0]
    return np.asarray(test @ weights)
