import pytest
import torch
from torch import nn

from sat_vg.backbone_finetuning.models import attention
from sat_vg.backbone_finetuning.models.attention import attention_maps, attention_on_grid
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.errors import ConfigError


@pytest.fixture(scope="module", params=["swin_t", "swin_v2_t"])
def swin(request):
    model = FineTuneModel(request.param, 3, pretrained=False, image_size=64).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.network.modules():  # random weights of fresh networks hide much: no biases, tiny tables
            if hasattr(module, "qkv"):
                for parameter in module.parameters():
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            if hasattr(module, "logit_scale"):
                module.logit_scale[0] = 6.0  # v2 cuts it off at log 100
    return model


def blocks_of(model):
    return [block for index in (1, 3, 5, 7) for block in model.network.features[index]]


def maps_of(model, images, layer_idx):
    return attention_maps(model.network, model.row, model.stages, images, layer_idx)


# The map is smaller than a window, one window wide, shifted along one side alone, padded and not.
@pytest.mark.parametrize("size", [(64, 64), (32, 96), (60, 100), (112, 112), (128, 128)])
def test_swin_weights_on_its_values_are_what_the_block_adds(swin, size):
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    seen = {}

    def keep(module, inputs, output):
        seen[module] = (inputs[0], output)

    blocks = blocks_of(swin)
    handles = [block.attn.register_forward_hook(keep) for block in blocks]
    with torch.no_grad():
        swin(images)
    for handle in handles:
        handle.remove()
    shifted = 0
    for number, block in enumerate(blocks):
        attn = block.attn
        tokens, output = seen[attn]
        batch, height, width, channels = tokens.shape
        maps, grid = attention_on_grid(swin.network, swin.row, swin.stages, images, number)
        assert grid == (height, width)
        assert maps.shape == (batch, attn.num_heads, height * width, height * width)
        with torch.no_grad():
            weight, bias = attn.qkv.weight[2 * channels :], attn.qkv.bias[2 * channels :]
            value = nn.functional.linear(tokens.flatten(1, 2), weight, bias)
            value = value.unflatten(2, (attn.num_heads, -1)).transpose(1, 2)
            padding = bias.view(1, attn.num_heads, 1, -1)  # the value of a padded token, which is all zeros
            sums = maps.sum(-1, keepdim=True)
            joined = (maps @ value + (1 - sums) * padding).transpose(1, 2).flatten(2)
            expected = output.flatten(1, 2)
            assert torch.allclose(attn.proj(joined), expected, atol=1e-5 * expected.abs().max().item()), number
        is_whole = height % attn.window_size[0] == 0 and width % attn.window_size[1] == 0
        assert sums.max() < 1 + 1e-5
        if is_whole:
            assert torch.allclose(sums, torch.ones_like(sums), atol=1e-5)
        elif not sum(attn.shift_size):  # a shift may put all the padding into regions of its own
            assert sums.min() < 1 - 1e-4
        shifted += sum(attn.shift_size) > 0 and max(height, width) > attn.window_size[0]
    assert shifted >= 1


def test_tokens_in_different_windows_share_nothing():
    model = FineTuneModel("swin_t", 3, pretrained=False, image_size=64)
    images = torch.randn(1, 3, 112, 112)  # a map of 28 × 28: 4 × 4 windows
    regular, shifted = (maps_of(model, images, index)[0, 0].view(28, 28, 28, 28) for index in (0, 1))
    assert regular[6, 6, :7, :7].min() > 0
    assert regular[6, 6, 7:].max() == 0
    assert regular[6, 6, :, 7:].max() == 0
    assert shifted[6, 6, 3:10, 3:10].min() > 0
    assert shifted[6, 6, :3].max() == 0
    assert shifted[6, 6, 10:].max() == 0
    assert shifted[0, 0, :3, :3].min() > 0
    assert shifted[0, 0, 3:].max() < 1e-30  # rolled into one window, but kept apart by the mask
    assert shifted[0, 0, :, 3:].max() < 1e-30


def test_blocks_are_counted_over_the_whole_network():
    model = FineTuneModel("swin_t", 3, pretrained=False, image_size=64)
    images = torch.randn(1, 3, 64, 64)
    shapes = [tuple(maps_of(model, images, index).shape[1:3]) for index in range(12)]
    assert shapes == [(3, 256)] * 2 + [(6, 64)] * 2 + [(12, 16)] * 6 + [(24, 4)] * 2
    assert torch.equal(maps_of(model, images, -1), maps_of(model, images, 11))
    with pytest.raises(ConfigError, match="layer_idx = 12: swin_t has blocks 0 to 11"):
        maps_of(model, images, 12)
    with pytest.raises(ConfigError, match="layer_idx = -13"):
        maps_of(model, images, -13)


@pytest.mark.parametrize("name", ["swin_t", "vit_b_32"])
def test_flags_gradients_and_extractors(name):
    model = FineTuneModel(name, 3, pretrained=False, image_size=64, freeze_early_layers=True).train()
    modes = [module.training for module in model.modules()]
    images = torch.randn(2, 3, 64, 64)
    maps = maps_of(model, images, -1)
    assert [module.training for module in model.modules()] == modes
    assert len(set(modes)) == 2
    assert not maps.requires_grad
    extractor = model.get_feature_extractor()
    assert torch.equal(attention_maps(extractor, model.row, model.stages, images, -1), maps)
    with pytest.raises(RuntimeError, match="channels"):
        maps_of(model, torch.randn(2, 5, 64, 64), -1)
    assert [module.training for module in model.modules()] == modes


def test_networks_without_attention_are_told_which_have_it():
    model = FineTuneModel("resnet18", 3, pretrained=False, image_size=64)
    with pytest.raises(ConfigError, match=r"resnet18 has no attention.*vit_b_16.*swin_t.*swin_v2_b"):
        maps_of(model, torch.randn(1, 3, 64, 64), -1)


def test_what_would_fill_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(attention, "_LARGEST_RESULT", 2 * 3 * 256**2 * 4)  # two images of 256 tokens and 3 heads
    model = FineTuneModel("swin_t", 3, pretrained=False, image_size=64)
    assert maps_of(model, torch.randn(2, 3, 64, 64), 0).shape == (2, 3, 256, 256)
    assert maps_of(model, torch.randn(3, 3, 64, 64), 2).shape == (3, 6, 64, 64)
    with pytest.raises(ConfigError, match=r"layer_idx = 1: .*\[3, 3, 256, 256\].*at most 2 images.*deeper"):
        maps_of(model, torch.randn(3, 3, 64, 64), -11)
    with pytest.raises(ConfigError, match="smaller images"):
        maps_of(model, torch.randn(1, 3, 128, 128), 0)
