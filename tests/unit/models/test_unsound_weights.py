"""Weights that are whole and finite, and yet cannot be right, are refused in a sentence."""

import pytest
import torch
from safetensors.torch import save_file

from sat_vg.backbone_finetuning import FineTuneModel
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, WeightsError


@pytest.fixture(scope="module")
def model() -> FineTuneModel:
    return FineTuneModel("resnet18", 2, pretrained=False, image_size=32)


def test_variances_below_zero_are_refused(model, tmp_path):
    state = {
        name: -value if name.endswith("running_var") else value for name, value in model.network.state_dict().items()
    }
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"bn1.running_var is a variance and has numbers below 0"):
        FineTuneModel("resnet18", 2, weights=str(tmp_path / "w.pth"), image_size=32)


@pytest.mark.parametrize("told", ["[]", "5", "null", "{}", '{"mean": [0, 0, 0]}'])
def test_preprocessing_that_is_none_is_refused(model, tmp_path, told):
    path = tmp_path / "w.safetensors"
    facts = {"backbone": "resnet18", "class_names": '["a", "b"]', "preprocessing": told}
    save_file(model.network.state_dict(), path, metadata=facts)
    with pytest.raises(CheckpointError, match="no sound preprocessing"):
        FineTuneModel("resnet18", 2, weights=str(path), image_size=32)


def test_likewise_in_a_best_model(model, tmp_path):
    path = tmp_path / "best_model.pt"
    model.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    torch.save({**content, "preprocessing": [1, 2]}, path)
    with pytest.raises(CheckpointError, match="no sound preprocessing"):
        FineTuneModel("resnet18", 2, weights=str(path), image_size=32)
