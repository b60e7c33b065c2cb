import copy

import pytest
import torch
from torch import nn

from sat_vg.backbone_finetuning.models import feature_extractor
from sat_vg.backbone_finetuning.models.feature_pyramid import LayerNorm2d, SimpleFeaturePyramid
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.networks.table import BACKBONES, BackboneRow
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.preprocessing import Preprocessing


def small_vit(patch: int, **options) -> feature_extractor.FeatureExtractor:
    """A ViT of two narrow blocks, which the table of backbones has no name for."""
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    network = VisionTransformer(4 * patch, patch, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=3)
    row = BackboneRow("vit_b_16", BACKBONES["vit_b_16"].family)
    return feature_extractor.FeatureExtractor(
        network, row, preprocessing=Preprocessing(image_size=4 * patch), **options
    )


@pytest.fixture
def pyramid():
    return SimpleFeaturePyramid(small_vit(16), channels=24)


@pytest.mark.parametrize(
    ("patch", "strides"), [(16, (4, 8, 16, 32)), (32, (8, 16, 32, 64)), (14, (3.5, 7, 14, 28)), (8, (2, 4, 8, 16))]
)
def test_the_declared_strides_are_those_of_the_maps(patch, strides):
    pyramid = SimpleFeaturePyramid(small_vit(patch), channels=24)
    assert pyramid.strides == strides
    assert [type(stride) for stride in pyramid.strides] == [type(stride) for stride in strides]
    maps = pyramid(torch.randn(2, 3, 4 * patch, 6 * patch))
    assert tuple(maps) == pyramid.out_names == ("p2", "p3", "p4", "p5")
    for features, stride, channels in zip(maps.values(), strides, pyramid.channels, strict=True):
        assert features.shape == (2, channels, 4 * patch / stride, 6 * patch / stride)
    assert (pyramid.num_channels, pyramid.size_divisibility, pyramid.untrained) == (24, patch, True)
    assert (pyramid.mean, pyramid.std, pyramid.in_channels) == (
        pyramid.extractor.mean, pyramid.extractor.std, 3
    )  # fmt: skip


def test_odd_grids_keep_their_last_row(pyramid):
    images = torch.randn(1, 3, 80, 48)  # 5 × 3 patches
    assert pyramid(images)["p5"].shape[2:] == (3, 2)
    lone = torch.zeros(1, 32, 5, 3)
    lone[:, :, -1, -1] = 7.0
    halved = pyramid.branches["p5"][0](lone)
    assert (halved[:, :, -1, -1] == 7.0).all()
    assert halved.sum() == 7.0 * 32


def test_masks_follow_every_map_also_on_odd_grids(pyramid):
    images = torch.randn(2, 3, 75, 48)  # padded to 80: 5 × 3 patches
    mask = torch.zeros(2, 75, 48, dtype=torch.int32)
    mask[1, 64:] = 1  # the last row of patches
    maps = pyramid.forward_with_mask(images, mask)
    for (features, small), rows in zip(maps.values(), (16, 8, 4, 2), strict=True):
        assert small.dtype == torch.bool
        assert small.shape == (2, *features.shape[-2:])
        assert small[1, rows:].all()
        assert not small[1, :rows].any()
    assert maps["p2"][1][0, -1].all()  # pixels 76 … 79 are not in the image
    assert not maps["p2"][1][0, :-1].any()
    assert not pyramid.forward_with_mask(torch.randn(1, 3, 64, 48), None)["p5"][1].any()
    with pytest.raises(ValueError, match="mask has shape"):
        pyramid.forward_with_mask(images, mask[:, :-1])


def test_masks_equal_the_extractors_nearest_where_the_grid_divides(pyramid):
    mask = torch.rand(2, 64, 96) < 0.5
    own = pyramid.forward_with_mask(torch.randn(2, 3, 64, 96), mask)
    theirs = pyramid.extractor.forward_with_mask(torch.randn(2, 3, 64, 96), mask)
    assert torch.equal(own["p4"][1], theirs["norm"][1])
    for name, stride in zip(pyramid.out_names, pyramid.strides, strict=True):
        assert torch.equal(own[name][1], mask[:, ::stride, ::stride])


def test_a_batch_of_odd_map_sizes_from_a_cnn_is_masked_too():
    extractor = FineTuneModel("resnet18", 3, pretrained=False, image_size=64).get_feature_extractor(["layer4"])
    maps = SimpleFeaturePyramid(extractor, 8).forward_with_mask(torch.randn(1, 3, 100, 70), None)
    for features, small in maps.values():
        assert small.shape[1:] == features.shape[2:]


def test_tokens_are_those_of_the_coarsest_map(pyramid):
    images = torch.randn(2, 3, 64, 96)
    mask, tokens = pyramid.forward_tokens(images)
    assert mask.shape == (2, 6)
    assert torch.equal(tokens, pyramid(images)["p5"].flatten(2).permute(2, 0, 1))


def test_channel_norm_normalises_each_place(pyramid):
    normed = LayerNorm2d(32)(torch.randn(2, 32, 5, 4) * 9 + 3)
    assert normed.mean(1).abs().max() < 1e-4
    assert (normed.std(1, unbiased=False) - 1).abs().max() < 1e-3


def test_several_strides_are_refused_with_the_remedy():
    extractor = FineTuneModel("resnet18", 3, pretrained=False, image_size=64).get_feature_extractor()
    with pytest.raises(ConfigError, match=r"\(4, 8, 16, 32\).*as_torchvision.*out_names=\['layer4'\]"):
        SimpleFeaturePyramid(extractor)
    with pytest.raises(ConfigError, match="channels = 0"):
        SimpleFeaturePyramid(small_vit(16), 0)


def test_several_maps_of_one_stride_give_the_last():
    both = SimpleFeaturePyramid(small_vit(16, out_names=["block0", "norm"]), 8)
    last = SimpleFeaturePyramid(small_vit(16), 8)
    last.load_state_dict(both.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(both(images)["p4"], last(images)["p4"])


def test_param_groups_cover_what_is_trained():
    pyramid = SimpleFeaturePyramid(small_vit(16, trainable_stages=["block1", "norm"]), 8)
    groups = pyramid.param_groups(lr=1.0, decay=0.5)
    assert [(group["name"], group["lr"]) for group in groups] == [("block1", 0.5), ("norm", 1.0), ("pyramid", 1.0)]
    trained = {id(p) for p in pyramid.parameters() if p.requires_grad}
    grouped = [id(p) for group in groups for p in group["params"]]
    assert set(grouped) == trained
    assert len(grouped) == len(trained)
    pyramid.branches.requires_grad_(False)
    assert [group["name"] for group in pyramid.param_groups(1.0)] == ["block1", "norm"]


def test_gradients_modes_copies_and_state_dict():
    pyramid = SimpleFeaturePyramid(small_vit(16, trainable_stages=["block1", "norm"]), 8).train()
    frozen = [
        m
        for n, m in pyramid.extractor.named_modules()
        if n.startswith(("conv_proj", "encoder.layers.encoder_layer_0"))
    ]
    assert len(frozen) > 5
    assert not any(module.training for module in frozen)
    assert pyramid.branches.training
    images = torch.randn(1, 3, 64, 64)
    # Not squared: the mean square of a layer norm's output is constant.
    sum((m * torch.randn_like(m)).sum() for m in pyramid(images).values()).backward()
    for name, parameter in pyramid.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == parameter.requires_grad, name
    other = copy.deepcopy(pyramid)
    assert torch.equal(other(images)["p2"], pyramid(images)["p2"])
    nn.init.zeros_(other.extractor.encoder.ln.weight)
    assert not torch.equal(other(images)["p2"], pyramid(images)["p2"])
    other.load_state_dict(pyramid.state_dict())
    assert torch.equal(other(images)["p2"], pyramid(images)["p2"])
    assert {name.split(".")[0] for name in pyramid.state_dict()} == {"extractor", "branches"}


def test_it_is_made_in_the_extractors_dtype():
    pyramid = SimpleFeaturePyramid(small_vit(16).to(torch.float64), 8)
    assert {m.dtype for m in pyramid(torch.randn(1, 3, 64, 64, dtype=torch.float64)).values()} == {torch.float64}
