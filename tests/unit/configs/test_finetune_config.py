import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.configs.ranges import rules_of
from sat_vg.backbone_finetuning.utils.errors import ConfigError

NAMES_OF_THE_FIRST_README = set(
    (Path(__file__).parent / "names_of_the_first_readme.txt").read_text(encoding="utf-8").split()
)


def test_the_names_that_users_know_are_all_there():
    assert len(NAMES_OF_THE_FIRST_README) == 33
    assert set(FinetuneConfig.field_names()) >= NAMES_OF_THE_FIRST_README
    assert FinetuneConfig().log_dir == "logs/finetune"
    assert FinetuneConfig().checkpoint_dir == "checkpoints/finetune"


def test_every_field_has_a_rule_and_a_doc():
    assert set(rules_of(FinetuneConfig)) == set(FinetuneConfig.field_names())
    source = Path(sys.modules[FinetuneConfig.__module__].__file__).read_text()
    lines = [line.strip() for line in source.splitlines()]
    for name in FinetuneConfig.field_names():
        position = next(i for i, line in enumerate(lines) if line.startswith(f"{name}: "))
        assert lines[position + 1].startswith('"""'), name


def test_all_errors_come_at_once_with_field_value_allowed_and_remedy():
    with pytest.raises(ConfigError) as caught:
        FinetuneConfig(batch_size=0, learning_rate="fast", lr_scheduler="linear", image_size=True, val_fraction=1.0)
    message = str(caught.value)
    assert "5 problems" in message
    for part in ("batch_size = 0", "whole number of 1 or more", "learning_rate = 'fast'", "cosine or step or plateau",
                 "image_size = True", "val_fraction = 1.0", "for example"):  # fmt: skip
        assert part in message, part


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"unfreeze_layers": ("layer4",), "freeze_early_layers": False}, "freeze_early_layers"),
        ({"pretrained": False, "weights": "IMAGENET1K_V1"}, "contradicts"),
        ({"warmup_epochs": 20.0, "num_epochs": 20}, "num_epochs = 20"),
        ({"min_lr": 1.0, "learning_rate": 0.1}, "must not exceed learning_rate"),
        (
            {"lr_scheduler": "plateau", "lr_step_size": 10, "early_stopping_patience": 10},
            "before the rate is ever lowered",
        ),
        ({"lr_scheduler": "plateau", "early_stopping_patience": 1}, "set it to 2 or more"),
        ({"batch_size": 4, "micro_batch_size": 8}, "must not exceed batch_size"),
        ({"learning_rate": float("nan")}, "above 0"),
        ({"unfreeze_layers": (), "freeze_early_layers": True}, "not empty"),
    ],
)
def test_contradictions_are_refused(values, part):
    with pytest.raises(ConfigError, match=part):
        FinetuneConfig(**values)


def test_it_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FinetuneConfig().batch_size = 3
    assert FinetuneConfig().replace(batch_size=3).batch_size == 3


def test_an_unknown_field_names_the_nearest_one():
    with pytest.raises(ConfigError, match="'learning_rat': did you mean 'learning_rate'"):
        FinetuneConfig.from_dict({"learning_rat": 1})


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "dataset_path": st.one_of(st.none(), st.text(st.characters(codec="utf-8"), min_size=1)),
            "unfreeze_layers": st.just(("layer3", "layer4")),
            "freeze_early_layers": st.just(True),
            "batch_size": st.integers(1, 10**6),
            "learning_rate": st.floats(1e-5, 10, allow_nan=False),
            "lr_scheduler": st.sampled_from(["cosine", "step", "plateau"]),
            "seed": st.integers(0, 2**62),
            "weights": st.sampled_from([None, "none", "DEFAULT", "a/b.pth", "null", "1e3", "yes"]),
        },
    )
)
def test_yaml_round_trip(tmp_path_factory, values):
    values.setdefault("freeze_early_layers", "unfreeze_layers" in values)
    try:
        config = FinetuneConfig(**values)
    except ConfigError:
        assert values.get("dataset_path") is not None  # blank or with a NUL
        return
    path = tmp_path_factory.mktemp("yaml") / "config.yaml"
    config.to_yaml(path)
    assert FinetuneConfig.from_yaml(path) == config


@pytest.mark.parametrize(("content", "part"), [("- 1\n", "must hold lines"), ("a: [", "not valid YAML")])
def test_a_yaml_file_that_is_none(tmp_path, content, part):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=part):
        FinetuneConfig.from_yaml(path)


def test_numbers_as_people_write_them_in_yaml(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("learning_rate: 1e-4\nmin_lr: 1.5E-7\nweight_decay: 1e+0\nweights: '1e3'\n")
    config = FinetuneConfig.from_yaml(path)
    assert (config.learning_rate, config.min_lr, config.weight_decay, config.weights) == (1e-4, 1.5e-7, 1.0, "1e3")


@pytest.mark.parametrize(
    ("written", "means", "remedy"),
    [("seed: 010", "010 means 8", "write 10,"), ("seed: -0_10", "-0_10 means -8", "write -10,"),
     ("seed: 1:30", "1:30 means 90", "write 90,"), ("bands: [1, 010]", "010 means 8", "'010' in quotes"),
     ("weight_decay: 1:30.5", "1:30.5 means 90.5", "write 90.5,"), ("010: 3", "010 means 8", "write 10,")],
)  # fmt: skip
def test_numbers_that_yaml_takes_for_others_are_refused(tmp_path, written, means, remedy):
    path = tmp_path / "c.yaml"
    path.write_text(f"dataset_path: x\n{written}\n")
    with pytest.raises(ConfigError) as error:
        FinetuneConfig.from_yaml(path)
    assert f"{means} in YAML 1.1; " in str(error.value)
    assert remedy in str(error.value)
    assert "line 2" in str(error.value)


def test_numbers_and_texts_that_mean_what_they_look_like(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "dataset_path: 2018-01-01\nlog_dir: '2018'\nseed: 0x10\nbatch_size: 1_000\nnum_epochs: 07\nmin_lr: 0.5\n"
        "weights: '1:30'\nweight_decay: 00.5\n"
    )
    config = FinetuneConfig.from_yaml(path)
    assert (config.dataset_path, config.log_dir, config.weights) == ("2018-01-01", "2018", "1:30")
    assert (config.seed, config.batch_size, config.num_epochs, config.weight_decay) == (16, 1000, 7, 0.5)
    path.write_text(config.as_yaml())
    assert FinetuneConfig.from_yaml(path) == config
    path.write_text("weight_decay: .nan\nlearning_rate: -.inf\n")
    with pytest.raises(ConfigError, match="2 problems"):
        FinetuneConfig.from_yaml(path)


@pytest.mark.parametrize("name", ["log_dir", "dataset_path", "backbone"])
def test_a_number_in_place_of_a_text_is_answered_with_quotes(tmp_path, name):
    path = tmp_path / "c.yaml"
    path.write_text(f"{name}: 2018\n")
    with pytest.raises(ConfigError, match=f"{name} = 2018: must be .*needs quotes in YAML: '2018'"):
        FinetuneConfig.from_yaml(path)


def test_yaml_cannot_run_code(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(f"dataset_path: !!python/object/apply:os.mkdir ['{tmp_path}/hacked']\n")
    with pytest.raises(ConfigError):
        FinetuneConfig.from_yaml(path)
    assert not (tmp_path / "hacked").exists()


def test_configs_import_no_torch():
    code = "import sys, sat_vg.backbone_finetuning.configs.command_line; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
