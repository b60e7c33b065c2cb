"""How well classes lie together among feature vectors: the accuracy of a vote of the nearest neighbours."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

_QUERIES, _BANK = 1024, 4096  # rows held at a time


def knn_accuracy(
    vectors: np.ndarray, labels: Tensor, k: int = 20, temperature: float = 0.07, device: torch.device | None = None
) -> float:
    """Leave-one-out accuracy of a weighted vote of the ``k`` nearest neighbours (Wu et al., 2018), 0 to 1.

    Each vector is classed by the ``k`` others whose cosine similarity s to it is highest; each of them votes for its
    own class with weight exp(s / temperature). Rows are read in blocks: memory does not depend on how many there are.

    Args:
        vectors: ``[N, D]``, floats.
        labels: int64 ``[N]``, from 0 on.
        k: neighbours that vote; all others, where there are fewer.
        temperature: of the weights; 0.07 as in the paper.
        device: that computes; unset: the CPU.
    """
    device = device or torch.device("cpu")
    labels = labels.to(device)
    count, num_classes = len(vectors), int(labels.max()) + 1
    right = 0
    bar = tqdm(total=count, desc="nearest neighbours", unit="image", leave=False, disable=None)
    with bar, torch.inference_mode():
        for start in range(0, count, _QUERIES):
            queries = _unit_rows(vectors, start, start + _QUERIES, device)
            similarity, nearest = _nearest(vectors, queries, start, min(k, count - 1))
            votes = torch.zeros(len(queries), num_classes, device=device)
            # Less than the highest one in the exponent, which changes no winner and cannot overflow.
            weights = ((similarity - similarity[:, :1]) / temperature).exp()
            votes.scatter_add_(1, labels[nearest], weights)
            right += int((votes.argmax(1) == labels[start : start + len(queries)]).sum())
            bar.update(len(queries))
    return right / count


def _nearest(vectors: np.ndarray, queries: Tensor, first: int, k: int) -> tuple[Tensor, Tensor]:
    """Similarities ``[Q, k]``, falling, and rows of the ``k`` vectors that are nearest to each query.

    The queries are the rows ``first …``; none is a neighbour of itself.
    """
    best = queries.new_empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    own = torch.arange(first, first + len(queries), device=queries.device)
    for start in range(0, len(vectors), _BANK):
        similarity = queries @ _unit_rows(vectors, start, start + _BANK, queries.device).T
        places = torch.arange(start, start + similarity.shape[1], device=queries.device)
        similarity.masked_fill_(own[:, None] == places, -torch.inf)
        candidates = torch.cat([best, similarity], 1)
        best, picked = candidates.topk(min(k, candidates.shape[1]), 1)
        rows = torch.cat([rows, places.expand(len(queries), -1)], 1).gather(1, picked)
    return best, rows


def _unit_rows(vectors: np.ndarray, start: int, stop: int, device: torch.device) -> Tensor:
    part = torch.from_numpy(vectors[start:stop].astype(np.float32))
    return functional.normalize(part.to(device), dim=1)
