"""A model that can give an image several classes: what best_model.pt says of it, and its probabilities."""

import pytest
import torch

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, ConfigError


@pytest.fixture
def path(tmp_path):
    model = FineTuneModel("resnet18", 3, pretrained=False, image_size=32, task="multi_label")
    model.temperature = 2.0
    model.save_checkpoint(tmp_path / "m.pt")
    return tmp_path / "m.pt"


def test_its_probabilities_are_each_class_by_itself(path):
    model, images = FineTuneModel.load_checkpoint(path), torch.randn(4, 3, 32, 32)
    assert model.task == "multi_label"
    with torch.no_grad():
        logits = model(images)
    assert torch.equal(model.predict_probabilities(images), (logits / 2).sigmoid())


def test_a_picture_of_what_it_looked_at_shows_the_same_probability(path, tmp_path):
    from sat_vg.backbone_finetuning.models.explain import _titles

    model, images = FineTuneModel.load_checkpoint(path), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        shares = (model(images) / 2).sigmoid()
    titles = _titles(model, images, None)
    assert titles == [f"{int(row.argmax())} {100 * row.max():.0f} %" for row in shares]


def test_a_file_from_before_gives_one_class(path, tmp_path):
    content = torch.load(path, weights_only=True)
    assert content.pop("task") == "multi_label"
    torch.save(content, tmp_path / "old.pt")
    assert FineTuneModel.load_checkpoint(tmp_path / "old.pt").task == "single_label"


@pytest.mark.parametrize("value", ["both", None, 1, ["multi_label"], torch.ones(2)])
def test_an_altered_task_is_refused(path, value):
    torch.save(torch.load(path, weights_only=True) | {"task": value}, path)
    with pytest.raises(CheckpointError, match="knows single_label and multi_label: it is altered"):
        FineTuneModel.load_checkpoint(path)


def test_an_unknown_task_is_refused():
    with pytest.raises(ConfigError, match="task = 'both': must be single_label or multi_label"):
        FineTuneModel("resnet18", 3, pretrained=False, image_size=32, task="both")
