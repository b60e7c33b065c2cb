import copy
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from sat_vg.backbone_finetuning import create_efficientnet, create_resnet, create_vit
from sat_vg.backbone_finetuning.models import artifact
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.frozen_norm import FrozenBatchNorm2d
from sat_vg.backbone_finetuning.models.position_embedding import resample_positions
from sat_vg.backbone_finetuning.training.losses import CrossEntropy
from sat_vg.backbone_finetuning.training.optim import build_optimizer, set_learning_rate
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, ConfigError, UserError
from sat_vg.backbone_finetuning.utils.precision import Precision
from sat_vg.backbone_finetuning.utils.preprocessing import BandFiles


def resnet(**options):
    return FineTuneModel("resnet18", 5, pretrained=False, image_size=64, **options)


def test_the_last_resnet_map_is_that_of_the_cut_network_bitwise():
    model = FineTuneModel("resnet50", 5, pretrained=False).eval()
    cut = nn.Sequential(*list(model.network.children())[:-2])
    for size in (224, 320):
        images = torch.randn(1, 3, size, size)
        with torch.no_grad():
            assert torch.equal(model.get_feature_extractor()(images)["layer4"], cut(images))


def test_a_stride_32_extractor_gives_400_tokens_at_640():
    with torch.no_grad():
        mask, tokens = resnet().get_feature_extractor(["layer4"]).forward_tokens(torch.randn(1, 3, 640, 640))
    assert mask.shape == (1, 400)
    assert tokens.shape == (400, 1, 512)


def test_unfreeze_layers_by_name():
    model = resnet(freeze_early_layers=True, unfreeze_layers=["layer4", "layer2"])
    assert model.trainable_stages == ("layer2", "layer4")
    assert model.num_frozen_stages == 2
    assert not model.network.layer3[0].conv1.weight.requires_grad
    assert resnet(freeze_early_layers=True).trainable_stages == ("layer2", "layer3", "layer4")
    with pytest.raises(ConfigError, match=r"'layer5'.*did you mean layer\d\? Stages: stem, layer1"):
        resnet(freeze_early_layers=True, unfreeze_layers=["layer5"])


def test_a_frozen_stage_between_trained_ones_passes_gradients_on():
    model = resnet(freeze_early_layers=True, unfreeze_layers=["layer2", "layer4"]).train()
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert model.network.layer2[0].conv1.weight.grad is not None
    assert model.network.layer3[0].conv1.weight.grad is None
    assert model.network.layer1[0].conv1.weight.grad is None


def test_the_start_depends_on_the_seed_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, same, other = resnet(seed=1), resnet(seed=1), resnet(seed=2)
    assert torch.equal(one.network.fc.weight, same.network.fc.weight)
    assert not torch.equal(one.network.fc.weight, other.network.fc.weight)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ConfigError, match="resnet50"):
        FineTuneModel("resnet-50", 5, pretrained=False)
    with pytest.raises(ConfigError, match="backbone = 50: must be a name"):
        FineTuneModel(50, 5, pretrained=False)
    with pytest.raises(ConfigError, match=r"out_names = 1\.5: no stage of this backbone"):
        resnet().get_feature_extractor(out_names=[1.5])
    with pytest.raises(ConfigError, match="multiple of 16; for example 96"):
        FineTuneModel("vit_b_16", 5, pretrained=False, image_size=100)
    with pytest.raises(ConfigError, match=r"class_names = \['a', 'b', 'a'\]: a name is there more than once"):
        FineTuneModel("resnet18", 3, pretrained=False, class_names=["a", "b", "a"])
    with pytest.raises(ConfigError, match="class_names holds 1"):
        FineTuneModel("resnet18", 5, pretrained=False, class_names=["a"])


def test_factories_freeze_the_first_stage_groups():
    settings = {"architecture": "resnet50", "num_classes": 10, "pretrained": False, "freeze_layers": 2}
    model = create_resnet(settings)
    assert model.trainable_stages == ("layer2", "layer3", "layer4")
    vit = create_vit({"architecture": "vit_b_16", "num_classes": 2, "pretrained": False, "image_size": 32})
    assert vit.num_classes == 2
    dropping = create_vit(
        {
            "architecture": "vit_b_32",
            "num_classes": 2,
            "pretrained": False,
            "image_size": 32,
            "attention_dropout": 0.2,
        }
    )
    assert {block.self_attention.dropout for block in dropping.network.encoder.layers} == {0.2}
    efficientnet = {"architecture": "efficientnet_b0", "num_classes": 2, "pretrained": False, "freeze_layers": 9}
    assert create_efficientnet(efficientnet).trainable_stages == ()
    from sat_vg.backbone_finetuning.models import create_resnet as from_models

    assert from_models is create_resnet
    with pytest.raises(ConfigError, match="no ViT"):
        create_vit(settings)
    for name, value in (
        ("dropout", 1.5),
        ("dropout", -0.1),
        ("num_classes", 0),
        ("num_classes", -3),
        ("image_size", 0),
    ):
        with pytest.raises(ConfigError, match=f"{name} = {value}: "):
            create_resnet({**settings, name: value})
    with pytest.raises(ConfigError, match="attention_dropout"):
        create_resnet({**settings, "attention_dropout": 0.1})
    with pytest.raises(ConfigError, match="depth"):
        create_resnet({**settings, "depth": 3})
    with pytest.raises(ConfigError, match="0 to 5"):
        create_resnet({**settings, "freeze_layers": 6})


def test_attention_maps_are_the_attention_that_the_block_applies():
    model = FineTuneModel("vit_b_16", 3, pretrained=False, image_size=64).train()
    images = torch.randn(2, 3, 64, 64)
    maps = model.get_attention_maps(images, layer_idx=-1)
    assert maps.shape == (2, 12, 17, 17)
    assert torch.allclose(maps.sum(-1), torch.ones(2, 12, 17), atol=1e-5)
    assert model.training
    model.eval()
    block = model.network.encoder.layers.encoder_layer_11
    with torch.no_grad():
        tokens = block.ln_1(model.run_stages(images, stop=12))
        attention = block.self_attention
        value = nn.functional.linear(tokens, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)[2]
        value = value.unflatten(2, (12, 64)).transpose(1, 2)
        joined = (maps @ value).transpose(1, 2).flatten(2)
        expected, _ = attention(tokens, tokens, tokens, need_weights=False)
        assert torch.allclose(attention.out_proj(joined), expected, atol=1e-4)
    assert model.get_attention_maps(torch.randn(1, 3, 96, 48)).shape == (1, 12, 19, 19)
    with pytest.raises(ConfigError, match="blocks 0 to 11"):
        model.get_attention_maps(images, layer_idx=12)
    with pytest.raises(ConfigError, match="no attention"):
        resnet().get_attention_maps(images)


def test_positions_are_resampled_smoothly():
    grid = torch.arange(16.0).reshape(1, 16, 1)
    positions = torch.cat([torch.full((1, 1, 1), 99.0), grid], dim=1)
    assert resample_positions(positions, (4, 4), 1) is positions
    larger = resample_positions(positions, (8, 6), 1)
    assert larger.shape == (1, 49, 1)
    assert larger[0, 0, 0] == 99
    assert larger[0, 1:].mean() == pytest.approx(7.5, abs=0.3)
    with pytest.raises(ValueError, match="square"):
        resample_positions(positions[:, :-1], (4, 4), 1)


def copied_over(target, source):
    for mine, theirs in zip(target.parameters(), source.parameters(), strict=True):
        mine.data.copy_(theirs.data)


def averaged_over(target, source):
    for mine, theirs in zip(target.parameters(), source.parameters(), strict=True):
        mine.data.mul_(0.0).add_(theirs.data, alpha=1.0)


def swapped(target, source):
    for mine, theirs in zip(target.parameters(), source.parameters(), strict=True):
        mine.data = theirs.data.clone()


def loaded(target, source):
    target.load_state_dict(source.state_dict())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *(("vit_b_32", change) for change in (copied_over, averaged_over, swapped, loaded)),
        ("swin_t", copied_over),
        ("timm:vit_tiny_patch16_224", copied_over),
    ],
)
def test_changed_parameters_are_seen_at_once_however_they_are_changed(name, change):
    """A teacher that follows a student is written in all of these ways."""
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    teacher = FineTuneModel(name, 3, pretrained=False, image_size=64).get_feature_extractor().requires_grad_(False)
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for _, parameter in student.named_parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        images = torch.randn(1, 3, 96, 64)  # not the size of the training
        teacher(images)
        change(teacher, student)
        for mine, theirs in zip(teacher(images).values(), student(images).values(), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_v2_s"])
def test_frozen_norm_keeps_each_layers_eps_and_survives_train(name):
    model = FineTuneModel(name, 3, pretrained=False, image_size=64)
    extractor = model.get_feature_extractor()
    norms = [m for m in extractor.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in extractor.modules())
    expected = [m.eps for m in model.network.features.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.eps for m in norms] == expected
    for module in extractor.modules():
        module.train()
    before = norms[0].running_mean.clone()
    extractor(torch.randn(2, 3, 64, 64))
    assert torch.equal(norms[0].running_mean, before)
    assert not norms[0].weight.requires_grad
    free = model.get_feature_extractor(freeze_norm=False).train()
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in free.modules())


def test_the_extractor_is_a_copy():
    model = resnet()
    extractor = model.get_feature_extractor(trainable_stages=["layer4"])
    assert model.network.conv1.weight.requires_grad
    assert not extractor.get_parameter("conv1.weight").requires_grad
    extractor.get_parameter("conv1.weight").data.zero_()
    assert model.network.conv1.weight.abs().sum() > 0
    with pytest.raises(ConfigError, match="out_names = 'layer9'"):
        model.get_feature_extractor(["layer9"])


def test_the_extractor_decides_what_is_trained_whatever_the_model_froze():
    model = resnet(freeze_early_layers=True, unfreeze_layers=["layer4"])
    extractor = model.get_feature_extractor()
    assert extractor.trainable_stages == model.stage_names
    assert extractor.get_parameter("conv1.weight").requires_grad
    assert not extractor.get_buffer("bn1.weight").requires_grad  # batch norm is frozen by default
    chosen = model.get_feature_extractor(trainable_stages=["stem"])
    assert chosen.get_parameter("conv1.weight").requires_grad
    assert not chosen.get_parameter("layer4.0.conv1.weight").requires_grad


def test_an_extractor_made_and_used_in_inference_mode():
    with torch.inference_mode():
        model = FineTuneModel("vit_b_16", 3, pretrained=False, image_size=64)
        assert model.get_feature_extractor()(torch.randn(1, 3, 96, 80))["norm"].shape == (1, 768, 6, 5)


def trained(name, images):
    """A model after two steps, and what it then gives for the images."""
    precision = Precision(torch.device("cpu"), torch.float32)
    model = FineTuneModel(name, 3, pretrained=False, image_size=64)
    precision.place_model(model)
    optimizer = build_optimizer(model, "adamw", 0.01, 0.9)
    set_learning_rate(optimizer, 1e-3)
    images = precision.place_images(images)
    model.train()
    for _ in range(2):
        CrossEntropy()(model(images), torch.eye(3)[[0, 1, 2, 0]]).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return model.eval(), model(images)


def test_the_loaded_model_equals_the_trained_one_bitwise_in_a_new_process(tmp_path):
    names = ("resnet18", "mobilenet_v2", "efficientnet_b0", "timm:vit_tiny_patch16_224")
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = {}
    for name in names:
        model, expected[name] = trained(name, images)
        model.save_checkpoint(tmp_path / f"{name}.pt")
    code = f"""
import torch
from sat_vg.backbone_finetuning import FineTuneModel
torch.set_num_threads({torch.get_num_threads()})
images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    torch.save({{name: FineTuneModel.load_checkpoint(f"{{name}}.pt")(images) for name in {names}}}, "logits.pt")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    found = torch.load(tmp_path / "logits.pt", weights_only=True)
    assert [name for name in names if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize(
    "backbone", ["resnet18", "vit_b_32", "swin_v2_t", "googlenet", "custom_cnn", "regnet_x_400mf"]
)
def test_a_loaded_model_is_the_one_that_is_built_with_random_weights_first(backbone, tmp_path, monkeypatch):
    FineTuneModel(backbone, 3, False, image_size=64, dropout=0.3).save_checkpoint(tmp_path / "m.pt")
    built = []
    build = artifact._built_without_values
    monkeypatch.setattr(artifact, "_built_without_values", lambda of: built.append(build(of)) or built[-1])
    quick = FineTuneModel.load_checkpoint(tmp_path / "m.pt")
    assert [model is quick for model in built] == [backbone != "regnet_x_400mf"]
    monkeypatch.setattr(artifact, "_built_without_values", lambda of: None)
    usual = FineTuneModel.load_checkpoint(tmp_path / "m.pt")
    assert [type(module) for module in quick.modules()] == [type(module) for module in usual.modules()]
    for of in ("named_parameters", "named_buffers"):
        pairs = list(zip(getattr(quick, of)(), getattr(usual, of)(), strict=True))
        assert pairs or of == "named_buffers"  # ViT has none
        for (name, one), (other_name, other) in pairs:
            assert (name, one.device, one.dtype, one.stride()) == (
                other_name,
                other.device,
                other.dtype,
                other.stride(),
            )
            assert torch.equal(one, other)
            assert one.requires_grad is other.requires_grad
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(quick(images), usual(images))


@pytest.mark.parametrize("place", ["buffer", "attribute"])
def test_a_network_with_tensors_outside_its_state_dict_is_built_as_usual(place):
    def build():
        model = FineTuneModel("custom_cnn", 3, False, image_size=32)
        if place == "buffer":
            model.network.register_buffer("table", torch.arange(3.0), persistent=False)
        else:
            model.network.table = torch.arange(3.0)
        return model

    assert artifact._built_without_values(build) is None


def test_images_without_pixels_are_refused():
    model = resnet()
    for images in (np.zeros((0, 40, 3), np.uint8), torch.zeros(2, 3, 0, 40, dtype=torch.uint8)):
        with pytest.raises(UserError, match="has no pixels"):
            model.predict(images)


def test_geotiff_values_that_are_all_missing_are_refused_as_such_a_file_is():
    model = resnet()
    model.preprocessing = replace(model.preprocessing, scale=1.0, files=BandFiles((1, 2, 3), "uint16", 3))
    values = torch.full((3, 40, 40), torch.nan)
    with pytest.raises(UserError, match="has no value"):
        model.predict(values)
    values[0, 0, 0] = 9.0
    assert len(model.predict(values)) == 1
    assert len(model.predict(torch.ones(3, 40, 40, dtype=torch.int32))) == 1


def test_artifacts_that_are_none(tmp_path):
    with pytest.raises(CheckpointError, match="no file"):
        FineTuneModel.load_checkpoint(tmp_path / "none.pt")
    torch.save(models.resnet18().state_dict(), tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match="--weights"):
        FineTuneModel.load_checkpoint(tmp_path / "plain.pth")
    resnet().save_checkpoint(tmp_path / "m.pt")
    content = torch.load(tmp_path / "m.pt", weights_only=True)
    torch.save({**content, "schema": 9}, tmp_path / "new.pt")
    with pytest.raises(CheckpointError, match="schema 9"):
        FineTuneModel.load_checkpoint(tmp_path / "new.pt")
    whole = (tmp_path / "m.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cut short"):
        FineTuneModel.load_checkpoint(tmp_path / "cut.pt")
