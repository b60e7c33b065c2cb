"""Any valid configuration comes back from YAML and from plain data as it was."""

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.configs.yaml_files import read_yaml
from sat_vg.backbone_finetuning.utils.errors import ConfigError

# As people and programs write paths and names: any characters but NUL, which no path can hold.
TEXTS = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=30
).filter(lambda text: text.strip())
FIELDS = {
    "dataset_path": st.none() | TEXTS,
    "train_split": TEXTS.filter(lambda text: not set(text) & set("/\\") and text.strip() not in (".", "..")),
    "val_fraction": st.floats(0.001, 0.999),
    "num_classes": st.none() | st.integers(2, 10**6),
    "backbone": TEXTS,
    "weights": st.none() | TEXTS,
    "image_size": st.integers(16, 4096),
    "dropout": st.floats(0, 0.999),
    "batch_size": st.integers(1, 10**6),
    "learning_rate": st.floats(1e-6, 1e6),
    "weight_decay": st.floats(0, 1e6),
    "gradient_clip": st.floats(0, 1e6),
    "mixup_alpha": st.floats(0, 100),
    "use_augmentation": st.booleans(),
    "optimizer": st.sampled_from(["adamw", "adam", "sgd"]),
    "seed": st.integers(0, 2**40),
    "device": TEXTS,
    "log_dir": TEXTS,
    "layer_decay": st.floats(0.01, 1),
    "ema_decay": st.floats(0, 0.9999),
}
SEVERAL = st.sampled_from(
    [
        {},
        {"strategy": "lp_ft"},
        {"strategy": "progressive", "num_epochs": 9, "phase_epochs": (2, 3, 4)},
        {"freeze_early_layers": True, "unfreeze_layers": ("layer3", "null", "yes", "1e3", "ü ö")},
        {"freeze_early_layers": 2, "pretrained": False, "weights": None},
    ]
)


@example({"train_split": "0\x85", "log_dir": "a\u2028b\ufeff", "device": "\t x\r\n"}, {})
@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({}, optional=FIELDS), SEVERAL)
def test_round_trip(tmp_path_factory, values, several):
    config = FinetuneConfig(**{**values, "min_lr": 0.0, **several})
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    config.to_yaml(path)
    assert FinetuneConfig.from_yaml(path) == config
    assert FinetuneConfig.from_dict(config.to_dict()) == config
    # What another program's safe loader reads is the same as well, but for numbers such as 1e-4, which are written so
    # that it reads them as numbers too.
    assert FinetuneConfig.from_dict(yaml.safe_load(path.read_text(encoding="utf-8"))) == config
    assert read_yaml(path) == config.to_dict()


def test_a_field_that_comes_twice_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("seed: 1\nnum_epochs: 2\nseed: 3\n")
    with pytest.raises(ConfigError, match=r"'seed' is set in line 1 already(.|\n)*line 3"):
        read_yaml(path)
