"""Weights that are whole and finite, and yet cannot be right, are refused in a sentence."""

import pytest
import torch
from safetensors.torch import save_file

from sat_vg.backbone_finetuning import FineTuneModel
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, UserError, WeightsError


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_weights_of_several_types_are_no_best_model(model, tmp_path, dtype):
    path = tmp_path / "best_model.pt"
    model.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    content["state_dict"]["layer3.0.conv1.weight"] = content["state_dict"]["layer3.0.conv1.weight"].to(dtype)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"has weights of the types .*{dtype}.*it is altered"):
        FineTuneModel.load_checkpoint(path)


def test_probabilities_that_are_no_numbers_are_not_given(model, tmp_path):
    model.save_checkpoint(tmp_path / "best_model.pt")
    broken = FineTuneModel.load_checkpoint(tmp_path / "best_model.pt")
    broken.network.fc.bias.data.fill_(float("nan"))
    with pytest.raises(UserError, match="its weights are broken"):
        broken.predict(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
