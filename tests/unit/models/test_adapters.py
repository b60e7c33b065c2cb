"""What each adapter declares and gives; whole detectors on top of them are in tests/contract/test_consumers.py."""

import ast
import copy
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torchvision.models import VisionTransformer

from sat_vg.backbone_finetuning.models import adapters
from sat_vg.backbone_finetuning.models.feature_extractor import FeatureExtractor
from sat_vg.backbone_finetuning.models.feature_pyramid import SimpleFeaturePyramid
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.frozen_norm import FrozenBatchNorm2d
from sat_vg.backbone_finetuning.models.networks.table import BACKBONES, BackboneRow
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.preprocessing import Preprocessing

IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def extractor_of(backbone="resnet18", out_names=None, **options):
    return FineTuneModel(backbone, 3, pretrained=False, image_size=64).get_feature_extractor(out_names, **options)


@pytest.fixture(scope="module")
def resnet():
    return extractor_of()


@pytest.fixture(scope="module")
def vit():
    return extractor_of("vit_b_32")


@pytest.fixture(scope="module")
def pyramid(vit):
    return SimpleFeaturePyramid(vit, 16)


def run(adapter, images=IMAGES):
    """The adapter's maps as a list, whatever it takes and gives."""
    if isinstance(adapter, (adapters.DetrJoiner, adapters.TransvgBackbone)):
        found = adapter(SimpleSamples(images, None))
        return [found[1]] if isinstance(adapter, adapters.TransvgBackbone) else [s.tensors for s in found[0]]
    found = adapter(images)
    if isinstance(found, adapters.BackboneOutput):
        return list(found.feature_maps)
    if isinstance(found, torch.Tensor):
        return [found]
    return found if isinstance(found, list) else list(found.values())


class SimpleSamples:
    def __init__(self, tensors, mask):
        self.tensors, self.mask = tensors, mask


def no_positions(samples):
    return torch.zeros(samples.tensors.shape[0], 1, *samples.mask.shape[1:], dtype=torch.float64)


MAKERS = {
    "detr": lambda e: adapters.as_detr(e, no_positions),
    "transvg": adapters.as_transvg,
    "torchvision": lambda e: adapters.as_torchvision(e, 16),
    "timm": adapters.as_timm,
    "detectron2": adapters.as_detectron2,
    "hf": adapters.as_hf,
    "smp": adapters.as_smp,
    "tensor": adapters.as_tensor,
}


def test_every_adapter_is_in_the_table():
    made = {name.removeprefix("as_") for name in vars(adapters) if name.startswith("as_")}
    assert made == set(MAKERS)


def test_no_consumer_is_imported():
    files = Path(adapters.__file__).parent.glob("*.py")
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    tops = {module.split(".")[0] for module in modules}
    assert len(tops) > 5
    assert tops - set(sys.stdlib_module_names) == {"torch", "torchvision", "sat_vg"}


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_modes_copies_and_state_dict(name):
    extractor = extractor_of(trainable_stages=["layer3", "layer4"])
    adapter = MAKERS[name](extractor)
    assert any(module is extractor for module in adapter.modules())  # the extractor itself, no copy
    adapter.train()
    norms = [module for module in adapter.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert len(norms) == 20
    assert not any(module.training for module in extractor.layer1.modules())
    assert extractor.layer4[0].conv1.training
    before = {key: value.clone() for key, value in extractor.named_buffers()}
    sum(features.square().mean() for features in run(adapter) if features.requires_grad).backward()
    for key, parameter in extractor.named_parameters():
        moved = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert moved == key.startswith(("layer3", "layer4")) * ("bn" not in key and "downsample.1" not in key), key
    assert all(torch.equal(value, before[key]) for key, value in extractor.named_buffers())
    other = copy.deepcopy(adapter)
    assert all(torch.equal(a, b) for a, b in zip(run(other), run(adapter), strict=True))
    for parameter in other.parameters():
        parameter.data.zero_()
    assert not torch.equal(run(other)[-1], run(adapter)[-1])
    other.load_state_dict(adapter.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(run(other), run(adapter), strict=True))


def test_invert_mask():
    valid = torch.tensor([[1, 1, 0], [1, 0, 0]])
    padding = adapters.invert_mask(valid)
    assert padding.tolist() == [[False, False, True], [False, True, True]]
    assert torch.equal(adapters.invert_mask(padding).long(), valid)


def test_detr_joiner_indexes_like_a_sequential(resnet):
    joiner = adapters.as_detr(resnet, no_positions)
    maps = joiner[0](SimpleSamples(IMAGES, None))
    assert list(maps) == ["0", "1", "2", "3"]
    assert all(isinstance(level, SimpleSamples) for level in maps.values())
    assert joiner[1](maps["0"]).shape == (2, 1, 16, 24)
    levels, positions = joiner(SimpleSamples(IMAGES, None))
    assert [p.shape[2:] for p in positions] == [level.tensors.shape[2:] for level in levels]
    assert {p.dtype for p in positions} == {torch.float32}
    assert (joiner.num_channels, joiner[0].num_channels) == (512, 512)
    assert (joiner.strides, joiner.channels) == ([4, 8, 16, 32], [64, 128, 256, 512])
    assert {key.split(".")[0] + "." + key.split(".")[1] for key in joiner.state_dict()} == {"0.body"}
    module = torch.nn.Identity()
    assert adapters.as_detr(resnet, module)[1] is module


@pytest.mark.parametrize("name", ["resnet", "vit", "pyramid"])
def test_the_last_map_alone(name, request):
    extractor = request.getfixturevalue(name)
    body = adapters.as_tensor(extractor)
    with torch.no_grad():
        features, maps = body(IMAGES), extractor(IMAGES)
    assert torch.equal(features, list(maps.values())[-1])
    assert features.shape[1] == body.num_channels == body.out_channels
    assert body.stride == extractor.strides[-1]


def test_detr_tells_the_channels_of_the_last_map_or_of_all(resnet):
    for kind, expected in (("last", 512), ("list", list(resnet.channels))):
        joiner = adapters.as_detr(resnet, no_positions, num_channels=kind)
        assert joiner.num_channels == joiner[0].num_channels == expected
    with pytest.raises(ConfigError, match=r"num_channels = 'all': must be 'last'.*'list'"):
        adapters.as_detr(resnet, no_positions, num_channels="all")
    with pytest.raises(ConfigError, match="position_embedding is of type NoneType"):
        adapters.as_detr(resnet, None)


def test_torchvision_levels_have_one_width(resnet, vit):
    with pytest.raises(ConfigError, match="fpn_channels = 0: "):
        adapters.as_torchvision(resnet, 0)
    for extractor, kind in ((resnet, type(resnet)), (vit, SimpleFeaturePyramid)):
        backbone = adapters.as_torchvision(extractor, 16)
        assert isinstance(backbone.body, kind)
        levels = backbone(IMAGES)
        assert list(levels) == ["0", "1", "2", "3", "pool"]
        assert {features.shape[1] for features in levels.values()} == {16} == {backbone.out_channels}
        assert torch.equal(levels["pool"], levels["3"][:, :, ::2, ::2])


@pytest.mark.parametrize(("height", "width"), [(64, 96), (100, 75)])
def test_what_the_extractor_padded_is_cut_off_where_sizes_are_compared(resnet, vit, height, width):
    images = torch.randn(1, 3, height, width)
    for extractor, strides in ((resnet, (4, 8, 16, 32)), (vit, (8, 16, 32, 64))):
        levels = list(adapters.as_torchvision(extractor, 16)(images).values())[:4]
        assert [tuple(m.shape[2:]) for m in levels] == [(-(-height // s), -(-width // s)) for s in strides]
    wide = SimpleFeaturePyramid(extractor_of("vit_b_16"), 16)
    maps = adapters.as_smp(wide)(images[:, :, :72, :72])
    assert [m.shape[2] for m in maps] == [-(-min(72, height) // s) for s in (1, 2, 4, 8, 16, 32)]


def test_torchvision_refuses_strides_that_its_pooling_would_round():
    network = VisionTransformer(56, 14, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=32)
    row = BackboneRow("vit_h_14", BACKBONES["vit_h_14"].family)  # a narrow one: the real one has 632 M parameters
    extractor = FeatureExtractor(network, row, preprocessing=Preprocessing(image_size=56))
    with pytest.raises(ConfigError, match=r"vit_h_14.*\(3\.5, 7, 14, 28\).*patches of 16 or 32"):
        adapters.as_torchvision(extractor)


def test_timm_feature_info(resnet, pyramid):
    model = adapters.as_timm(resnet)
    info = model.feature_info
    assert [m.shape[1] for m in model(IMAGES)] == info.channels() == [64, 128, 256, 512]
    assert [96 // m.shape[3] for m in model(IMAGES)] == info.reduction() == [4, 8, 16, 32]
    assert info.module_name() == ["layer1", "layer2", "layer3", "layer4"]
    assert (info.channels(-1), info.reduction([0, 2]), info.module_name(1)) == (512, [4, 16], "layer2")
    assert info[1] == {"num_chs": 128, "reduction": 8, "module": "layer2", "index": 1}
    assert len(info) == 4
    assert [row["num_chs"] for row in info] == info.channels()
    assert info.get_dicts(["reduction"]) == [{"reduction": 4}, {"reduction": 8}, {"reduction": 16}, {"reduction": 32}]
    assert info.out_indices == (0, 1, 2, 3)
    assert adapters.as_timm(pyramid).feature_info.reduction() == [8, 16, 32, 64]


def test_detectron2_shapes(resnet, vit):
    backbone = adapters.as_detectron2(resnet)
    shapes = backbone.output_shape()
    assert list(shapes) == list(backbone(IMAGES)) == ["layer1", "layer2", "layer3", "layer4"]
    for name, features in backbone(IMAGES).items():
        assert (features.shape[1], 96 // features.shape[3]) == (shapes[name].channels, shapes[name].stride)
        assert shapes[name].height is shapes[name].width is None
    assert type(backbone(IMAGES)) is dict
    assert backbone.size_divisibility == 1
    patches = adapters.as_detectron2(vit)
    assert patches.size_divisibility == patches.padding_constraints["size_divisibility"] == 32
    assert patches.padding_constraints["square_size"] == 0


def test_hf_output(resnet, pyramid):
    backbone = adapters.as_hf(resnet)
    output = backbone(pixel_values=IMAGES)
    assert [m.shape[1] for m in output.feature_maps] == backbone.channels == [64, 128, 256, 512]
    assert output[0] is output["feature_maps"] is output.feature_maps
    assert output[:1] == output.to_tuple() == (output.feature_maps,)
    assert (output.hidden_states, output.attentions) == (None, None)
    assert (list(output), len(output)) == (["feature_maps"], 1)
    assert isinstance(output, dict)  # by which Hugging Face's DETR knows it
    assert torch.equal(pickle.loads(pickle.dumps(output)).feature_maps[0], output[0][0])
    with pytest.raises(KeyError, match="hidden_states"):
        output["hidden_states"]
    assert backbone.stage_names == ["stem", "layer1", "layer2", "layer3", "layer4"]
    assert [backbone.stage_names[index] for index in backbone.out_indices] == backbone.out_features
    assert type(backbone(IMAGES, return_dict=False)) is tuple
    filtered = backbone.forward_with_filtered_kwargs(IMAGES, output_attentions=False, interpolate=True)
    assert torch.equal(filtered.feature_maps[-1], output.feature_maps[-1])
    with pytest.raises(ConfigError, match=r"output_hidden_states = True.*out_names"):
        backbone(IMAGES, output_hidden_states=True)
    assert adapters.as_hf(pyramid).out_indices == [0, 1, 2, 3]


# With the maps at stride 2: of a stage, of a module inside the stem, of none.
@pytest.mark.parametrize(
    ("backbone", "out_names", "half"),
    [
        ("mobilenet_v2", ["stage1", "stage2", "stage3", "stage5", "head_conv"], 16),
        ("resnet18", None, 64),
        ("shufflenet_v2_x0_5", None, 24),
        ("densenet121", None, 64),
        ("convnext_tiny", None, 0),
        ("swin_t", None, 0),
    ],
)
def test_smp_maps_start_with_the_input(backbone, out_names, half):
    extractor = extractor_of(backbone, out_names, freeze_norm=False).train()
    before = {key: value.clone() for key, value in extractor.state_dict().items()}
    encoder = adapters.as_smp(extractor)
    assert all(torch.equal(value, before[key]) for key, value in extractor.state_dict().items())
    assert extractor.training
    encoder.eval()
    with torch.no_grad():
        maps = encoder(IMAGES)
        given = extractor(IMAGES)
    assert maps[0] is IMAGES
    assert [m.shape[1] for m in maps] == encoder.out_channels
    assert [tuple(m.shape[2:]) for m in maps] == [(64 // s, 96 // s) for s in (1, 2, 4, 8, 16, 32)]
    assert (encoder.out_channels[:2], encoder.output_stride) == ([3, half], 32)
    for mine, theirs in zip(maps[-4:], list(given.values())[-4:], strict=True):
        assert torch.equal(mine, theirs)


def test_smp_takes_a_resnets_stride_2_before_its_pooling(resnet):
    with torch.no_grad():
        expected = torch.relu(resnet.bn1(resnet.conv1(IMAGES)))
        assert torch.equal(adapters.as_smp(resnet)(IMAGES)[1], expected)
    assert not resnet.relu._forward_hooks


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "efficientnet_b0", "mnasnet0_5"])
def test_smp_names_the_stages_to_ask_for(backbone):
    with pytest.raises(ConfigError, match=r"strides \(4, 8, 16, 32\).*out_names=") as refused:
        adapters.as_smp(extractor_of(backbone))
    names = ast.literal_eval(str(refused.value).split("out_names=")[1].rstrip(")"))
    assert adapters.as_smp(extractor_of(backbone, names)).output_stride == 32


def test_smp_refuses_what_has_no_such_strides(vit, pyramid):
    for extractor, absent in ((vit, r"\[4, 8, 16\]"), (pyramid, r"\[4\]"), (extractor_of("alexnet"), r"\[4\]")):
        with pytest.raises(ConfigError, match=rf"no stage at {absent}.*SimpleFeaturePyramid"):
            adapters.as_smp(extractor)
    with pytest.raises(ConfigError, match="layer4"):
        adapters.as_smp(extractor_of("resnet18", ["layer1"]))


def test_smp_over_a_pyramid():
    encoder = adapters.as_smp(SimpleFeaturePyramid(extractor_of("vit_b_16"), 16))
    assert encoder.out_channels == [3, 0, 16, 16, 16, 16]
    assert [m.shape[3] for m in encoder(IMAGES)] == [96, 48, 24, 12, 6, 3]
