"""Defaults make room for what was set; only settings that somebody chose can contradict one another."""

import copy
import pickle

import pytest

from sat_vg.backbone_finetuning.configs.command_line import parse_command_line
from sat_vg.backbone_finetuning.configs.finetune_config import SCENES_DEFAULTS, FinetuneConfig
from sat_vg.backbone_finetuning.configs.settings import shipped_defaults
from sat_vg.backbone_finetuning.utils.errors import ConfigError

LP_FT = {"learning_rate": 1e-3, "label_smoothing": 0.1}
# What somebody set, what makes room for it, and what that would contradict if it were set as well.
CASES = [
    ({"num_epochs": 2, "lr_scheduler": "plateau", "early_stopping_patience": 5}, {"lr_step_size": 2}, 7),
    ({"lr_scheduler": "plateau", "early_stopping_patience": 2}, {"lr_step_size": 1}, 2),
    ({"lr_scheduler": "plateau", "lr_step_size": 15}, {"early_stopping_patience": 30}, 10),
    ({"warmup_epochs": 25.5}, {"num_epochs": 26}, 20),
    ({"learning_rate": 1e-7}, {"min_lr": 1e-9}, 1e-6),
    ({"min_lr": 1e-3}, {"learning_rate": 1e-3}, 3e-4),
    ({"micro_batch_size": 64}, {"batch_size": 64}, 32),
    ({"unfreeze_layers": ("layer4",)}, {"freeze_early_layers": True}, False),
    ({"last_layers": 2}, {"strategy": "last_layers"}, "full"),
    ({"strategy": "lp_ft", "phase_epochs": (2, 3)}, {"probe_solver": "sgd", "num_epochs": 5, **LP_FT}, "exact"),
    ({"strategy": "progressive", "phase_epochs": (2, 3, 4)}, {"num_epochs": 9}, 20),
    ({"phase_stages": "head; all", "phase_epochs": (2, 3)}, {"strategy": "progressive", "num_epochs": 5}, "full"),
    ({"strategy": "linear_probe", "wise_ft": True}, {"probe_solver": "sgd"}, "exact"),
    ({"strategy": "linear_probe", "train_image_size": (96,)}, {"probe_solver": "sgd"}, "exact"),
    ({"strategy": "linear_probe", "shard_weights": True}, {"probe_solver": "sgd"}, "exact"),
    ({"strategy": "lp_ft", "shard_weights": True}, {"probe_solver": "sgd", **LP_FT}, "exact"),
    ({"strategy": "lp_ft", "shard_weights": True, "num_epochs": 4}, {"probe_solver": "sgd"}, "exact"),
    ({"train_image_size": tuple(range(32, 64))}, {"num_epochs": 32}, 20),
]


@pytest.mark.parametrize(("chosen", "adapted", "contradiction"), CASES)
def test_a_default_makes_room_and_a_line_says_so(chosen, adapted, contradiction):
    config = FinetuneConfig(**chosen)
    for name, value in adapted.items():
        assert getattr(config, name) == pytest.approx(value), name
        assert any(note.startswith(f"{name}: {getattr(config, name)}, as ") for note in config.notes)
    assert len(config.notes) == len(adapted)
    assert FinetuneConfig.from_dict(config.to_dict()) == config
    assert FinetuneConfig.from_dict(config.to_dict()).notes == ()
    name = next(iter(adapted))
    with pytest.raises(ConfigError, match=name):
        FinetuneConfig(**chosen, **{name: contradiction})


@pytest.mark.parametrize(
    ("flags", "adapted"),
    [
        (["--num_epochs", "2"], {"warmup_epochs": 1.0}),
        (["--num_epochs=3", "--lr_scheduler", "plateau", "--early_stopping_patience", "5"], {"lr_step_size": 2}),
        (["--warmup_epochs", "14"], {"num_epochs": 15}),
        (["--weights", "x.pth"], {"pretrained": True}),
        (["--train_image_size", "64,96"], {"image_size": 96}),
        (["--num_epochs", "1"], {}),
    ],
)
def test_the_settings_of_the_scenes_make_room_as_well(flags, adapted):
    config = parse_command_line(flags).config
    assert {name: getattr(config, name) for name in adapted} == adapted
    assert config.notes[0].startswith("settings of the built-in scenes: backbone = 'resnet18', ")
    told = {note.partition(":")[0] for note in config.notes[1:]}
    assert set(adapted) <= told if adapted else not told


def test_what_makes_room_goes_back_once_it_need_not():
    config = FinetuneConfig.of({"num_epochs": 2}, SCENES_DEFAULTS)
    assert config.warmup_epochs == 1.0
    assert config.replace(num_epochs=9).warmup_epochs == SCENES_DEFAULTS["warmup_epochs"]
    assert config.replace(seed=3).warmup_epochs == 1.0
    assert config.replace(num_epochs=9).backbone == "resnet18"
    for again in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert again == config
        assert (again.given, again.notes) == (config.given, config.notes)


def test_what_is_taken_for_the_shipped_defaults_is_what_is_shipped():
    assert shipped_defaults() == FinetuneConfig.defaults(), "the recorded defaults are old: run make defaults"
    assert set(SCENES_DEFAULTS) <= set(shipped_defaults())
    assert FinetuneConfig.edited_defaults() == {}


@pytest.mark.parametrize("strategy", ["lp_ft", None])  # None: the training may choose lp_ft by itself
def test_a_command_keeps_a_rate_that_was_set_to_the_default_of_other_strategies(strategy):
    config = FinetuneConfig(dataset_path="images", strategy=strategy, learning_rate=3e-4, label_smoothing=0.0)
    flags = config.as_flags()
    assert flags[flags.index("--learning_rate") + 1] == "0.0003"
    assert flags[flags.index("--label_smoothing") + 1] == "0.0"
