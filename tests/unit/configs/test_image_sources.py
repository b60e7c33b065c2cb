"""Where images come from, as flags and files say it."""

import pytest

from sat_vg.backbone_finetuning.configs.command_line import parse_command_line
from sat_vg.backbone_finetuning.configs.finetune_config import SCENES_DEFAULTS, FinetuneConfig
from sat_vg.backbone_finetuning.utils.errors import ConfigError


@pytest.mark.parametrize(
    ("flags", "are_scenes"),
    [
        (["--dataset", "eurosat"], False),
        (["--dataset=cifar10", "--dataset_path", "null"], False),
        (["--dataset", "eurosat", "--dataset_path", "copy"], False),
        (["--dataset_path", "images.csv"], False),
        (["--dataset", "null"], True),
        (["--dataset_path", "null"], True),
        (["--config", "named.yaml"], False),
        (["--config", "named.yaml", "--dataset", "null"], True),
        (["--config=named.yaml", "--dataset", "null", "--dataset_path", "DIR"], False),
        (["--config", "plain.yaml"], True),
        (["--config", "plain.yaml", "--dataset", "dtd"], False),
    ],
)
def test_the_scenes_are_the_default_only_where_no_images_are_named(tmp_path, monkeypatch, flags, are_scenes):
    (tmp_path / "named.yaml").write_text("dataset: food101\nseed: 3\n")
    (tmp_path / "plain.yaml").write_text("seed: 3\n")
    monkeypatch.chdir(tmp_path)
    config = parse_command_line(flags).config
    of = SCENES_DEFAULTS if are_scenes else FinetuneConfig().to_dict()
    assert {name: getattr(config, name) for name in SCENES_DEFAULTS} == {name: of[name] for name in SCENES_DEFAULTS}


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"dataset": "eurosatt"}, "dataset = 'eurosatt': must be eurosat or mnist or "),
        (
            {"dataset": "eurosat", "dataset_path": "a/images.CSV"},
            "dataset_path = 'a/images.CSV' is a table, but has to",
        ),
        ({"dataset": "mnist", "val_split": "test"}, "val_split = 'test': has no effect with dataset = 'mnist'"),
        ({"dataset": "mnist", "train_split": "fit"}, "train_split = 'fit': has no effect with dataset = 'mnist'"),
        ({"allow_outside": "yes"}, "allow_outside = 'yes': must be true or false"),
    ],
)
def test_what_contradicts(values, part):
    with pytest.raises(ConfigError) as caught:
        FinetuneConfig(**values)
    assert part in str(caught.value)


def test_a_copy_may_be_named():
    config = FinetuneConfig(dataset="eurosat", dataset_path="copies/eurosat")
    assert FinetuneConfig.from_dict(config.to_dict()) == config
