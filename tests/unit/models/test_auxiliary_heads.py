"""Inception's and GoogLeNet's second classifiers: trained with their loss, absent from the extractor."""

import pytest
import torch
from torchvision import models

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training.losses import CrossEntropy
from sat_vg.backbone_finetuning.training.optim import build_optimizer, set_learning_rate


@pytest.fixture
def model():
    torch.manual_seed(0)
    return FineTuneModel("googlenet", 3, pretrained=False, image_size=64)


def test_training_outputs_are_those_of_torchvision(model):
    """The same three logits as torchvision's own training forward, in eval mode of everything but its switch."""
    model.eval()
    images = torch.randn(2, 3, 64, 64)
    outputs = model.training_outputs(images)
    assert [weight for weight, _ in outputs] == [1.0, 0.3, 0.3]
    model.network.training = True  # the switch alone, so that batch norm and dropout stay as they are
    logits, aux2, aux1 = model.network(images)
    for (_, mine), theirs in zip(outputs, (logits, aux1, aux2), strict=True):
        assert torch.equal(mine, theirs)


def test_their_loss_trains_them_and_the_stages_before_them(model):
    optimizer = build_optimizer(model, "sgd", 0.0, 0.0)
    set_learning_rate(optimizer, 0.1)
    before = {name: value.clone() for name, value in model.network.named_parameters()}
    model.train()
    (_, _), (weight, logits), _ = model.training_outputs(torch.randn(4, 3, 64, 64))
    (weight * CrossEntropy()(logits, torch.eye(3)[[0, 1, 2, 0]])).backward()
    optimizer.step()
    moved = {
        name.split(".")[0] for name, value in model.network.named_parameters() if not torch.equal(value, before[name])
    }
    assert {"aux1", "conv1", "inception4a"} <= moved
    assert not {"aux2", "fc", "inception4b"} & moved


def test_a_head_behind_frozen_stages_rests(model):
    model.train_from("inception4d")
    model.train()
    assert [weight for weight, _ in model.training_outputs(torch.randn(2, 3, 64, 64))] == [1.0, 0.3]
    trained = {name.split(".")[0] for name, p in model.network.named_parameters() if p.requires_grad}
    assert "aux1" not in trained
    assert {"aux2", "fc"} <= trained
    assert not any(m.training for m in model.network.aux1.modules())
    model.train_from("stem")
    model.train()
    assert all(p.requires_grad for p in model.network.aux1.parameters())
    assert all(m.training for m in model.network.aux1.modules())


def test_the_extractor_has_none(model, tmp_path):
    names = set(model.get_feature_extractor().state_dict())
    assert not any(name.startswith(("aux1", "aux2", "fc")) for name in names)
    model.save_checkpoint(tmp_path / "m.pt")
    loaded = FineTuneModel.load_checkpoint(tmp_path / "m.pt")
    assert len(loaded.training_outputs(torch.randn(1, 3, 64, 64))) == 3
    assert hasattr(model.network, "aux1")  # the model itself keeps them


def test_weights_of_torchvision_come_with_their_auxiliary_heads(tmp_path):
    torch.manual_seed(1)
    trained = models.googlenet(init_weights=False, aux_logits=True)
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    model = FineTuneModel("googlenet", 3, weights=str(tmp_path / "w.pth"), image_size=64)
    assert "none missing" in model.weights_report
    assert torch.equal(model.network.aux1.conv.conv.weight, trained.aux1.conv.conv.weight)
    # Images in [-1, 1], as the network was trained, and not ImageNet's statistics.
    assert (model.preprocessing.mean, model.preprocessing.std) == ((0.5,) * 3, (0.5,) * 3)
    images = torch.rand(2, 3, 64, 64)
    theirs = models.googlenet(init_weights=False, aux_logits=True, transform_input=True)
    theirs.load_state_dict(trained.state_dict())
    theirs.eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    features = []
    theirs.avgpool.register_forward_hook(lambda module, inputs, output: features.append(output.flatten(1)))
    with torch.no_grad():
        theirs((images - mean) / std)
        mine = model.eval().forward_pooled((images - 0.5) / 0.5)
    torch.testing.assert_close(mine, features[0], rtol=1e-3, atol=1e-5)


def test_inception_has_its_head_where_the_map_is_large_enough():
    large = FineTuneModel("inception_v3", 3, pretrained=False, image_size=299)
    large.train()
    outputs = large.training_outputs(torch.randn(2, 3, 299, 299))
    assert [(weight, logits.shape) for weight, logits in outputs] == [(1.0, (2, 3)), (0.4, (2, 3))]
    assert any(name.startswith("AuxLogits") for name in large.head_parameter_names)
    small = FineTuneModel("inception_v3", 3, pretrained=False, image_size=96)
    small.train()
    assert len(small.training_outputs(torch.randn(2, 3, 96, 96))) == 1
