"""The exact linear probe."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from sat_vg.backbone_finetuning.training.linear_probe import (
    GOALS,
    NUM_FOLDS,
    STRENGTHS,
    TO_THE_END,
    Problem,
    _folds_of_labels,
    _folds_of_sets,
    _solve,
    solve_linear_probe,
)


def clusters(count=300, size=12, num_classes=4, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (count,), generator=generator)
    centres = torch.randn(num_classes, size, generator=generator)
    features = centres[labels] + spread * torch.randn(count, size, generator=generator)
    return features * torch.logspace(-3, 3, size) + torch.linspace(-50, 50, size), labels


def solve(features, labels, seed=0, **more):
    return solve_linear_probe(features, labels, 4, torch.Generator().manual_seed(seed), **more)


def test_it_is_the_optimum_that_another_solver_finds():
    features, labels = clusters()
    probe = solve(features, labels)
    x = features.double().numpy()
    standardised = (x - x.mean(0)) / x.std(0)
    reference = LogisticRegression(C=1 / (probe.strength * len(labels)), tol=1e-10, max_iter=10_000)
    reference.fit(standardised, labels.numpy())
    mine = features.double().numpy() @ probe.weight.double().numpy().T + probe.bias.double().numpy()
    theirs = reference.decision_function(standardised)
    centred = [logits - logits.mean(1, keepdims=True) for logits in (mine, theirs)]
    np.testing.assert_allclose(*centred, atol=2e-3)  # the folded weights are float32
    assert (mine.argmax(1) == reference.predict(standardised)).mean() > 0.995


def test_scale_and_offset_of_the_features_change_nothing():
    features, labels = clusters()
    one, other = solve(features, labels), solve(features * 40 + 7, labels)
    assert one.strength == other.strength
    torch.testing.assert_close(
        (features @ one.weight.T + one.bias).softmax(1),
        ((features * 40 + 7) @ other.weight.T + other.bias).softmax(1),
        atol=2e-3,
        rtol=0,
    )


def test_the_strength_is_chosen_on_images_that_were_held_out():
    noisy, labels = clusters(count=120, size=100, spread=12.0)
    chosen = solve(noisy, labels)
    assert STRENGTHS[-1] < chosen.strength <= STRENGTHS[0]
    assert 0 < chosen.held_out_score < 1
    assert chosen.held_out_loss > 0


def redundant(count, seed, num_classes=7, signal=12, noise=300):
    """Features as a network gives them: many, most of them noise, so that weak penalties fit what is not there."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, signal, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(num_classes, (count,), generator=generator)
    features = 0.8 * centres[labels] + torch.randn(count, signal, generator=generator)
    return torch.cat([features, torch.randn(count, noise, generator=generator)], 1), labels


@pytest.mark.parametrize("seed", [0, 4])
def test_where_accuracy_is_flat_the_loss_of_unseen_images_chooses_the_strength(seed):
    features, labels = redundant(700, seed)
    unseen, their_labels = redundant(4000, seed + 50)
    probe = solve_linear_probe(features, labels, 7, torch.Generator().manual_seed(seed))
    standardised = (features - features.mean(0)).double() / features.std(0, correction=0)
    problem = Problem(standardised, labels, 7, True, GOALS["single_label"])
    losses, accuracies = [], []
    for strength in STRENGTHS:
        found = _solve(problem, strength, TO_THE_END)
        weight = (found[:, :-1] / features.std(0, correction=0)).float()
        logits = (unseen - features.mean(0)) @ weight.T + found[:, -1]
        losses.append(float(torch.nn.functional.cross_entropy(logits, their_labels)))
        accuracies.append(float((logits.argmax(1) == their_labels).double().mean()))
    place = STRENGTHS.index(probe.strength)
    assert max(accuracies) - min(accuracies[1:]) < 0.07
    assert max(losses[1:]) > 2 * min(losses)
    assert losses[place] == min(losses)
    assert probe.held_out_loss == pytest.approx(losses[place], rel=0.25)


def test_images_are_spread_over_the_folds_by_class():
    labels = torch.tensor([0] * 51 + [1] * 7 + [2] * 3 + [3])[torch.randperm(62, generator=torch.Generator())]
    folds = _folds_of_labels(labels, 4, torch.Generator().manual_seed(0))
    for name in range(4):
        counts = folds[labels == name].bincount(minlength=NUM_FOLDS)
        assert counts.max() - counts.min() <= 1
    assert sorted(folds.bincount().tolist()) == [12, 12, 12, 13, 13]
    assert torch.equal(folds, _folds_of_labels(labels, 4, torch.Generator().manual_seed(0)))
    assert not torch.equal(folds, _folds_of_labels(labels, 4, torch.Generator().manual_seed(1)))


def test_a_class_of_one_image_chooses_nothing():
    """Held out, it is of a class that the others do not have: whatever the strength, it could not be learnt."""
    features, labels = redundant(300, 5)
    labels[labels == 6] = 5
    plain = solve_linear_probe(features, labels, 7, torch.Generator().manual_seed(0))
    labels[17] = 6
    probe = solve_linear_probe(features, labels, 7, torch.Generator().manual_seed(0))
    assert probe.strength == plain.strength
    assert probe.held_out_loss == pytest.approx(plain.held_out_loss, abs=0.1)
    assert (features @ probe.weight.T + probe.bias).argmax(1)[17] == 6
    # One image of each class: there is nothing to choose by.
    single = solve_linear_probe(features[:12], torch.arange(12), 12, torch.Generator().manual_seed(0))
    assert single.held_out_loss is None
    assert single.weight.isfinite().all()


def test_the_same_seed_gives_the_same_bits():
    features, labels = clusters()
    assert torch.equal(solve(features, labels).weight, solve(features, labels).weight)


def test_odd_data():
    features, labels = clusters(count=40)
    features[:, 3] = 5.0  # says nothing
    probe = solve(features, labels)
    assert probe.weight[:, 3].abs().max() == 0
    assert probe.weight.isfinite().all()
    few = solve(features[:4], labels[:4])
    assert few.held_out_score is None
    without = solve(features, labels, has_bias=False)
    assert without.bias.abs().max() == 0
    single = solve(*clusters(count=30, num_classes=1))
    assert ((clusters(count=30, num_classes=1)[0] @ single.weight.T + single.bias).argmax(1) == 0).all()


@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_it_classifies_images_it_has_not_seen(spread):
    features, labels = clusters(count=800, spread=spread)
    probe = solve(features[:500], labels[:500])
    accuracy = ((features[500:] @ probe.weight.T + probe.bias).argmax(1) == labels[500:]).double().mean()
    reference = LogisticRegression(max_iter=5000)
    x = features.double().numpy()
    standardised = (x - x[:500].mean(0)) / x[:500].std(0)
    reference.fit(standardised[:500], labels[:500])
    assert accuracy > reference.score(standardised[500:], labels[500:]) - 0.02


def sets(count=300, size=12, num_classes=4, seed=0):
    """Features and bool labels of which an image has several or none, of unequal frequency."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, size, generator=generator)
    directions = torch.randn(num_classes, size, generator=generator)
    noise = 2 * torch.randn(count, num_classes, generator=generator)
    labels = features @ directions.T + noise > torch.tensor([-1.0, 0, 1, 5])[:num_classes]
    return features * torch.logspace(-2, 2, size) + torch.linspace(-5, 5, size), labels


def test_of_several_classes_each_is_a_logistic_regression_of_its_own():
    features, labels = sets()
    assert (labels.sum(1) == 0).any()
    assert (labels.sum(1) > 1).any()
    probe = solve(features, labels, task="multi_label")
    assert 0.5 < probe.held_out_score < 1
    x = features.double().numpy()
    standardised = (x - x.mean(0)) / x.std(0)
    mine = x @ probe.weight.double().numpy().T + probe.bias.double().numpy()
    for place in range(4):
        reference = LogisticRegression(C=1 / (probe.strength * len(labels)), tol=1e-10, max_iter=10_000)
        reference.fit(standardised, labels[:, place].numpy())
        np.testing.assert_allclose(mine[:, place], reference.decision_function(standardised), atol=2e-3)
    assert torch.equal(probe.weight, solve(features, labels, task="multi_label").weight)


def test_of_several_classes_too_the_loss_of_held_out_images_chooses_the_strength():
    features, labels = sets(count=150, size=80)
    chosen = solve(features, labels, task="multi_label")
    folds = _folds_of_sets(labels, 4, torch.Generator().manual_seed(0))
    problem = Problem(
        (features - features.mean(0)).double() / features.std(0, correction=0), labels, 4, True, GOALS["multi_label"]
    )
    losses, precisions = [], []
    for strength in STRENGTHS:
        logits = torch.zeros(150, 4, dtype=torch.float64)
        for number in range(NUM_FOLDS):
            out = folds == number
            found = _solve(
                problem._replace(features=problem.features[~out], labels=labels[~out]), strength, TO_THE_END
            )
            logits[out] = problem.features[out] @ found[:, :-1].T + found[:, -1]
        each = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.double(), reduction="none").sum(1)
        losses.append(float(each.mean()))
        precisions.append(average_precision_score(labels.numpy(), logits.numpy(), average="macro"))
    place = STRENGTHS.index(chosen.strength)
    assert place == min(range(len(losses)), key=losses.__getitem__)
    assert chosen.held_out_loss == pytest.approx(losses[place], rel=1e-3)
    assert chosen.held_out_score == pytest.approx(precisions[place], abs=1e-3)
    shares = [labels[folds == number].sum(0) / labels.sum(0) for number in range(NUM_FOLDS)]
    torch.testing.assert_close(torch.stack(shares), torch.full((NUM_FOLDS, 4), 0.2), atol=0.05, rtol=0)


def test_several_classes_of_odd_data():
    features, labels = sets(count=40)
    labels[:, 1], labels[:, 2] = False, True  # a class that no image has, and one that all have
    probe = solve(features, labels, task="multi_label")
    assert probe.weight.isfinite().all()
    shares = (features @ probe.weight.T + probe.bias).sigmoid()
    assert (shares[:, 1] < 0.01).all()
    assert (shares[:, 2] > 0.99).all()
    assert solve(features[:4], labels[:4], task="multi_label").held_out_score is None
