"""Settings of earlier versions still load, and a line says what they are now."""

import pytest

from sat_vg.backbone_finetuning.configs.command_line import parse_command_line
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.configs.ranges import parse_bad_image_policy
from sat_vg.backbone_finetuning.configs.retired import RETIRED
from sat_vg.backbone_finetuning.utils.errors import ConfigError


@pytest.mark.parametrize(
    ("old", "new", "note"),
    [
        ({"freeze_layers": 2}, {"freeze_early_layers": 2}, "freeze_layers = 2 is now freeze_early_layers = 2"),
        ({"freeze_layers": 2, "freeze_early_layers": False}, {"freeze_early_layers": 2}, "is now freeze_early"),
        ({"freeze_layers": 0}, {}, None),
        ({"freeze_layers": 0, "freeze_early_layers": True}, {"freeze_early_layers": True}, None),
        ({"best_weights": "auto", "ema_decay": 0.9}, {"ema_decay": 0.9}, None),
        ({"best_weights": "average", "ema_decay": 0.9}, {"ema_decay": 0.9}, None),
        ({"best_weights": "average"}, {"ema_decay": 0.99}, "best_weights = 'average' is now ema_decay = 0.99"),
        ({"best_weights": "trained", "ema_decay": 0.9}, {"ema_decay": 0.0}, "is now ema_decay = 0.0"),
        ({"best_weights": "trained"}, {}, None),
        (
            {"max_bad_fraction": 0.055, "on_bad_image": "skip"},
            {"on_bad_image": "skip:0.055"},
            "max_bad_fraction = 0.055 is now on_bad_image = 'skip:0.055'",
        ),
        ({"max_bad_fraction": 0.01, "on_bad_image": "skip"}, {"on_bad_image": "skip"}, None),
        ({"max_bad_fraction": 0.5}, {}, None),
    ],
)
def test_old_settings_in_python_in_yaml_and_as_flags(tmp_path, old, new, note):
    config = FinetuneConfig(dataset_path="x", **old)
    assert config == FinetuneConfig(dataset_path="x", **new)
    assert [note in line for line in config.notes] == ([] if note is None else [True])
    (tmp_path / "old.yaml").write_text("".join(f"{name}: {value}\n" for name, value in old.items()))
    flags = [f"--{name}={str(value).lower()}" for name, value in old.items()]
    for arguments in (["--config", str(tmp_path / "old.yaml")], flags):
        command = parse_command_line(["--dataset_path", "x", *arguments])
        assert command.config == config
        assert command.config.notes == config.notes
    assert FinetuneConfig(dataset_path="x").replace(**old) == config


@pytest.mark.parametrize(
    ("old", "part"),
    [
        ({"freeze_layers": 2, "freeze_early_layers": True}, "leave one of the two out"),
        ({"freeze_layers": True}, "must be a whole number"),
        ({"freeze_layers": -1}, "freeze_early_layers = -1: must be true or false, or a whole number of 1 or more"),
        ({"freeze_layers": 2, "unfreeze_layers": ("layer4",)}, "leave one of the two out"),
        ({"freeze_layers": 2, "strategy": "full"}, "so does freeze_early_layers = 2"),
        ({"best_weights": "raw"}, "best_weights = 'raw': is retired"),
        ({"max_bad_fraction": 1.5, "on_bad_image": "skip"}, "on_bad_image = 'skip:1.5': must be error or skip"),
    ],
)
def test_old_settings_that_were_wrong(old, part):
    with pytest.raises(ConfigError, match=part):
        FinetuneConfig(**old)


@pytest.mark.parametrize(
    "written", ["skip:2", "skip:", "skip:-0.1", "skip:nan", "skip:5%", "skip: 0.1", "error:0.1", ""]
)
def test_policies_that_are_none(written):
    with pytest.raises(ConfigError, match=r"for example skip:0\.05"):
        FinetuneConfig(on_bad_image=written)


@pytest.mark.parametrize(
    ("written", "share"),
    [("skip", 0.01), ("skip:0.055", 0.055), ("skip:.5", 0.5), ("skip:1", 1.0), ("skip:0", 0.0), ("skip:5e-05", 5e-5)],
)
def test_the_share_that_may_be_left_out(written, share):
    assert parse_bad_image_policy(FinetuneConfig(on_bad_image=written).on_bad_image) == ("skip", share)
    assert parse_bad_image_policy("error")[0] == "error"


def test_no_field_has_the_name_of_a_retired_one():
    assert not set(RETIRED) & set(FinetuneConfig.field_names())
