"""Values as people have them at hand are taken, and stored as what YAML and a checkpoint can hold."""

import enum
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.utils.errors import ConfigError


class Name(str, enum.Enum):
    RESNET = "resnet18"


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        *(({name: Path("a/b")}, "a/b") for name in
          ("dataset_path", "weights", "log_dir", "checkpoint_dir", "resume")),
        *(({name: Path("a")}, "a") for name in ("train_split", "val_split")),
        ({"dataset_path": np.str_("a")}, "a"),
        ({"backbone": Name.RESNET}, "resnet18"),
        ({"num_epochs": np.int64(5)}, 5),
        ({"learning_rate": np.float32(0.5)}, 0.5),
        ({"learning_rate": np.array(0.5)}, 0.5),
        ({"weight_decay": torch.tensor(0.25)}, 0.25),
        ({"dropout": 0}, 0),
        ({"pretrained": np.bool_(False)}, False),
        ({"device": torch.device("cuda", 1)}, "cuda:1"),
        ({"autocast_dtype": torch.bfloat16}, "bf16"),
        ({"train_image_size": np.array([96, 128]), "image_size": 128}, [96, 128]),
        ({"train_image_size": range(32, 34), "image_size": 64}, [32, 33]),
        ({"bands": [np.int64(4), np.str_("B03")], "dataset_path": "x"}, [4, "B03"]),
        ({"unfreeze_layers": [Path("layer4")], "freeze_early_layers": True}, ["layer4"]),
    ],
)  # fmt: skip
def test_natural_values(given, stored):
    config = FinetuneConfig(**given)
    name = next(iter(given))
    value = config.to_dict()[name]
    assert value == stored
    assert type(value) is type(stored)
    assert yaml.safe_load(config.as_yaml())[name] == stored
    assert FinetuneConfig.from_dict(config.to_dict()) == config
    assert config.replace(**given) == config


@pytest.mark.parametrize(
    "make",
    [
        lambda: FinetuneConfig(num_epoch=3),
        lambda: FinetuneConfig.from_dict({"num_epoch": 3}),
        lambda: FinetuneConfig().replace(num_epoch=3),
    ],
)
def test_an_unknown_name_gets_the_nearest_one_and_a_way_to_see_all(make):
    with pytest.raises(ConfigError, match=r"'num_epoch': did you mean 'num_epochs'\?\n.*--help lists all fields"):
        make()


@pytest.mark.parametrize("make", [lambda: FinetuneConfig("resnet18"), lambda: FinetuneConfig.from_dict("resnet18")])
def test_values_without_names_are_refused(make):
    with pytest.raises(ConfigError, match=r"backbone.*resnet50"):
        make()
