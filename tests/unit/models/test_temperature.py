import math

import pytest
import torch

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.errors import CheckpointError


@pytest.fixture
def model():
    return FineTuneModel("resnet18", 3, pretrained=False, dropout=0.5, image_size=32)


def test_probabilities_are_divided_by_the_temperature_and_logits_are_not(model, tmp_path):
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        logits = model.eval()(images)
    assert torch.equal(model.predict_probabilities(images), logits.softmax(1))
    model.temperature = 2.5
    model.save_checkpoint(tmp_path / "m.pt")
    loaded = FineTuneModel.load_checkpoint(tmp_path / "m.pt")
    assert loaded.temperature == 2.5
    with torch.no_grad():
        assert torch.equal(loaded(images), logits)
    assert torch.equal(loaded.predict_probabilities(images), (logits / 2.5).softmax(1))


def test_probabilities_need_no_mode_and_change_none(model):
    images = torch.randn(4, 3, 32, 32)
    model.train()
    before = model.network.bn1.running_mean.clone()
    first, second = model.predict_probabilities(images), model.predict_probabilities(images)
    assert torch.equal(first, second)  # no dropout
    assert not first.requires_grad
    assert model.training
    assert model.network.bn1.training
    assert torch.equal(model.network.bn1.running_mean, before)


def test_a_file_from_before_has_the_temperature_one(model, tmp_path):
    model.save_checkpoint(tmp_path / "m.pt")
    content = torch.load(tmp_path / "m.pt", weights_only=True)
    del content["temperature"]
    torch.save(content, tmp_path / "old.pt")
    assert FineTuneModel.load_checkpoint(tmp_path / "old.pt").temperature == 1.0


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "1", None, pytest.param(10**400, id="huge")])
def test_an_altered_temperature_is_refused(model, tmp_path, value):
    model.save_checkpoint(tmp_path / "m.pt")
    content = torch.load(tmp_path / "m.pt", weights_only=True)
    torch.save(content | {"temperature": value}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="temperature of"):
        FineTuneModel.load_checkpoint(tmp_path / "m.pt")
