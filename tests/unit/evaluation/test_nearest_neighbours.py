"""The vote of the nearest neighbours: the one of scikit-learn, in blocks."""

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier

from sat_vg.backbone_finetuning.evaluation.nearest_neighbours import knn_accuracy


def test_the_neighbours_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 7, 4500)  # more than one block of queries, and of what they are compared with
    vectors = (generator.normal(size=(7, 16))[labels] + 1.5 * generator.normal(size=(4500, 16))).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    theirs = KNeighborsClassifier(21, weights=lambda d: np.exp((1 - d**2 / 2) / 0.07) * (d > 1e-3))  # not oneself
    wanted = (theirs.fit(unit, labels).predict(unit) == labels).mean()
    found = knn_accuracy(vectors, torch.from_numpy(labels))
    assert abs(found - wanted) <= 3 / 4500  # votes that are equal but for rounding
    assert 0.5 < found < 0.95


def test_few_neighbours():
    vectors = np.eye(4, dtype=np.float32)[[0, 0, 1, 1]]
    assert knn_accuracy(vectors, torch.tensor([0, 0, 1, 1])) == 1
    assert knn_accuracy(vectors, torch.tensor([0, 1, 0, 1])) == 0
