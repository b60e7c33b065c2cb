from pathlib import Path

import pytest
import yaml

from sat_vg.backbone_finetuning.configs.command_line import parse_command_line
from sat_vg.backbone_finetuning.configs.finetune_config import SCENES_DEFAULTS, TOPICS, FinetuneConfig
from sat_vg.backbone_finetuning.utils.errors import ConfigError


def test_flags_over_yaml_over_defaults(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("dataset_path: here\nbatch_size: 7\nnum_epochs: 9\n")
    config = parse_command_line(["--config", str(path), "--num_epochs", "11"]).config
    assert (config.dataset_path, config.batch_size, config.num_epochs) == ("here", 7, 11)
    assert config.learning_rate == FinetuneConfig().learning_rate
    assert parse_command_line([f"--config={path}", "--num_epochs=11"]).config == config


def test_flags_outrank_yaml_wherever_they_stand(tmp_path):
    for number in (1, 2):
        (tmp_path / f"{number}.yaml").write_text(f"num_epochs: {number}\nseed: {number}\n")
    files = [part for number in (1, 2) for part in ("--config", str(tmp_path / f"{number}.yaml"))]
    config = parse_command_line(["--num_epochs", "7", "--num_epochs", "9", *files, "--nodata", "null"]).config
    assert (config.num_epochs, config.seed) == (9, 2)


def test_without_a_data_set_the_defaults_are_those_of_the_scenes():
    config = parse_command_line(["--batch_size", "8"]).config
    assert config == FinetuneConfig(batch_size=8, **SCENES_DEFAULTS)
    assert parse_command_line(["--dataset_path", "x"]).config == FinetuneConfig(dataset_path="x")


@pytest.mark.parametrize("written", ["layer3,layer4", "[layer3, layer4]", '["layer3","layer4"]'])
def test_lists_as_people_write_them(written):
    flags = ["--freeze_early_layers", "true", "--dataset_path", "x"]
    for arguments in (["--unfreeze_layers", written], [f"--unfreeze_layers={written}"]):
        assert parse_command_line([*flags, *arguments]).config.unfreeze_layers == ("layer3", "layer4")


def test_values_that_only_look_like_something_else():
    config = parse_command_line(["--dataset_path", "1e3", "--learning_rate", "1e-3", "--num_classes", "null"]).config
    assert (config.dataset_path, config.learning_rate, config.num_classes) == ("1e3", 1e-3, None)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--bacbone", "x"], "no option --bacbone: did you mean --backbone?"),
        (["--batch_size", "many"], "batch_size = 'many': must be a whole number of 1 or more"),
        (["--lr_scheduler", "linear"], "cosine or step or plateau"),
        (
            ["--batch_size"],
            "--batch_size needs a value: it must be a whole number of 1 or more, or auto; for example 32",
        ),
        (["stray"], "stray"),
        (["--config", "/nowhere.yaml"], "'/nowhere.yaml' cannot be read"),
        (["--batch_size", "-1", "--lr_gamma", "3"], "2 problems"),
        (["--batch_size", "many", "--lr_gamma", "x", "--sampler=odd", "--phase_epochs", "1,x"], "4 problems"),
        (["--batch_size", "many", "--batch_size", "x"], "batch_size = 'x'"),
    ],
)
def test_bad_flags(arguments, part):
    with pytest.raises(ConfigError) as caught:
        parse_command_line(arguments)
    assert part in str(caught.value)


def test_an_unknown_field_in_yaml_is_named_with_its_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("batchsize: 7\n")
    with pytest.raises(ConfigError, match=r"c.yaml.*'batchsize': did you mean 'batch_size'"):
        parse_command_line(["--config", str(path)])


def test_print_config_can_be_read_back(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        parse_command_line(["--dataset_path", "x", "--batch_size", "5", "--print_config"])
    assert left.value.code == 0
    path = tmp_path / "c.yaml"
    path.write_text(capsys.readouterr().out)
    assert parse_command_line(["--config", str(path)]).config == FinetuneConfig(dataset_path="x", batch_size=5)


def test_help_says_what_each_field_is(capsys):
    with pytest.raises(SystemExit) as left:
        parse_command_line(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    for name in FinetuneConfig.field_names():
        assert f"--{name}" in text
    for noise in ("Annotated", "Range(", "Optional", "Union", "type:"):
        assert noise not in text
    positions = [text.index(f"\n{topic}:\n") for topic in TOPICS.values()]
    assert positions == sorted(positions)
    assert "Exit codes" in text
    assert "resnet50" in text


def test_images_by_position_are_pointed_to_their_flag():
    """As other commands take them."""
    with pytest.raises(ConfigError, match="unrecognized arguments: my images; images are named by --dataset_path"):
        parse_command_line(["my images", "--num_epochs", "2"])


def test_every_recipe_is_a_valid_configuration():
    recipes = sorted(Path(__file__).parents[3].glob("configs/*.yaml"))
    assert recipes
    for path in recipes:
        header = path.read_text().split("\nbackbone")[0]
        for part in ("Command:", "Hardware:", "Expected:"):
            assert part in header, (path, part)
        config = parse_command_line(["--config", str(path), "--dataset_path", "x"]).config
        assert config.backbone == yaml.safe_load(path.read_text())["backbone"]
