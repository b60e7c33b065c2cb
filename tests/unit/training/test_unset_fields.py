"""What nobody set: the size of images and their augmentation, by backbone, weights and data set, told in a line."""

from pathlib import Path

import pytest
import torch

from sat_vg.backbone_finetuning.configs.choices import DATASETS as DATASET_NAMES
from sat_vg.backbone_finetuning.configs.finetune_config import SCENES_DEFAULTS, FinetuneConfig
from sat_vg.backbone_finetuning.data.loading.augmentation import PRESETS
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training.run_folder import EarlierRun
from sat_vg.backbone_finetuning.training.unset_fields import resolve_image_settings, resolve_strategy

OWN = {"dataset_path": "x"}


@pytest.mark.parametrize(
    ("given", "count", "strategy"),
    [
        ({}, 800, "lp_ft"),  # 20 epochs of 25 steps
        ({}, 801, None),
        ({"num_epochs": 4}, 4000, "lp_ft"),
        ({"batch_size": 8}, 200, "lp_ft"),
        ({"batch_size": 8}, 201, None),
        ({"batch_size": "auto"}, 800, "lp_ft"),
        ({"strategy": "full"}, 100, "full"),
        ({"strategy": "last_layers"}, 100, "last_layers"),
        ({"freeze_early_layers": 2}, 100, None),
        ({"unfreeze_layers": ("layer4",)}, 100, None),
        ({"shard_weights": True}, 100, None),
    ],
)
def test_few_steps_begin_with_a_probe_unless_something_says_what_is_trained(capsys, given, count, strategy):
    config = resolve_strategy(FinetuneConfig(**OWN, **given), count, needs_head=True, earlier=None)
    assert config.strategy == strategy
    out = capsys.readouterr().out
    assert ("strategy: lp_ft, a linear probe first" in out) == (strategy == "lp_ft")
    assert ("learning_rate: 0.001, as strategy = lp_ft" in out) == (config.learning_rate == 1e-3)
    assert resolve_strategy(FinetuneConfig(**OWN), count, needs_head=False, earlier=None).strategy is None


@pytest.mark.parametrize(("count", "rate", "smoothing"), [(160, 1e-3, 0.1), (128, 3e-4, 0.0)])
def test_very_few_steps_keep_the_usual_learning_rate(count, rate, smoothing):
    config = resolve_strategy(FinetuneConfig(**OWN), count, needs_head=True, earlier=None)  # 100 and 80 steps
    assert (config.strategy, config.learning_rate, config.label_smoothing) == ("lp_ft", rate, smoothing)
    of_user = resolve_strategy(FinetuneConfig(**OWN, learning_rate=7e-4), count, needs_head=True, earlier=None)
    assert of_user.learning_rate == 7e-4


@pytest.mark.parametrize("of_run", [None, "full", "lp_ft"])
def test_a_run_goes_on_with_the_strategy_that_it_began_with(of_run, capsys):
    earlier = EarlierRun(Path("last.pt"), {"config": {"strategy": of_run}})
    assert resolve_strategy(FinetuneConfig(**OWN), 100, needs_head=False, earlier=earlier).strategy == of_run
    assert "strategy" not in capsys.readouterr().out


@pytest.mark.parametrize("given", [{}, {"strategy": "lp_ft"}])
def test_a_run_of_lp_ft_goes_on_with_the_defaults_that_it_began_with(given):
    of_run = {"strategy": "lp_ft", "learning_rate": 3e-4, "label_smoothing": 0.0}
    earlier = EarlierRun(Path("last.pt"), {"config": of_run})
    for more, rate in (({}, 3e-4), ({"learning_rate": 2e-3}, 2e-3)):
        config = resolve_strategy(FinetuneConfig(**OWN, **given, **more), 100, needs_head=False, earlier=earlier)
        assert (config.strategy, config.learning_rate, config.label_smoothing) == ("lp_ft", rate, 0.0)


@pytest.mark.parametrize(
    ("given", "size", "told"),
    [
        ({**OWN, "backbone": "resnet50"}, 224, "image_size: 224, the usual one of resnet50"),
        ({**OWN, "backbone": "efficientnet_b3"}, 300, "image_size: 300, the usual one of efficientnet_b3"),
        ({**OWN, "backbone": "inception_v3", "pretrained": False}, 299, "image_size: 299, "),
        ({**OWN, "backbone": "swin_v2_t"}, 256, "image_size: 256, "),
        ({**OWN, "backbone": "vit_b_16", "weights": "IMAGENET1K_SWAG_E2E_V1"}, 384, "image_size: 384, "),
        ({**OWN, "backbone": "custom_cnn"}, 224, "image_size: 224, "),
        ({**OWN, "backbone": "efficientnet_b3", "image_size": 96}, 96, ""),
        ({**OWN, "backbone": "resnet18", "train_image_size": (128, 320)}, 320, "the largest of train_image_size"),
        (
            {"dataset": "cifar10", "backbone": "efficientnet_b3"},
            224,
            "as the images of CIFAR-10 are small",
        ),
        ({"dataset": "cifar10", "backbone": "resnet50"}, 224, "image_size: 224, the usual one of resnet50"),
        ({"dataset": "food101", "backbone": "efficientnet_b3"}, 300, "image_size: 300, "),
        ({"dataset": "cifar10", "backbone": "efficientnet_b3", "image_size": 32}, 32, ""),
    ],
)
def test_the_size_is_the_published_one_unless_one_was_set(capsys, given, size, told):
    config = resolve_image_settings(FinetuneConfig(**given))
    out = capsys.readouterr().out
    assert config.image_size == size
    assert told in out
    assert bool(told) == ("image_size: " in out)


@pytest.mark.parametrize(("name", "size"), [("timm:test_vit.r160_in1k", 160), ("timm:efficientnet_b1_pruned", 240)])
def test_a_network_of_timm_has_the_size_of_its_own_weights(name, size):
    pytest.importorskip("timm")
    assert resolve_image_settings(FinetuneConfig(**OWN, backbone=name)).image_size == size
    assert resolve_image_settings(FinetuneConfig(dataset="mnist", backbone=name)).image_size == size


@pytest.mark.parametrize(
    ("backbone", "size", "told"),
    [("resnet18", 64, ""), ("maxvit_t", 224, "image_size: 224, as maxvit_t does not take 64")],
)
def test_the_scenes_keep_theirs_where_the_backbone_takes_it(capsys, backbone, size, told):
    config = resolve_image_settings(FinetuneConfig.of({"backbone": backbone}, SCENES_DEFAULTS))
    assert config.image_size == size
    assert told in capsys.readouterr().out


def test_an_earlier_run_goes_on_with_its_own(capsys):
    earlier = EarlierRun(Path("last.pt"), {"config": {"image_size": 224, "augmentation": "satellite"}})
    config = resolve_image_settings(FinetuneConfig(dataset="mnist", backbone="efficientnet_b3"), earlier)
    assert (config.image_size, config.augmentation) == (224, "satellite")
    assert capsys.readouterr().out == ""


def test_inception_has_its_auxiliary_head_unless_a_small_size_was_set():
    assert FineTuneModel("inception_v3", 3, pretrained=False).network.AuxLogits is not None
    assert FineTuneModel("inception_v3", 3, pretrained=False, image_size=96).network.AuxLogits is None


# What a training image of each may be changed into and still show its class.
UNMIRRORED = {"mnist", "kmnist", "svhn", "gtsrb"}
OVERHEAD = {"eurosat"}


@pytest.mark.parametrize("name", DATASET_NAMES)
def test_each_named_data_set_is_augmented_as_its_classes_bear(name, capsys):
    config = resolve_image_settings(FinetuneConfig(dataset=name, image_size=32))
    assert f"augmentation: {config.augmentation}, as suits " in capsys.readouterr().out
    preset = PRESETS[str(config.augmentation)].build(32, "bilinear")
    up, left = torch.zeros(2, 3, 32, 32, dtype=torch.uint8).unbind()
    up[:, :8], left[..., :8] = 255, 255
    seen_up, seen_left = set(), set()
    for seed in range(40):
        torch.manual_seed(seed)
        seen_up.add(_bright_side(preset(up)))
        torch.manual_seed(seed)
        seen_left.add(_bright_side(preset(left)))
    if name in OVERHEAD:
        assert seen_up == seen_left == {"top", "bottom", "left", "right"}
    elif name in UNMIRRORED:
        assert (seen_up, seen_left) == ({"top"}, {"left"})
    else:
        assert (seen_up, seen_left) == ({"top"}, {"left", "right"})


def _bright_side(image: torch.Tensor) -> str:
    grey = image.float().mean(0)
    sides = {"top": grey[:16], "bottom": grey[16:], "left": grey[:, :16], "right": grey[:, 16:]}
    return max(sides, key=lambda side: float(sides[side].mean()))


def test_own_images_and_an_augmentation_that_was_set_are_as_before(capsys):
    assert resolve_image_settings(FinetuneConfig(**OWN, image_size=32)).augmentation == "satellite"
    assert (
        resolve_image_settings(FinetuneConfig(dataset="mnist", image_size=32, augmentation="turns")).augmentation
        == "turns"
    )
    assert "augmentation" not in capsys.readouterr().out
