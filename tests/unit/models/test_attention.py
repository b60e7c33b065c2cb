import pytest
import torch

from sat_vg.backbone_finetuning.models import attention
from sat_vg.backbone_finetuning.models.attention import attention_on_grid
from sat_vg.backbone_finetuning.models.explain import attention_heat
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.errors import ConfigError


@pytest.fixture(scope="module")
def vit():
    return FineTuneModel("vit_b_32", 3, pretrained=False, image_size=64, freeze_early_layers=True)


def maps_of(model, images, layer_idx):
    return attention_on_grid(model.network, model.row, model.stages, images, layer_idx).weights


def test_the_weights_on_the_values_are_what_the_block_adds(vit):
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    block = vit.network.encoder.layers[7].self_attention
    seen = []
    handle = block.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output[0])))
    with torch.no_grad():
        vit.eval()(images)
    handle.remove()
    maps, grid, *_ = attention_on_grid(vit.network, vit.row, vit.stages, images, 7)
    assert grid == (2, 3)
    assert maps.shape == (2, 12, 7, 7)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 12, 7))
    (tokens, output) = seen[0]
    with torch.no_grad():
        values = torch.nn.functional.linear(tokens, block.in_proj_weight[1536:], block.in_proj_bias[1536:])
        joined = (maps @ values.unflatten(2, (12, -1)).transpose(1, 2)).transpose(1, 2).flatten(2)
        torch.testing.assert_close(block.out_proj(joined), output, rtol=1e-4, atol=1e-5)


def test_blocks_are_counted_over_the_whole_network(vit):
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(maps_of(vit, images, -1), maps_of(vit, images, 11))
    assert not torch.equal(maps_of(vit, images, -1), maps_of(vit, images, 0))
    with pytest.raises(ConfigError, match="layer_idx = 12: vit_b_32 has blocks 0 to 11"):
        maps_of(vit, images, 12)
    with pytest.raises(ConfigError, match="layer_idx = -13"):
        maps_of(vit, images, -13)


def test_flags_gradients_and_extractors(vit):
    model = vit.train()
    modes = [module.training for module in model.modules()]
    images = torch.randn(2, 3, 64, 64)
    maps = maps_of(model, images, -1)
    assert [module.training for module in model.modules()] == modes
    assert len(set(modes)) == 2
    assert not maps.requires_grad
    extractor = model.get_feature_extractor()
    assert torch.equal(attention_on_grid(extractor, model.row, model.stages, images, -1).weights, maps)
    with pytest.raises(RuntimeError, match="channels"):
        maps_of(model, torch.randn(2, 5, 64, 64), -1)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(("name", "reason"), [("resnet18", "has no attention"), ("swin_t", "attends within windows")])
def test_networks_without_attention_maps_are_told_which_have_them(name, reason):
    model = FineTuneModel(name, 3, pretrained=False, image_size=64)
    with pytest.raises(ConfigError, match=rf"{name} {reason}.*vit_b_16.*vit_h_14.*Grad-CAM"):
        maps_of(model, torch.randn(1, 3, 64, 64), -1)


def test_what_would_fill_the_memory_is_refused(vit, monkeypatch):
    monkeypatch.setattr(attention, "_LARGEST_RESULT", 2 * 12 * 5**2 * 4)  # two images of 5 tokens and 12 heads
    assert maps_of(vit, torch.randn(2, 3, 64, 64), 0).shape == (2, 12, 5, 5)
    with pytest.raises(ConfigError, match=r"3 images would be \[3, 12, 5, 5\].*at most 2 images at a time"):
        maps_of(vit, torch.randn(3, 3, 64, 64), -11)
    with pytest.raises(ConfigError, match=r"1 image would.*smaller images"):
        maps_of(vit, torch.randn(1, 3, 128, 128), 0)


@pytest.mark.parametrize("backbone", ["vit_b_32", "swin_t", "swin_v2_t"])
def test_attention_drops_weights_in_training_alone(backbone):
    plain, dropping = (
        FineTuneModel(backbone, 3, pretrained=False, image_size=64, attention_dropout=share) for share in (0.0, 0.3)
    )
    for (name, one), other in zip(plain.state_dict().items(), dropping.state_dict().values(), strict=True):
        assert torch.equal(one, other), name  # the random start is not touched
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(plain.eval()(images), dropping.eval()(images))
        dropping.train_from(dropping.stage_names[-1])  # frozen blocks drop nothing either
        assert torch.equal(plain.run_stages(images), dropping.train().run_stages(images))
        for model in (plain, dropping):
            model.set_trainable(model.stage_names)
            for module in model.train().modules():
                if type(module).__name__ == "StochasticDepth":
                    module.p = 0.0
        assert torch.equal(plain.run_stages(images), plain.run_stages(images))
        assert not torch.equal(dropping.run_stages(images), dropping.run_stages(images))


@pytest.mark.parametrize(("name", "prefix"), [("vit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2)])
def test_timms_attention_is_what_its_block_applies(name, prefix):
    pytest.importorskip("timm")
    model = FineTuneModel(f"timm:{name}", 3, pretrained=False, image_size=64)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    layer, seen = model.network.trunk.blocks[7].attn, []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad():
        model.eval()(images)
        handle.remove()
        ((tokens, output),) = seen
        maps, grid, num_prefix_tokens, of_class_token = attention_on_grid(
            model.network, model.row, model.stages, images, 7
        )
        values = layer.qkv(tokens).unflatten(2, (3, 3, -1))[:, :, 2].transpose(1, 2)
        joined = (maps @ values).transpose(1, 2).flatten(2)
        torch.testing.assert_close(layer.proj(joined), output, rtol=1e-4, atol=1e-5)
    assert (grid, num_prefix_tokens, of_class_token) == ((4, 6), prefix, True)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 3, 24 + prefix))
    assert layer.fused_attn and not layer.attn_drop._forward_hooks
    extractor = model.get_feature_extractor()
    assert torch.equal(attention_on_grid(extractor, model.row, model.stages, images, 7).weights, maps)
    with pytest.raises(ConfigError, match=rf"layer_idx = 12: timm:{name} has blocks 0 to 11"):
        maps_of(model, images, 12)


def test_attention_is_drawn_of_what_the_classifier_sees():
    weights = torch.rand(1, 2, 7, 7)
    token = attention_heat(weights, (2, 3))
    assert token.argmax() == weights[0, :, 0, 1:].mean(0).argmax()
    patches = attention_heat(weights, (2, 3), 1, False)
    assert patches.argmax() == weights[0, :, 1:, 1:].mean((0, 1)).argmax()
    model = FineTuneModel("vit_b_32", 3, pretrained=False, image_size=64, pool="avg")
    assert not attention_on_grid(model.network, model.row, model.stages, torch.randn(1, 3, 64, 64), 0).of_class_token
    pytest.importorskip("timm")
    plain = FineTuneModel("timm:pvt_v2_b0", 3, pretrained=False, image_size=64)
    with pytest.raises(ConfigError, match="pvt_v2_b0 has no attention that could be shown"):
        maps_of(plain, torch.randn(1, 3, 64, 64), -1)


def test_a_timm_transformer_drops_weights_too():
    pytest.importorskip("timm")
    name = "timm:vit_tiny_patch16_224"
    model = FineTuneModel(name, 3, pretrained=False, image_size=32, attention_dropout=0.3).train()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(model(images), model(images))


def test_what_has_no_attention_refuses_its_dropout():
    with pytest.raises(ConfigError, match=r"attention_dropout = 0.1: resnet18 has no attention that drops weights"):
        FineTuneModel("resnet18", 3, pretrained=False, image_size=32, attention_dropout=0.1)
    with pytest.raises(ConfigError, match=r"attention_dropout = 1.5: must be from 0 up to but not including 1"):
        FineTuneModel("vit_b_32", 3, pretrained=False, image_size=32, attention_dropout=1.5)
