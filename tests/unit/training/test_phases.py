"""Strategies as lists of phases."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sat_vg.backbone_finetuning.configs.choices import STRATEGIES_OF_SEVERAL_PHASES
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.training.phases import (
    STRATEGIES,
    Phase,
    StrategyInputs,
    divide,
    then_mixed,
    total_epochs,
)
from sat_vg.backbone_finetuning.utils.errors import ConfigError

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


def phases(strategy, num_epochs=10, **more):
    return STRATEGIES[strategy](StrategyInputs(STAGES, num_epochs, **more))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("is_exact", [True, False])
def test_the_epochs_of_all_phases_are_known_without_a_backbone(strategy, is_exact):
    found = phases(strategy, probe_is_exact=is_exact)
    assert total_epochs(strategy, 10, is_exact, False) == sum(phase.epochs for phase in found)
    assert total_epochs(strategy, 10, is_exact, True) == sum(phase.epochs for phase in then_mixed(found))


def test_the_configuration_knows_which_strategies_have_several_phases():
    assert [name for name in STRATEGIES if len(phases(name)) > 1] == list(STRATEGIES_OF_SEVERAL_PHASES)


def test_one_phase_strategies():
    assert phases("full") == [Phase("full", 10, STAGES)]
    assert phases("linear_probe") == [Phase("linear_probe", 10, ())]
    assert phases("last_layers") == [Phase("last_layers", 10, ("layer4",))]
    assert phases("last_layers", last_layers=2)[0].trainable_stages == ("layer3", "layer4")
    with pytest.raises(ConfigError, match=r"last_layers = 6: this backbone has 5 stages: stem, layer1"):
        phases("last_layers", last_layers=6)


def test_progressive_takes_in_one_stage_after_another():
    found = phases("progressive", 12)
    assert [p.trainable_stages for p in found] == [STAGES[5 - n :] for n in range(6)]
    assert [p.epochs for p in found] == [2] * 6
    assert [p.name for p in found] == ["head", "last_1", "last_2", "last_3", "last_4", "last_5"]
    few = phases("progressive", 3)
    assert [p.trainable_stages for p in few] == [(), ("layer3", "layer4"), STAGES]
    given_epochs = phases("progressive", 6, phase_epochs=(1, 2, 3))
    assert [(p.epochs, len(p.trainable_stages)) for p in given_epochs] == [(1, 0), (2, 2), (3, 5)]
    for wrong in ({"num_epochs": 1}, {"phase_epochs": (1,) * 7}, {"phase_epochs": (10,)}):
        with pytest.raises(ConfigError, match=r"it needs 2 to 6 \(its stages are stem, layer1"):
            phases("progressive", **wrong)


def test_progressive_adds_the_stages_that_are_named():
    found = phases("progressive", 6, phase_stages=(("head",), ("layer4",), ("layer2", "layer3"), ("all",)))
    assert [(phase.name, phase.trainable_stages) for phase in found] == [
        ("head", ()),
        ("layer4", ("layer4",)),
        ("layer2+layer3", ("layer2", "layer3", "layer4")),
        ("full", STAGES),
    ]
    assert sum(phase.epochs for phase in found) == 6
    given = phases("progressive", 9, phase_stages=(("head",), ("all",)), phase_epochs=(2, 7))
    assert [phase.epochs for phase in given] == [2, 7]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((("head",), ("layer9",)), "'layer9' is no stage of this backbone; it has head, "),
        ((("layer4",), ("head", "layer4")), "'head, layer4' adds nothing to the phases before it"),
        ((("head",), ("layer4",), ("layer3",), ("all",)), "this strategy has 4 phases of at least one epoch each"),
    ],
)
def test_named_stages_that_do_not_work(stages, message):
    with pytest.raises(ConfigError, match=message):
        phases("progressive", 3, phase_stages=stages)


def test_an_exact_probe_takes_one_epoch_of_its_own():
    assert phases("linear_probe", probe_is_exact=True) == [Phase("linear_probe", 1, (), method="exact_head")]
    assert [(p.epochs, p.method) for p in phases("lp_ft", probe_is_exact=True)] == [
        (1, "exact_head"),
        (10, "gradient"),
    ]


def test_lp_ft_probes_first():
    assert [(p.epochs, p.trainable_stages) for p in phases("lp_ft")] == [(2, ()), (8, STAGES)]
    assert [p.epochs for p in phases("lp_ft", 2)] == [1, 1]
    assert [p.epochs for p in phases("lp_ft", 10, phase_epochs=(7, 3))] == [7, 3]
    with pytest.raises(ConfigError, match="num_epochs = 1: this strategy has 2 phases"):
        phases("lp_ft", 1)
    with pytest.raises(ConfigError, match=r"phase_epochs = \[1, 2, 3\]: this strategy has 2 phases"):
        phases("lp_ft", 6, phase_epochs=(1, 2, 3))


def test_mixing_comes_after_the_last_phase_and_wins_ties():
    found = then_mixed(phases("lp_ft", probe_is_exact=True))
    assert found[:-1] == phases("lp_ft", probe_is_exact=True)
    assert found[-1] == Phase("wise_ft", 1, STAGES, method="mix", wins_ties=True)
    assert [p.verb for p in found] == ["solved for", "trained", "mixed"]


@pytest.mark.parametrize("is_exact", [True, False])
def test_lp_ft_is_careful_with_the_head_that_it_has_fitted(is_exact):
    found = phases("lp_ft", probe_is_exact=is_exact)
    assert [(p.keeps_statistics, p.lr_scale) for p in found] == [(False, 1.0), (True, 0.3)]
    assert [p.details for p in found] == ["", " at 0.3 of the learning rate, batch norm keeps its statistics"]
    random_weights = phases("lp_ft", probe_is_exact=is_exact, is_pretrained=False)
    assert all(not p.keeps_statistics and p.lr_scale == 1 for p in random_weights)  # there is nothing to keep
    assert not any(p.keeps_statistics for name in STRATEGIES if name != "lp_ft" for p in phases(name))


@given(st.integers(1, 40), st.lists(st.floats(0.1, 10), min_size=1, max_size=20))
def test_epochs_are_divided_without_loss(extra, shares):
    total = len(shares) + extra
    parts = divide(total, shares)
    assert sum(parts) == total
    assert len(parts) == len(shares)
    assert min(parts) >= 1


@given(st.sampled_from(sorted(STRATEGIES)), st.integers(2, 60), st.integers(2, 30))
def test_every_strategy_fills_the_epochs_and_never_freezes_again(strategy, num_epochs, num_stages):
    stages = tuple(f"stage{n}" for n in range(num_stages))
    found = STRATEGIES[strategy](StrategyInputs(stages, num_epochs))
    assert sum(p.epochs for p in found) == num_epochs
    for before, after in pairwise(found):
        assert set(before.trainable_stages) < set(after.trainable_stages)
    assert all(p.trainable_stages == stages[len(stages) - len(p.trainable_stages) :] for p in found)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"strategy": "lp_ft", "freeze_layers": 2}, "says what is trained, and so does freeze_early_layers = 2"),
        ({"strategy": "full", "freeze_early_layers": True}, "and so does freeze_early_layers = True"),
        ({"strategy": "gradual"}, "strategy = 'gradual': must be full or linear_probe"),
        ({"last_layers": 2, "strategy": "full"}, "has no effect with strategy = 'full'"),
        ({"strategy": "full", "phase_epochs": (10, 10)}, "which has one phase"),
        ({"strategy": "progressive", "phase_epochs": (4, 4), "num_epochs": 20}, "add up to 8, but num_epochs = 20"),
        ({"strategy": "lp_ft", "phase_epochs": (4, 16), "probe_solver": "exact"}, "an exact probe is solved for"),
        ({"probe_solver": "sgd"}, "has no effect with strategy = None"),
        ({"strategy": "lp_ft", "phase_epochs": (0, 20)}, "must be a list of whole numbers of 1 or more"),
        ({"layer_decay": 0.0}, "must be a number above 0 and up to 1"),
        (
            {"strategy": "linear_probe", "wise_ft": True, "probe_solver": "exact"},
            "solves for the head, so there are no weights before",
        ),
        ({"wise_ft": 1}, "wise_ft = 1: must be true or false"),
        (
            {"best_weights": "raw", "ema_decay": 0.9},
            "best_weights = 'raw': is retired: with an ema_decay above 0 the average is validated",
        ),
        ({"ema_decay": 1.0}, "must be a number from 0 up to but not including 1"),
    ],
)
def test_contradictions_are_named(wrong, message):
    with pytest.raises(ConfigError) as caught:
        FinetuneConfig(**wrong)
    assert message in str(caught.value)
