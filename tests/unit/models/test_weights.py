import json

import pytest
import torch
from safetensors import safe_open
from torchvision import models

from sat_vg.backbone_finetuning.models import weights as weights_module
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.networks.families.convolutional import RESNET
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, ConfigError, WeightsError
from sat_vg.backbone_finetuning.utils.preprocessing import Preprocessing


def build(path, backbone="resnet18", **options):
    return FineTuneModel(backbone, 5, weights=str(path), **{"image_size": 64, **options})


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(3)
    return models.resnet18(num_classes=1000).state_dict()


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module._orig_mod.", "_orig_mod.module.", "backbone."])
def test_files_as_people_have_them(tmp_path, source, wrapper, prefix):
    state = {prefix + name: value for name, value in source.items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "w.pth")
    model = build(tmp_path / "w.pth")
    own = model.network.state_dict()
    assert all(torch.equal(own[name], value) for name, value in source.items() if not name.startswith("fc."))
    for part in ("loaded", "dropped fc.weight, fc.bias", "none missing but the new head"):
        assert part in model.weights_report


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"a.b": torch.zeros(2)}, "no name matches, under no prefix: it holds a.b"),
        ({"epoch": 3}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
        ({"conv1.weight": torch.zeros(64, 3, 5, 5)}, "1 tensor has another shape: conv1.weight is (64, 3, 5, 5)"),
        ({"conv1.weight": torch.zeros(64, 4, 7, 7)}, "conv1.weight is (64, 4, 7, 7), so they are for 4 bands"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, content, part):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        build(tmp_path / "w.pth")
    assert part in str(caught.value)


def test_weights_of_another_backbone_are_refused(tmp_path, source):
    torch.save(source, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="do not fit"):
        build(tmp_path / "w.pth", "resnet50")
    with pytest.raises(WeightsError, match="do not fit"):
        build(tmp_path / "w.pth", "vit_b_16")


def test_a_name_that_is_neither_file_nor_weights():
    with pytest.raises(WeightsError, match=r"neither a file.*IMAGENET1K_V1.*did you mean IMAGENET1K_V1"):
        build("imagenet1k_v3")


def test_a_failed_download_says_how_to_fetch_the_file(tmp_path, monkeypatch):
    # The real loading code against an address where nothing answers.
    entry = models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.hub.set_dir(str(tmp_path))
    closed = "http://127.0.0.1:9/resnet18.pth"
    monkeypatch.setattr(type(entry), "url", property(lambda self: closed), raising=False)
    with pytest.raises(WeightsError) as caught:
        weights_module._download(RESNET.weights("resnet18")["IMAGENET1K_V1"], "resnet18")
    for part in ("cannot be downloaded", closed, "--weights PATH", "--pretrained false"):
        assert part in str(caught.value)


def test_positions_are_resampled_for_another_image_size(tmp_path):
    torch.manual_seed(0)
    trained = models.vit_b_16(image_size=64).state_dict()
    trained["encoder.pos_embedding"].normal_()
    torch.save(trained, tmp_path / "w.pth")
    model = build(tmp_path / "w.pth", "vit_b_16", image_size=128)
    assert model.network.encoder.pos_embedding.shape == (1, 65, 768)
    assert torch.equal(model.network.encoder.pos_embedding[:, 0], trained["encoder.pos_embedding"][:, 0])
    same = build(tmp_path / "w.pth", "vit_b_16", image_size=64)
    assert torch.equal(same.network.encoder.pos_embedding, trained["encoder.pos_embedding"])


def test_a_fine_tuned_model_is_a_start_for_another(tmp_path):
    first = FineTuneModel("resnet18", 3, pretrained=False, image_size=64, seed=9)
    first.save_checkpoint(tmp_path / "best_model.pt")
    second = build(tmp_path / "best_model.pt")
    assert torch.equal(second.network.layer4[1].conv2.weight, first.network.layer4[1].conv2.weight)
    assert second.network.fc.weight.shape == (5, 512)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"backbone: resnet50\n", b"\xff\xd8\xff\xe0 a picture", b"PK\x03\x04cut", b"\x80\x02."]
)
def test_files_of_another_kind_are_refused(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        build(tmp_path / "w.pth")


def test_a_plain_file_is_normalised_as_torchvisions_own_weights(tmp_path):
    network = models.efficientnet_b0()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    preprocessing = build(tmp_path / "w.pth", "efficientnet_b0").preprocessing
    assert preprocessing.interpolation == "bicubic"
    assert preprocessing.mean == (0.485, 0.456, 0.406)
    first = FineTuneModel("resnet18", 3, pretrained=False, image_size=64)
    first.preprocessing = Preprocessing(image_size=64, mean=(0.1, 0.2, 0.3))
    first.save_checkpoint(tmp_path / "best_model.pt")
    assert build(tmp_path / "best_model.pt", image_size=32).preprocessing.mean == (0.1, 0.2, 0.3)


def test_real_imagenet_weights(mobilenet_weights):
    model = FineTuneModel("mobilenet_v2", 21, weights=str(mobilenet_weights))
    assert "312 tensors loaded" in model.weights_report
    assert "none missing but the new head" in model.weights_report


def test_weights_go_through_safetensors(tmp_path):
    model = FineTuneModel("resnet18", 3, pretrained=False, image_size=32, class_names=["a", "b", "<c>"], seed=4)
    model.save_safetensors(tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata()["backbone"] == "resnet18"
        assert json.loads(file.metadata()["class_names"]) == ["a", "b", "<c>"]
    again = build(tmp_path / "w.safetensors", image_size=32)
    assert "none missing" in again.weights_report
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]) or name.startswith("fc.")
    with pytest.raises(ConfigError, match=r"must end in \.safetensors"):
        model.save_safetensors(tmp_path / "w.pt")
