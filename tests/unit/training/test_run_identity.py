"""Which settings a run may go on with: those with which it would stand where it stands."""

import re

import pytest

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.training.phases import STRATEGIES, StrategyInputs, then_mixed
from sat_vg.backbone_finetuning.training.run_identity import changed_course

STAGES = ("stem", "layer1", "layer2")
WITHIN = {"phase": 0, "epoch": 3, "epoch_in_phase": 3, "step_in_epoch": 2}
DONE = {"phase": 1, "epoch": 8, "epoch_in_phase": 0, "step_in_epoch": 0, "finished": True, "phase_best": 0.5}
STOPPED = {**DONE, "epoch": 5}


def phases_of(config):
    plan = StrategyInputs(
        STAGES, config.num_epochs, config.last_layers, config.phase_epochs, config.probe_solver == "exact"
    )
    phases = STRATEGIES[config.strategy or "full"](plan)
    return then_mixed(phases) if config.wise_ft else phases


def changed(then, now, state):
    of_run = FinetuneConfig(dataset_path="x", **{"num_epochs": 8, "pretrained": False, **then})
    return changed_course(of_run, of_run.replace(**now), state, phases_of)


STEP, PLATEAU = {"lr_scheduler": "step"}, {"lr_scheduler": "plateau"}


@pytest.mark.parametrize(
    ("then", "now", "state"),
    [
        (STEP, {"num_epochs": 12}, WITHIN),
        (STEP, {"num_epochs": 4}, WITHIN),
        (PLATEAU, {"num_epochs": 12}, WITHIN),
        (STEP, {"num_epochs": 12}, DONE),
        (PLATEAU, {"num_epochs": 12}, DONE),
        ({}, {"num_epochs": 12}, {"phase": 0, "epoch": 0, "epoch_in_phase": 0, "step_in_epoch": 0}),
        ({**STEP, "strategy": "lp_ft"}, {"num_epochs": 12}, {**WITHIN, "phase": 1, "epoch": 4}),
        ({"strategy": "linear_probe"}, {"num_epochs": 12}, {**DONE, "epoch": 1}),
        ({"strategy": "progressive", "phase_epochs": (2, 6)}, {"phase_epochs": (2, 9), "num_epochs": 11},
         {"phase": 1, "epoch": 2, "epoch_in_phase": 0, "step_in_epoch": 0}),
        ({}, {"strategy": "full"}, WITHIN),
        ({"strategy": "progressive", "phase_epochs": (2, 2, 2, 2)}, {"phase_epochs": None}, WITHIN),
        ({}, {"num_classes": 7, "val_fraction": 0.1, "train_split": "t", "on_bad_image": "skip"}, WITHIN),
        ({}, {"backbone": "microsoft/resnet-50"}, WITHIN),
        ({}, {"weights": "none"}, WITHIN),
        ({"pretrained": True}, {"weights": "IMAGENET1K_V2"}, WITHIN),
        ({"pretrained": True}, {"weights": "DEFAULT"}, WITHIN),
        ({}, {"micro_batch_size": 32}, WITHIN),
        ({}, {"early_stopping_patience": 50}, WITHIN),
        ({}, {"early_stopping_patience": 0}, WITHIN),
        ({}, {"early_stopping_patience": 4}, WITHIN),
        ({}, {"momentum": 0.1, "lr_gamma": 0.3, "lr_step_size": 3}, WITHIN),
        ({"ema_decay": 0.9}, {"best_weights": "average"}, WITHIN),
        ({}, {"ema_decay": 0.9, "best_weights": "trained"}, WITHIN),
        ({"freeze_layers": 2}, {"freeze_early_layers": 2}, WITHIN),
        ({"use_augmentation": False}, {"use_augmentation": True, "augmentation": "none"}, WITHIN),
        ({}, {"num_workers": 7, "log_every": 3, "save_frequency": 2, "device": "cpu"}, WITHIN),
    ],
)  # fmt: skip
def test_what_leaves_the_course_so_far_as_it_is(then, now, state):
    assert changed(then, now, state) == []


@pytest.mark.parametrize(
    ("then", "now", "state", "part"),
    [
        ({}, {"num_epochs": 12}, WITHIN, "num_epochs: the run has 8, now 12 (the learning rate of the epochs so far"),
        ({}, {"num_epochs": 12}, DONE, "the learning rate of the epochs so far"),
        (STEP, {"num_epochs": 3}, WITHIN, "epoch 4 of this phase has begun"),
        (STEP, {"num_epochs": 6}, DONE, "it has finished"),
        (STEP, {"num_epochs": 12}, STOPPED, "it has finished"),
        (STEP, {"num_epochs": 12}, {**DONE, "phase_best": None}, "a version of sat_vg that kept too little"),
        ({**STEP, "warmup_epochs": 5.0}, {"num_epochs": 12}, WITHIN, "the learning rate of the epochs so far"),
        ({**STEP, "image_size": 64, "train_image_size": (32, 64)}, {"num_epochs": 12}, WITHIN, "the image sizes"),
        ({**STEP, "wise_ft": True}, {"num_epochs": 12}, {**DONE, "phase": 2, "epoch": 9}, "it has finished"),
        ({"strategy": "progressive"}, {"num_epochs": 12}, {**WITHIN, "phase": 1}, "phases that are behind it"),
        ({}, {"strategy": "linear_probe"}, WITHIN, "strategy: the run has None, now 'linear_probe'"),
        ({}, {"early_stopping_patience": 2}, WITHIN, "early_stopping_patience: the run has 10, now 2"),
        (
            {"early_stopping_patience": 3},
            {"early_stopping_patience": 20},
            STOPPED,
            "early_stopping_patience: the run has 3",
        ),
        (
            {"freeze_early_layers": True},
            {"freeze_early_layers": 1},
            WITHIN,
            "freeze_early_layers: the run has True, now 1",
        ),
        (STEP, {"lr_gamma": 0.3}, WITHIN, "lr_gamma: the run has 0.1, now 0.3"),
        ({"optimizer": "sgd"}, {"momentum": 0.1}, WITHIN, "momentum: the run has 0.9, now 0.1"),
        ({}, {"micro_batch_size": 8}, WITHIN, "micro_batch_size: the run has None, now 8"),
        ({"pretrained": True}, {"weights": "IMAGENET1K_V1"}, WITHIN, "weights: the run has None"),
        ({"pretrained": True}, {"pretrained": False}, WITHIN, "weights: the run has 'IMAGENET1K_V2', now 'none'"),
        ({}, {"use_augmentation": False}, WITHIN, "augmentation: the run has None, now 'none'"),
        ({}, {"augmentation": "basic"}, WITHIN, "augmentation: the run has None, now 'basic'"),
        ({}, {"seed": 3, "learning_rate": 0.5}, WITHIN, "seed: the run has 0, now 3"),
    ],
)
def test_what_changes_it_is_named(then, now, state, part):
    assert part in "\n".join(changed(then, now, state))


@pytest.mark.parametrize(
    ("then", "now"), [(STEP, {"lr_scheduler": "cosine"}), ({}, {"optimizer": "sgd"}), ({}, {"batch_size": 5})]
)
def test_no_line_names_two_values_that_are_the_same(then, now):
    lines = changed(then, now, WITHIN)
    assert lines
    for line in lines:
        before, after = re.search(r"the run has (.*?), now (\S+)", line).groups()
        assert before != after, line
