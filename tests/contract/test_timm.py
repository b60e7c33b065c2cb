"""Networks of timm: the contract of every backbone, on real ones of each kind."""

import copy
import pickle
import sys

import pytest
import torch
from torch import nn

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.frozen_norm import FrozenBatchNorm2d
from sat_vg.backbone_finetuning.models.networks import table as backbones
from sat_vg.backbone_finetuning.models.networks.families import timm_cutting
from sat_vg.backbone_finetuning.models.networks.table import build_network, find_backbone
from sat_vg.backbone_finetuning.training.losses import CrossEntropy
from sat_vg.backbone_finetuning.training.optim import build_optimizer, set_learning_rate, spared_from_decay
from sat_vg.backbone_finetuning.utils.errors import ConfigError, UserError, WeightsError

timm = pytest.importorskip("timm")

# name: kind, first and last stages, strides of the default maps, multiple that sizes are padded to
EXPECTED = {
    "resnet10t": ("staged", ("stem", "layer1"), ("layer3", "layer4"), (4, 8, 16, 32), 1),
    "pvt_v2_b0": ("staged", ("patch_embed", "stage0"), ("stage2", "stage3"), (4, 8, 16, 32), 1),
    "convnext_atto": ("staged", ("stem", "stage0"), ("stage3", "neck"), (4, 8, 16, 32), 1),
    "efficientnet_lite0": ("staged", ("stem", "block0"), ("block6", "conv_head"), (4, 8, 16, 32), 1),
    "mobilenetv3_small_050": ("staged", ("stem", "block0"), ("block5", "neck"), (4, 8, 16, 32), 1),
    "densenet121": ("staged", ("stem", "denseblock1"), ("denseblock4", "norm5"), (4, 8, 16, 32), 1),
    "swin_tiny_patch4_window7_224": ("staged", ("patch_embed", "layer0"), ("layer3", "norm"), (4, 8, 16, 32), 4),
    "mixer_s32_224": ("staged", ("stem", "block0"), ("block7", "norm"), (32,), 64),
    "vit_tiny_patch16_224": ("vit", ("patch_embed", "block0"), ("block11", "norm"), (16,), 16),
    "deit3_small_patch16_224": ("vit", ("patch_embed", "block0"), ("block11", "norm"), (16,), 16),
    "xcit_nano_12_p16_224": ("trunk", ("trunk",), ("trunk",), (16,), 16),
}
SIZE = 64


QUICK = ("pvt_v2_b0", "mobilenetv3_small_050", "mixer_s32_224", "vit_tiny_patch16_224", "xcit_nano_12_p16_224")
PARAMETERS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in EXPECTED]


@pytest.fixture(scope="module", params=PARAMETERS)
def model(request):
    model = FineTuneModel(f"timm:{request.param}", 3, pretrained=False, image_size=SIZE, dropout=0.3)
    torch.manual_seed(0)
    for module in model.modules():  # statistics that are not those of a fresh layer, so that mixing them up shows
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        for parameter in model.parameters():  # scales that start at zero would hide a whole branch
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model.eval()


def test_weight_decay_spares_what_timm_spares_and_every_vector_token_and_position(model):
    trunk, spared = model.network.trunk, spared_from_decay(model.network, model.row.family)
    assert spared < {name for name, _ in model.network.named_parameters()}
    for name, parameter in model.network.named_parameters():
        own = name.removeprefix("trunk.")
        is_listed = hasattr(trunk, "no_weight_decay") and own in trunk.no_weight_decay()
        is_small = parameter.ndim <= 1 or "pos_embed" in own or "bias" in own or own.endswith("_token")
        assert not (is_listed or is_small) or name in spared, name
        assert not own.endswith(("conv.weight", "fc1.weight", "qkv.weight", "head.weight")) or name not in spared, (
            name
        )


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("xcit_nano_12_p8_224", "trunk.blocks.0.attn.temperature"),  # [heads, 1, 1]
        ("visformer_tiny", "trunk.pos_embed1"),  # timm lists nothing for it
        ("swinv2_tiny_window8_256", "trunk.layers.0.blocks.0.attn.cpb_mlp.0.weight"),  # timm lists it
        ("fastvit_t8", "trunk.stages.0.blocks.0.layer_scale.gamma"),  # [C, 1, 1]
        ("samvit_base_patch16", "trunk.blocks.0.attn.rel_pos_h"),
    ],
)
def test_weight_decay_spares_scales_and_positions_of_other_networks(name, parameter):
    holder, row = nn.Module(), find_backbone(f"timm:{name}")
    with torch.device("meta"):
        holder.trunk = timm.create_model(name, num_classes=0)
    assert parameter in dict(holder.named_parameters())
    assert parameter in row.family.no_weight_decay(holder)


def name_of(model):
    return model.backbone.removeprefix("timm:")


def test_it_is_cut_as_expected(model):
    kind, first, last, strides, multiple = EXPECTED[name_of(model)]
    extractor = model.get_feature_extractor()
    assert model.network.trunk.cut.kind == kind
    assert model.stage_names[: len(first)] == first
    assert model.stage_names[-len(last) :] == last
    assert extractor.strides == strides
    assert extractor.size_divisibility == multiple
    assert (model.network.trunk.cut.fixed_image_size == SIZE) == ("mixer" in model.backbone)


def test_stages_compose_to_timms_own_forward_bitwise(model):
    trunk, images = model.network.trunk, torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        pooled = trunk.forward_head(trunk.forward_features(images), pre_logits=True)
        assert torch.equal(model.forward_pooled(images), pooled)
        assert torch.equal(model(images), model.network(images))
        assert torch.equal(model.get_feature_extractor().forward_pooled(images), pooled)


def test_stages_and_head_share_out_all_parameters(model):
    owned = [name for stage in model.stages for name, _ in stage.named_parameters(model.network)]
    every = [name for name, _ in model.network.named_parameters()]
    assert sorted([*owned, *model.head_parameter_names]) == sorted(every)
    assert all(name.startswith("trunk.") for name in owned)


def test_maps_are_what_is_declared_and_what_timm_gives(model):
    with_maps = [stage.name for stage in model.stages if stage.gives_map]
    extractor = model.get_feature_extractor(out_names=with_maps)
    sizes = [(SIZE, SIZE)] if "mixer" in model.backbone else [(SIZE, SIZE), (128, 192)]
    for height, width in sizes:
        images = torch.randn(1, 3, height, width)
        with torch.no_grad():
            maps = extractor(images.clone())
            value, own = images, {}
            for stage in model.stages:
                value = stage.run(model.network, value)
                if stage.gives_map:
                    own[stage.name] = model.row.family.to_map(model.network, value, (height, width)).clone()
        assert tuple(maps) == extractor.out_names == tuple(with_maps)
        for name, channels, stride in zip(with_maps, extractor.channels, extractor.strides, strict=True):
            assert maps[name].shape == (1, channels, height // stride, width // stride)
            assert torch.equal(maps[name], own[name]), f"a later stage changed the map of {name}"
    info = model.network.trunk.feature_info
    declared = {entry["reduction"]: entry["num_chs"] for entry in info if isinstance(entry, dict)}
    found = {(stride, channels) for stride, channels in zip(extractor.strides, extractor.channels, strict=True)}
    assert {pair for pair in declared.items() if pair[0] >= 4} <= found


def test_maps_equal_timms_intermediate_ones(model):
    trunk, images = model.network.trunk, torch.randn(1, 3, SIZE, SIZE)
    last = [stage.name for stage in model.stages if stage.gives_map][-1]
    with torch.no_grad():
        ours = model.get_feature_extractor(out_names=[last])(images)[last]
        theirs = trunk.forward_features(images)
    if theirs.dim() == 3:
        theirs = theirs[:, getattr(trunk, "num_prefix_tokens", 0) :].transpose(1, 2).reshape(ours.shape)
    elif name_of(model).startswith("swin"):
        theirs = theirs.permute(0, 3, 1, 2)
    assert torch.equal(ours, theirs)


def test_freezing_moves_nothing_that_is_frozen_and_all_that_is_not(model):
    model = copy.deepcopy(model)
    keep = len(model.stages) // 2
    model.set_trainable(model.stage_names[keep:])
    optimizer = build_optimizer(model, "adamw", 0.1, 0.9)
    set_learning_rate(optimizer, 1e-2)
    images, targets = torch.randn(4, 3, SIZE, SIZE), torch.eye(3)[torch.tensor([0, 1, 2, 0])]
    frozen = tuple(f"{member}." for stage in model.stages[:keep] for member in stage.members)
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    for _ in range(2):
        model.train()
        model.network.train()
        CrossEntropy()(model(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    moved = {name for name, value in model.network.state_dict().items() if not torch.equal(value, before[name])}
    assert not [name for name in moved if f"{name}.".startswith(frozen)]
    trained = {name for name, parameter in model.network.named_parameters() if parameter.requires_grad}
    assert trained
    assert trained <= moved


def test_save_load_extract_is_exact(model, tmp_path):
    model.save_checkpoint(tmp_path / "m.pt")
    loaded = FineTuneModel.load_checkpoint(tmp_path / "m.pt")
    images = torch.randn(2, 3, SIZE, SIZE)
    theirs, ours = loaded.get_feature_extractor(), model.get_feature_extractor()
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
        for one, other in zip(theirs(images).values(), ours(images).values(), strict=True):
            assert torch.equal(one, other)
    stored = torch.load(tmp_path / "m.pt", weights_only=True)["state_dict"]
    assert set(stored) == set(model.network.state_dict())  # which load_checkpoint loads strictly into a new network


def test_the_extractor_can_be_copied_and_pickled(model):
    extractor, images = model.get_feature_extractor(), torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = list(extractor(images).values())[-1]
        for other in (copy.deepcopy(extractor), pickle.loads(pickle.dumps(extractor))):
            assert torch.equal(list(other(images).values())[-1], expected)
            for parameter in other.parameters():
                parameter.zero_()
            assert not torch.equal(list(other(images).values())[-1], expected)


def test_batch_norm_in_the_extractor_never_moves(model):
    extractor = model.get_feature_extractor().train()
    before = {name: value.clone() for name, value in extractor.named_buffers()}
    sum(m.square().mean() for m in extractor(torch.randn(2, 3, SIZE, SIZE)).values()).backward()
    assert all(torch.equal(value, before[name]) for name, value in extractor.named_buffers())
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in extractor.modules())
    norms = [m for m in extractor.modules() if isinstance(m, FrozenBatchNorm2d)]
    if name_of(model) in ("resnet10t", "efficientnet_lite0", "densenet121"):
        assert norms


def test_weights_that_change_in_eval_mode_are_seen_by_attention():
    """TinyViT, LeViT and others of timm keep what attention adds for a place until the next call of ``train()``."""
    extractor = FineTuneModel("timm:tiny_vit_5m_224", 3, pretrained=False, image_size=SIZE).get_feature_extractor()
    other, images = copy.deepcopy(extractor), torch.randn(1, 3, SIZE, SIZE)
    for name, parameter in other.named_parameters():
        if name.endswith("attention_biases"):
            parameter.data.normal_()
    last = extractor.out_names[-1]
    before, wanted = extractor(images)[last], other(images)[last]
    assert not torch.allclose(before, wanted, atol=1e-4)
    extractor.load_state_dict(other.state_dict())
    assert torch.equal(extractor(images)[last], wanted)
    for _ in range(2):  # a gradient in eval mode, too, is that of its own pass
        extractor(images)[last].sum().backward()
    again = pickle.loads(pickle.dumps(copy.deepcopy(extractor)))
    for parameter in again.parameters():
        parameter.data.mul_(0.5)
    other.load_state_dict(again.state_dict())
    assert torch.equal(again(images)[last], other(images)[last])


def test_odd_sizes_are_padded_and_marked(model):
    extractor = model.get_feature_extractor()
    with torch.no_grad():
        maps = extractor.forward_with_mask(torch.randn(1, 3, 50, 41), None)
    features, mask = maps[extractor.out_names[-1]]
    assert mask.shape == (1, *features.shape[-2:])


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before():
    row = find_backbone("timm:resnet10t")
    first = build_network(row, 3, SIZE, seed=1).state_dict()
    torch.rand(7)
    state = torch.get_rng_state()
    again = build_network(row, 3, 96, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(v, first[n]) for n, v in build_network(row, 3, SIZE, seed=2).state_dict().items())


class WritesIntoItsInput(nn.Module):
    """Of timm's shape, with a layer that starts with an activation in place, as pre-activation networks have."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.layer1 = nn.Sequential(nn.ReLU(inplace=True), nn.Sequential(nn.Conv2d(8, 9, 3, stride=2, padding=1)))

    def forward_features(self, images):
        return self.layer1(self.conv(images))

    def forward_head(self, features, pre_logits=False):
        return features.mean((2, 3))


def test_stages_that_write_into_their_input_leave_the_map_before_them_alone():
    holder = nn.Module()
    holder.trunk = WritesIntoItsInput().eval()
    images = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        first, second = timm_cutting.measure_cut(holder, images).stages
        value = first.run(holder, images)
        kept = value.clone()
        assert torch.equal(second.run(holder, value), holder.trunk.forward_features(images))
    assert (first.name, second.name) == ("conv", "layer1")
    assert kept.min() < 0
    assert torch.equal(value, kept)


def test_a_network_of_one_size_says_which():
    model = FineTuneModel("timm:mixer_s32_224", 3, pretrained=False, image_size=SIZE).eval()
    extractor = model.get_feature_extractor()
    for run in (model, extractor, extractor.forward_pooled):
        with pytest.raises(UserError, match=r"128 × 128 pixels.*built for 64 × 64.*resize"):
            run(torch.randn(1, 3, 128, 128))


def test_a_size_the_network_cannot_take_is_refused_when_it_is_built():
    with pytest.raises(ConfigError, match=r"image_size = 100: timm:dla34 does not take it.*--image_size 224"):
        FineTuneModel("timm:dla34", 3, pretrained=False, image_size=100)
    with pytest.raises(ConfigError, match=r"image_size = 70: .* needs a multiple of 16; for example 64"):
        FineTuneModel("timm:vit_tiny_patch16_224", 3, pretrained=False, image_size=70)


def test_a_network_without_maps_is_refused():
    with pytest.raises(ConfigError, match=r"timm:crossvit_tiny_240.*no map"):
        FineTuneModel("timm:crossvit_tiny_240", 3, pretrained=False, image_size=240)


def test_unknown_names_and_tags_name_the_nearest():
    with pytest.raises(ConfigError, match=r"'timm:pvt_v2_b00'.*did you mean timm:pvt_v2_b0"):
        find_backbone("timm:pvt_v2_b00")
    with pytest.raises(ConfigError, match="no such network"):
        find_backbone("timm:resnet10t.nobody_made_this")
    assert find_backbone("timm:resnet10t.c3_in1k").name == "timm:resnet10t.c3_in1k"
    assert find_backbone("timm:resnet10t") is find_backbone("timm:resnet10t")


def test_without_timm_the_way_to_install_it_is_named(monkeypatch):
    backbones._timm_row.cache_clear()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"timm:resnet10t.*pip install 'sat_vg\[timm\]'"):
        find_backbone("timm:resnet10t")
    assert find_backbone("resnet18").name == "resnet18"


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "deit3_small_patch16_224"])
def test_a_plain_state_dict_of_timm_loads_and_positions_are_resampled(name, tmp_path):
    torch.manual_seed(3)
    theirs = timm.create_model(name, num_classes=7)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "plain.pt")
    model = FineTuneModel(f"timm:{name}", 3, weights=str(tmp_path / "plain.pt"), image_size=SIZE).eval()
    assert "none missing" in model.weights_report
    own = model.network.trunk.state_dict()
    for key, value in theirs.state_dict().items():
        if key == "pos_embed":
            assert own[key].shape[1] == (SIZE // 16) ** 2 + ("deit3" not in name)
        elif key in own:
            assert torch.equal(own[key], value), key
    reference = timm.create_model(name, num_classes=0, img_size=SIZE) if "patch" in name else theirs
    if reference is not theirs:
        reference.load_state_dict(own)
    images = torch.randn(1, 3, SIZE, SIZE)
    reference.eval()
    with torch.no_grad():
        expected = reference.forward_head(reference.forward_features(images), pre_logits=True)
        assert torch.equal(model.forward_pooled(images), expected)
    # And what was saved here starts another run.
    model.save_checkpoint(tmp_path / "ours.pt")
    again = FineTuneModel(f"timm:{name}", 3, weights=str(tmp_path / "ours.pt"), image_size=SIZE)
    assert all(torch.equal(v, own[k]) for k, v in again.network.trunk.state_dict().items())


def test_more_bands_inflate_the_first_convolution(tmp_path):
    theirs = timm.create_model("resnet10t")
    torch.save(theirs.state_dict(), tmp_path / "rgb.pt")
    bands = ("red", "green", "blue", "nir")
    model = FineTuneModel("timm:resnet10t", 3, weights=str(tmp_path / "rgb.pt"), image_size=SIZE, bands=bands).eval()
    images = torch.randn(1, 1, SIZE, SIZE).expand(-1, 4, -1, -1)
    with torch.no_grad():
        expected = theirs.eval().forward_features(images[:, :3])
        assert torch.allclose(model.run_stages(images), expected, atol=1e-4)
        assert model.get_feature_extractor()(images)["layer4"].shape == (1, 512, 2, 2)


def test_weights_of_another_size_do_not_fit_a_network_of_one_size(tmp_path):
    torch.save(timm.create_model("mixer_s32_224").state_dict(), tmp_path / "mixer.pt")
    with pytest.raises(WeightsError, match=r"image_size = 64: .*one size only.*--image_size 224"):
        FineTuneModel("timm:mixer_s32_224", 3, weights=str(tmp_path / "mixer.pt"), image_size=SIZE)


def test_published_weights_come_with_their_preprocessing(monkeypatch):
    row = find_backbone("timm:resnet10t")
    entry = row.family.weights(row.name)["DEFAULT"]
    config = timm.get_pretrained_cfg("resnet10t")
    assert (entry.name, entry.mean, entry.std) == ("c3_in1k", config.mean, config.std)
    assert (entry.interpolation, entry.image_size) == ("bicubic", 176)
    assert find_backbone("timm:mixer_s32_224").family.weights("timm:mixer_s32_224") == {}
    original, published = timm.create_model, timm.create_model("resnet10t")

    def create(name, pretrained=False, **options):
        return published if pretrained else original(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", create)
    model = FineTuneModel("timm:resnet10t", 3, image_size=SIZE)
    assert torch.equal(model.network.trunk.conv1[0].weight, published.conv1[0].weight)
    assert "timm:resnet10t c3_in1k" in model.weights_report
    assert model.preprocessing.interpolation == "bicubic"


def test_weights_that_cannot_be_fetched_name_the_way_out(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"c3_in1k of timm:resnet10t.*huggingface.*--weights PATH"):
        FineTuneModel("timm:resnet10t", 3, image_size=SIZE)


def test_the_command_trains_one(train_here, class_folders):
    run = train_here(
        "--dataset_path", class_folders, "--backbone", "timm:resnet10t", "--pretrained", "false", "--num_epochs", "1"
    )
    assert run.code == 0, run.err
    assert len(run.epochs) == 1
    extractor = FineTuneModel.load_checkpoint(run.best_model).get_feature_extractor()
    assert extractor.backbone == "timm:resnet10t"
    assert extractor.out_names == ("layer1", "layer2", "layer3", "layer4")
