"""Metrics of grounding against a second implementation."""

import numpy as np
import pytest

from sat_vg.grounding.metrics import (
    box_size_of,
    by_group,
    family_of,
    intervals_of,
    metrics_of,
    overlaps_of,
)


def boxes(count, seed):
    generator = np.random.default_rng(seed)
    corner, size = generator.uniform(0, 80, (count, 2)), generator.uniform(1, 40, (count, 2))
    return np.hstack([corner, corner + size])


def test_metrics_equal_a_second_implementation():
    found, targets = boxes(200, 0), boxes(200, 1)
    found[::2] = targets[::2] + np.random.default_rng(2).uniform(-4, 4, (100, 4))
    ious, inner, outer = [], 0.0, 0.0
    for a, b in zip(found.tolist(), targets.tolist(), strict=True):
        width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
        height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        area_a, area_b = max(0, a[2] - a[0]) * max(0, a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
        ious.append(width * height / (area_a + area_b - width * height))
        inner, outer = inner + width * height, outer + area_a + area_b - width * height
    expected = {f"pr@{t}": sum(iou >= t for iou in ious) / 200 for t in (0.5, 0.6, 0.7, 0.8, 0.9)}
    expected |= {"mean_iou": sum(ious) / 200, "cum_iou": inner / outer}
    assert metrics_of(overlaps_of(found, targets)) == pytest.approx(expected)
    assert 0.1 < expected["pr@0.5"] < 0.6


def test_intervals_hold_the_value_and_go_by_image():
    found, targets = boxes(60, 0), boxes(60, 0)
    found[30:] = boxes(30, 5)
    overlaps = overlaps_of(found, targets)
    value = metrics_of(overlaps)["mean_iou"]
    alone = intervals_of(overlaps, [str(number) for number in range(60)])["mean_iou"]
    in_two = intervals_of(overlaps, ["a"] * 30 + ["b"] * 30)["mean_iou"]
    assert alone[0] < value < alone[1]
    assert in_two[1] - in_two[0] > alone[1] - alone[0]


@pytest.mark.parametrize(
    ("phrase", "family"),
    [
        ("the ship to the left of the tank", "relation"),
        ("the large ship on the left", "position"),
        ("the large red ship", "size"),
        ("the red ship", "colour"),
        ("the ship", "name alone"),
    ],
)
def test_phrases_are_grouped(phrase, family):
    assert family_of(phrase.split()) == family


def test_groups_are_measured_by_themselves():
    targets = boxes(4, 0)
    overlaps = overlaps_of(np.vstack([targets[:2], targets[2:] + 500]), targets)
    found = by_group(overlaps, ["a", "a", "b", "b"])
    assert (found["a"]["pr@0.5"], found["b"]["pr@0.5"], found["a"]["count"]) == (1.0, 0.0, 2)
    assert [box_size_of(share) for share in (0.001, 0.02, 0.5)] == [
        "small (below 1 %)", "medium (1 to 5 %)", "large (5 % and above)",
    ]  # fmt: skip
