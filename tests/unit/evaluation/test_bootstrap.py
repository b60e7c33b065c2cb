import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, precision_recall_fscore_support

from sat_vg.backbone_finetuning.evaluation import bootstrap
from sat_vg.backbone_finetuning.evaluation.bootstrap import bootstrap_intervals, bootstrap_intervals_of_sets
from sat_vg.backbone_finetuning.evaluation.calibration import expected_calibration_error, reliability
from sat_vg.backbone_finetuning.evaluation.metrics import ValidationSums, averages, share_of_true_class


def test_class_scores_with_classes_that_are_absent_or_never_predicted():
    matrix = [[5, 1, 0, 0], [2, 3, 0, 1], [0, 0, 0, 0], [0, 4, 0, 0]]
    labels = [r for r, row in enumerate(matrix) for count in row for _ in range(count)]
    predicted = [c for row in matrix for c, count in enumerate(row) for _ in range(count)]
    sums = ValidationSums(4, torch.device("cpu"))
    sums.add(torch.eye(4)[predicted], torch.eye(4)[labels], torch.zeros(()))
    rows = sums.result().rows()
    expected = precision_recall_fscore_support(labels, predicted, labels=range(4), zero_division=0)
    for row, *theirs in zip(rows, *expected, strict=True):
        assert list(row.values()) == pytest.approx(theirs, abs=1e-15)
    for name, values in averages(rows).items():
        theirs = precision_recall_fscore_support(
            labels, predicted, labels=sorted(set(labels)), average=name, zero_division=0
        )
        assert list(values.values()) == pytest.approx(theirs[:3], abs=1e-15)
    assert share_of_true_class(matrix)[1:3] == [[2 / 6, 3 / 6, 0, 1 / 6], [0, 0, 0, 0]]


def drawn(count=40, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    predicted = torch.where(torch.rand(count, generator=generator) < 0.7, labels, labels.roll(1))
    return predicted, labels, 0.5 + 0.5 * torch.rand(count, generator=generator, dtype=torch.float64)


def test_intervals_are_those_of_a_plain_loop(monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 100)
    predicted, labels, confidences = drawn()
    found = bootstrap_intervals(predicted, labels, confidences, 4, seed=3)
    generator = torch.Generator().manual_seed(3)
    scores = []
    for places in torch.randint(40, (100, 40), generator=generator):
        said, true, hits = predicted[places], labels[places], (predicted == labels)[places]
        present = sorted(set(true.tolist()))
        scores.append(
            [
                float(hits.double().mean()),
                f1_score(true, said, labels=present, average="macro", zero_division=0),
                expected_calibration_error(reliability(confidences[places], hits)),
            ]
        )
    for name, column in zip(("accuracy", "macro_f1", "ece"), np.array(scores).T, strict=True):
        assert found[name] == pytest.approx(np.percentile(column, [2.5, 97.5]), abs=1e-12)


def test_intervals_depend_on_the_seed_alone_and_shrink_with_the_number_of_images(monkeypatch):
    few = bootstrap_intervals(*drawn(), 4)
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_ONCE", 123)
    assert bootstrap_intervals(*drawn(), 4) == few
    monkeypatch.undo()
    many = bootstrap_intervals(*drawn(4000), 4)
    low, high = few["accuracy"]
    assert low < 0.7 < high
    assert many["accuracy"][1] - many["accuracy"][0] < 0.2 * (high - low)
    # A normal approximation says 1.96 standard errors to either side.
    assert many["accuracy"][1] - many["accuracy"][0] == pytest.approx(2 * 1.96 * (0.7 * 0.3 / 4000) ** 0.5, rel=0.1)


def drawn_sets(count=60, classes=4, seed=0):
    """Logits with ties, and classes of which the rarest is lacking in many resamples."""
    generator = torch.Generator().manual_seed(seed)
    has = torch.rand(count, classes, generator=generator) < torch.tensor([0.5, 0.3, 0.2, 0.03])[:classes]
    has[0, -1] = True
    logits = (2 * has.float() - 1 + torch.randn(count, classes, generator=generator)).mul(3).round() / 3
    return logits, logits >= 0, has


def test_intervals_of_several_classes_are_those_of_a_plain_loop(monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 100)
    logits, given, has = drawn_sets()
    found = bootstrap_intervals_of_sets(logits, given, has, seed=3)
    generator = torch.Generator().manual_seed(3)
    scores = []
    for places in torch.randint(60, (100, 60), generator=generator):
        present = has[places].any(0)
        true, said, rank = (part[places][:, present].numpy() for part in (has, given, logits))
        # micro F1 counts what is wrongly given of absent classes too
        micro = f1_score(has[places].numpy(), given[places].numpy(), average="micro", zero_division=0)
        scores.append(
            [
                average_precision_score(true, rank, average="macro"),
                accuracy_score(has[places].numpy(), given[places].numpy()),
                f1_score(true, said, average="macro", zero_division=0),
                micro,
            ]
        )
    assert len({tuple(has[places].any(0).tolist()) for places in torch.randint(60, (100, 60))}) > 1
    for name, column in zip(("map", "accuracy", "macro_f1", "micro_f1"), np.array(scores).T, strict=True):
        assert found[name] == pytest.approx(np.percentile(column, [2.5, 97.5]), abs=1e-12), name


def test_intervals_of_several_classes_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch):
    few = bootstrap_intervals_of_sets(*drawn_sets())
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_ONCE", 1234)
    again = bootstrap_intervals_of_sets(*drawn_sets())
    for name, ends in few.items():
        assert again[name] == pytest.approx(ends, abs=1e-12)
    logits, given, has = drawn_sets(4000)
    many = bootstrap_intervals_of_sets(logits, given, has)
    whole = average_precision_score(has.numpy(), logits.numpy(), average="macro")
    assert many["map"][0] < whole < many["map"][1]
    assert many["map"][1] - many["map"][0] < 0.3 * (few["map"][1] - few["map"][0])
