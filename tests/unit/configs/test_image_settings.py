"""Which augmentation, sampler and class weights go together."""

import pytest

from sat_vg.backbone_finetuning.configs.command_line import parse_command_line
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.utils.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"augmentation": "randaugment", "use_augmentation": False}, "no effect while use_augmentation is false"),
        ({"augmentation": "rand"}, "satellite or none or turns or basic or randaugment or trivialaugment"),
        ({"augmentation": 3}, "augmentation = 3: must be satellite or none"),
        ({"augmentation": "none", "cached_views": 2}, "without augmentation there is one version of each image"),
        ({"use_augmentation": False, "cached_views": 2}, "without augmentation there is one version of each image"),
        ({"augmentation": "turns", "crop_scale": 0.3}, "crop_scale = 0.3: augmentation = 'turns' crops nothing"),
        ({"use_augmentation": False, "crop_scale": 0.3}, "no effect while use_augmentation is false"),
        ({"crop_scale": 1.1}, "crop_scale = 1.1: must be a number above 0 and up to 1"),
        ({"class_weights": "balanced", "sampler": "weighted"}, "count rare classes twice; set one of them"),
        ({"class_weights": "effective", "sampler": "class_balanced"}, "'class_balanced' already evens the classes"),
    ],
)
def test_contradictions_are_refused(values, part):
    with pytest.raises(ConfigError, match=part):
        FinetuneConfig(**values)


@pytest.mark.parametrize(
    ("values", "augments"),
    [
        ({}, True),
        ({"augmentation": "basic"}, True),
        ({"augmentation": "none"}, False),
        ({"use_augmentation": False}, False),
        ({"use_augmentation": False, "augmentation": "none"}, False),
        ({"class_weights": "balanced"}, True),
        ({"sampler": "weighted", "augmentation": "advanced"}, True),
    ],
)
def test_what_is_augmented(values, augments):
    assert FinetuneConfig(**values).augments is augments


def test_sizes_on_the_command_line():
    for flags in (
        ["--train_image_size", "96,128"],
        ["--train_image_size=96,128"],
        ["--train_image_size", "[96, 128]"],
    ):
        assert parse_command_line(["--dataset_path", "x", *flags]).config.train_image_size == (96, 128)
    assert parse_command_line(["--dataset_path", "x", "--train_image_size", "96"]).config.train_image_size == (96,)
