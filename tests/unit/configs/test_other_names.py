"""Settings under other names, and recipes by name."""

import pytest

from sat_vg.backbone_finetuning.configs.command_line import parse_command_line
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.configs.yaml_files import find_recipe, recipe_names
from sat_vg.backbone_finetuning.models.factories import kind_of_timm
from sat_vg.backbone_finetuning.utils.errors import ConfigError


@pytest.mark.parametrize("value", [True, "true", "True"])
def test_a_frozen_backbone_is_a_linear_probe(value):
    config = FinetuneConfig(freeze_backbone=value)
    assert config.strategy == "linear_probe"
    assert config.notes == (f"freeze_backbone = {value!r} is now strategy = 'linear_probe'",)


def test_a_backbone_that_is_not_frozen_changes_nothing():
    assert FinetuneConfig(freeze_backbone=False) == FinetuneConfig()
    assert FinetuneConfig(freeze_backbone=False, strategy="full").strategy == "full"
    assert FinetuneConfig(freeze_backbone=True, strategy="linear_probe").strategy == "linear_probe"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"freeze_backbone": True, "strategy": "full"}, "strategy = 'full' was given, too"),
        ({"freeze_backbone": 3}, "must be true .* or false"),
    ],
)
def test_a_contradiction_is_named(given, message):
    with pytest.raises(ConfigError, match=message):
        FinetuneConfig(**given)


def test_a_recipe_is_found_by_its_name(tmp_path, monkeypatch):
    assert "ucmerced" in recipe_names()
    config = parse_command_line(["--config", "ucmerced", "--dataset_path", "x"]).config
    assert config.backbone == "mobilenet_v2"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ucmerced").write_text("backbone: resnet18")  # a file of the user's comes first
    assert parse_command_line(["--config", "ucmerced", "--dataset_path", "x"]).config.backbone == "resnet18"


@pytest.mark.parametrize(
    ("given", "message"), [("ucmercd", "did you mean 'ucmerced'"), ("zzz", "the recipes are .*ucmerced")]
)
def test_a_recipe_that_is_not_there_is_refused_with_the_nearest(given, message):
    with pytest.raises(ConfigError, match=message):
        find_recipe(given)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("timm:deit3_base_patch16_224", "ViT"),
        ("timm:vit_tiny_patch16_224", "ViT"),
        ("timm:tf_efficientnet_lite0", "EfficientNet"),
        ("timm:resnet26d", "ResNet"),
        ("timm:pvt_v2_b2", None),
        ("resnet50", None),
    ],
)
def test_networks_of_timm_by_kind(name, kind):
    assert kind_of_timm(name) == kind
