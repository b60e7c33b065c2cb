import pytest

from sat_vg.backbone_finetuning.configs.band_choice import BandChoice, parse_band
from sat_vg.backbone_finetuning.configs.command_line import parse_command_line
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.utils.errors import ConfigError


def test_a_band_is_a_number_or_a_description_with_or_without_a_name():
    assert parse_band(4) == parse_band("4") == parse_band(" 04 ") == BandChoice(None, 4)
    assert parse_band("red = 4") == BandChoice("red", 4)
    assert parse_band("B8A") == BandChoice(None, "B8A")
    assert parse_band("a=b=B04, corrected") == BandChoice("a=b", "B04, corrected")


@pytest.mark.parametrize("wrong", [0, "red=0", "", " ", "=4", "red=", "x\ny=3", "x" * 61 + "=3"])
def test_what_is_no_band_is_refused_with_an_example(wrong):
    with pytest.raises(ConfigError, match=r"bands = .*must be a list of bands.* red=4,green=3,blue=2,nir=8"):
        FinetuneConfig(dataset_path="x", bands=[wrong])


@pytest.mark.parametrize("wrong", [(), "4,3,2", 4, [True], [4.0], [None], {"red": 4}])
def test_what_is_no_list_of_bands_is_refused(wrong):
    with pytest.raises(ConfigError, match="bands = "):
        FinetuneConfig(dataset_path="x", bands=wrong)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bands": ["red=4", "red=3"]}, "'red' comes twice"),
        ({"bands": ["red=4", 4]}, "'4' comes twice"),
        ({"dataset_path": None}, "without dataset_path"),
        ({"cache": "disk"}, "keeps 8-bit RGB images only"),
        ({"augmentation": "randaugment"}, "made for 8-bit red, green, blue"),
    ],
    ids=str,
)
def test_contradictions(settings, words):
    with pytest.raises(ConfigError, match=words):
        FinetuneConfig(**{"dataset_path": "x", "bands": [4, 3, 2], **settings})


@pytest.mark.parametrize(
    ("given", "bands"),
    [
        ("4,3,2,8", (4, 3, 2, 8)),
        ("red=4,green=3,B8A", ("red=4", "green=3", "B8A")),
        ("[red=4, 3]", ("red=4", 3)),
        ("4", (4,)),
    ],
)
@pytest.mark.parametrize("joined", [True, False])
def test_on_the_command_line_and_back_through_yaml(tmp_path, given, bands, joined):
    flags = [f"--bands={given}"] if joined else ["--bands", given]
    config = parse_command_line(["--dataset_path", "x", *flags]).config
    assert config.bands == bands
    config.to_yaml(tmp_path / "c.yaml")
    assert FinetuneConfig.from_yaml(tmp_path / "c.yaml") == config
    assert parse_command_line(["--config", str(tmp_path / "c.yaml")]).config == config
