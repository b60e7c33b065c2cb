"""A grounding model answers the same for an image in memory as for its file, and refuses what is no image."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sat_vg.backbone_finetuning import FineTuneModel
from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.utils.errors import DataError, UserError
from sat_vg.backbone_finetuning.utils.preprocessing import Levels
from sat_vg.grounding import GroundingConfig, GroundingModel
from sat_vg.grounding.data import load_data
from sat_vg.grounding.network import Sizes, grounding_loss
from sat_vg.grounding.words import Vocabulary


@pytest.fixture(scope="module")
def model() -> GroundingModel:
    source = FineTuneModel("squeezenet1_1", 2, pretrained=False, image_size=64, seed=0)
    torch.manual_seed(0)
    return GroundingModel(source, Vocabulary(("ship",)), Sizes(64, 8, 24, 1, 1, 3, 0.0)).eval()


def test_an_image_in_memory_is_read_as_its_file(model, tmp_path):
    """A photograph that its EXIF says to turn is turned."""
    path, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 255, (40, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 40)).save(path, exif=exif)
    upright = decode_rgb(path)
    assert tuple(upright.shape) == (3, 64, 40)
    found = model.predict(path, "ship")
    for image in (Image.open(path), upright, upright.permute(1, 2, 0).numpy()):
        assert model.predict(image, "ship") == found
    no_pixels = np.zeros((0, 0, 3), np.uint8)
    for wrong in (upright.float(), upright[None], upright[0], upright[0].numpy(), no_pixels, 5, [path]):
        with pytest.raises(UserError):
            model.predict(wrong, "ship")


def test_an_image_that_is_read_at_half_its_size_is_refused(model, tmp_path, monkeypatch):
    """Its boxes were in pixels of the smaller image, without a word."""
    path = tmp_path / "large.png"
    Image.fromarray(np.zeros((40, 64, 3), np.uint8)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 40 - 1)
    for image in (path, Image.open(path)):
        with pytest.raises(DataError, match=r"64 x 40 pixels, of which no more than 2559 are read"):
            model.predict(image, "ship")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 40)
    assert model.predict(path, "ship").box[2] > 0


def test_scores_that_are_no_numbers_are_refused(model):
    broken = copy.deepcopy(model)
    torch.nn.init.constant_(broken.network.norm.weight, 3e38)
    with pytest.raises(UserError, match="the model's scores are no numbers"):
        broken.predict(torch.zeros(3, 40, 64, dtype=torch.uint8), "ship")


def test_deep_images_are_read_by_the_levels_of_the_backbone(model, tmp_path):
    """They were read by their high byte: nearly black, and nothing that the backbone knew."""
    pytest.importorskip("rasterio")
    deep = copy.copy(model)
    deep.preprocessing = replace(model.preprocessing, levels=Levels((0.0,) * 3, (2000.0,) * 3))
    values = np.arange(0, 2000, 20, dtype=np.uint16).reshape(10, 10)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert deep.read(tmp_path / "deep.png").max() > 200


@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        (
            np.arange(100, dtype=np.uint16).reshape(10, 10) * 20,
            "1 image has values of more than 8 bits of which fewer",
        ),
        (np.arange(400, dtype=np.uint8).reshape(10, 10, 4), "1 image has an alpha channel with values other than"),
    ],
    ids=["16-bit", "alpha"],
)
def test_what_is_lost_of_images_is_told(pixels, told, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "test.json").write_text(json.dumps([{"image": "a.png", "phrase": "ship", "box": [1, 1, 5, 5]}]))
    config = GroundingConfig(data=str(tmp_path), image_size=32)
    load_data(config, model.preprocessing, ("test",))
    assert f"data: {told}" in capsys.readouterr().out


def test_a_turned_image_that_is_thinner_than_a_place_has_places(model):
    """All of its places were taken for padding, and the loss was NaN."""
    images, words = torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[2]])
    masks = torch.ones(1, 64, 64, dtype=torch.bool)
    masks[:, -3:] = False
    scores, boxes = model(images, masks, torch.tensor([0]), words)
    assert grounding_loss(scores, boxes, torch.tensor([[0.1, 0.96, 0.3, 1.0]])).isfinite().all()
