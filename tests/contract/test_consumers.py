"""Models that consume the extractor, whole: torchvision's own detector, and small ones written here in the shape of
DETR, Deformable-DETR and TransVG."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN
from torchvision.ops import StochasticDepth

from sat_vg.backbone_finetuning.commands.export import cli as export
from sat_vg.backbone_finetuning.models.adapters import (
    as_detr,
    as_torchvision,
    as_transvg,
    export_detr_state_dict,
    invert_mask,
)
from sat_vg.backbone_finetuning.models.feature_pyramid import SimpleFeaturePyramid
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.networks.families.family import no_weights
from sat_vg.backbone_finetuning.models.networks.table import BACKBONES, BackboneRow
from sat_vg.backbone_finetuning.utils.errors import ConfigError, WriteError

WIDTH = 32


@lru_cache(maxsize=2)
def model_of(backbone):
    """Built once, as drawing the numbers of a ViT takes seconds; an extractor is a copy of it."""
    torch.manual_seed(0)
    model = FineTuneModel(backbone, 3, pretrained=False, image_size=64)
    for module in model.modules():  # statistics that are not those of a fresh layer, so that losing them shows
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model


def extractor_of(backbone="resnet18", out_names=None, **options):
    extractor = model_of(backbone).get_feature_extractor(out_names, **options)
    torch.manual_seed(0)
    return extractor


# ------------------------------------------------------------------------------------------ torchvision detection

BOXES = torch.tensor([[8.0, 8.0, 60.0, 50.0], [30.0, 20.0, 90.0, 90.0]])
# Each with the stages that stay frozen.
DETECTOR_BACKBONES = {
    "resnet18": ["stem", "layer1"],
    "vit_b_32": ["patch_embed", *(f"block{index}" for index in range(10))],
    "swin_t": ["stem", "stage1"],
    "convnext_tiny": ["stem", "stage1"],
}


@pytest.mark.parametrize("backbone", DETECTOR_BACKBONES)
def test_faster_rcnn_trains_on_the_extractor(backbone):
    torch.manual_seed(0)
    frozen = DETECTOR_BACKBONES[backbone]
    model = FineTuneModel(backbone, 3, pretrained=False, image_size=64)
    trained = [stage.name for stage in model.stages if stage.gives_map and stage.name not in frozen]
    for name, parameter in model.named_parameters():
        if name.endswith("layer_scale"):  # starts at 1e-6, which leaves steps that round to nothing
            nn.init.constant_(parameter, 0.1)
    for module in model.modules():
        if isinstance(module, StochasticDepth):  # which drops whole blocks now and then
            module.p = 0.0
    extractor = model.get_feature_extractor(trainable_stages=trained)
    detector = FasterRCNN(
        as_torchvision(extractor, 64), num_classes=3, min_size=96, max_size=96,
        image_mean=extractor.mean, image_std=extractor.std, rpn_post_nms_top_n_train=50, box_batch_size_per_image=16,
    ).train()  # fmt: skip
    parameters = dict(extractor.named_parameters())
    before = {name: value.clone() for name, value in extractor.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        images = [torch.rand(3, 96, 96, generator=generator), torch.rand(3, 80, 96, generator=generator)]
        targets = [{"boxes": BOXES[:count].clamp(max=80), "labels": torch.tensor([1, 2][:count])} for count in (2, 1)]
        losses = detector(images, targets)
        assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
        assert all(torch.isfinite(loss) for loss in losses.values())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    checked = {True: 0, False: 0}
    for name, parameter in parameters.items():
        moved = not torch.equal(parameter, before[name])
        checked[parameter.requires_grad] += 1
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
            assert moved, name
        else:
            assert parameter.grad is None, name
            assert not moved, name
    assert min(checked.values()) > 0
    assert all(torch.equal(value, before[name]) for name, value in extractor.named_buffers())
    detector.eval()
    with torch.no_grad():
        found = detector([torch.rand(3, 70, 96, generator=generator)])
    assert set(found[0]) == {"boxes", "labels", "scores"}


# ------------------------------------------------------------------------------------------------- DETR and kin


@dataclass
class Nested:
    """Padded images of several sizes and where the padding is."""

    tensors: torch.Tensor
    mask: torch.Tensor | None


def pad_together(images):
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    batch = torch.zeros(len(images), 3, height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool)
    for row, image in enumerate(images):
        batch[row, :, : image.shape[1], : image.shape[2]] = image
        mask[row, : image.shape[1], : image.shape[2]] = False
    return Nested(batch, mask)


def sine_positions(samples):
    """Sines of the place among the valid pixels: half the width for rows, half for columns."""
    valid = (~samples.mask).float()
    frequencies = torch.exp(-torch.arange(WIDTH // 4) * math.log(1e4) / (WIDTH // 4))
    angles = [valid.cumsum(axis)[..., None] * frequencies for axis in (1, 2)]
    return torch.cat([wave(a) for a in angles for wave in (torch.sin, torch.cos)], dim=-1).permute(0, 3, 1, 2)


class SmallDetr(nn.Module):
    """The last map or all of them → boxes of 5 queries."""

    def __init__(self, joiner, all_levels=False):
        super().__init__()
        self.backbone = joiner
        widths = joiner.channels if all_levels else [joiner.num_channels]
        self.input_proj = nn.ModuleList(nn.Conv2d(width, WIDTH, 1) for width in widths)
        self.transformer = nn.Transformer(WIDTH, 2, 1, 1, 64, dropout=0.0, batch_first=True)
        self.queries = nn.Parameter(torch.randn(5, WIDTH))
        self.box = nn.Linear(WIDTH, 4)

    def forward(self, samples):
        levels, positions = self.backbone(samples)
        chosen = list(zip(levels, positions, strict=True))[-len(self.input_proj) :]
        tokens = [
            (project(level.tensors) + position).flatten(2).transpose(1, 2)
            for project, (level, position) in zip(self.input_proj, chosen, strict=True)
        ]
        mask = torch.cat([level.mask.flatten(1) for level, _ in chosen], dim=1)
        queries = self.queries.expand(samples.tensors.shape[0], -1, -1)
        decoded = self.transformer(
            torch.cat(tokens, dim=1), queries, src_key_padding_mask=mask, memory_key_padding_mask=mask
        )
        return self.box(decoded).sigmoid()


def test_detr_at_640():
    joiner = as_detr(extractor_of(), sine_positions)
    with torch.no_grad():
        levels, positions = joiner(Nested(torch.randn(1, 3, 640, 640), None))
    assert [type(level) for level in levels] == [Nested] * 4
    for level, position, side, width in zip(levels, positions, (160, 80, 40, 20), joiner.channels, strict=True):
        assert level.tensors.shape == (1, width, side, side)
        assert level.mask.shape == (1, side, side)
        assert level.mask.dtype == torch.bool
        assert not level.mask.any()
        assert position.shape == (1, WIDTH, side, side)


@pytest.mark.parametrize("backbone", ["resnet18", "vit_b_32"])
@pytest.mark.parametrize("all_levels", [False, True])
def test_detr_learns_from_images_of_mixed_sizes(backbone, all_levels):
    extractor = extractor_of(backbone)
    body = SimpleFeaturePyramid(extractor, 24) if backbone == "vit_b_32" and all_levels else extractor
    detr = SmallDetr(as_detr(body, sine_positions), all_levels).train()
    samples = pad_together([torch.randn(3, 128, 96), torch.randn(3, 64, 160)])
    levels, _ = detr.backbone(samples)
    assert len(levels) == (4 if all_levels or backbone == "resnet18" else 1)
    for level, stride in zip(levels, detr.backbone.strides, strict=True):
        assert level.mask.shape == level.tensors.shape[:1] + level.tensors.shape[2:]
        assert torch.equal(level.mask, samples.mask[:, ::stride, ::stride])
        if stride <= 32:
            assert level.mask.any()
    boxes = detr(samples)
    assert boxes.shape == (2, 5, 4)
    boxes.square().sum().backward()
    reached = [p for p in extractor.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert len(reached) == sum(p.requires_grad for p in extractor.parameters())


def test_tokens_of_the_padding_do_not_reach_the_boxes():
    detr = SmallDetr(as_detr(extractor_of("resnet18", ["layer4"]), sine_positions)).eval()
    samples = pad_together([torch.randn(3, 64, 64), torch.randn(3, 64, 128)])
    noisy = detr.backbone(samples)[0][-1]
    noisy.tensors[0, :, :, 2:] += 9.0  # the tokens of the padding
    levels = [noisy]
    with torch.no_grad():
        plain = detr(samples)
        detr.backbone.forward = lambda _: (levels, [sine_positions(noisy)])
        assert torch.allclose(detr(samples)[0], plain[0], atol=1e-6)


def test_masks_are_bool_int_or_none():
    joiner = as_detr(extractor_of(), sine_positions)
    images = torch.randn(2, 3, 64, 96)
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, :, 48:] = True
    with torch.no_grad():
        of_bool, of_int, of_inverted, of_none = (
            joiner(Nested(images, given))[0] for given in (mask, mask.int(), invert_mask((~mask).long()), None)
        )
    for a, b, c, d in zip(of_bool, of_int, of_inverted, of_none, strict=True):
        assert torch.equal(a.mask, b.mask)
        assert torch.equal(a.mask, c.mask)
        assert a.mask[1].any()
        assert not a.mask[0].any()
        assert not d.mask.any()
        assert a.mask.dtype == b.mask.dtype == d.mask.dtype == torch.bool
        assert torch.equal(a.tensors, d.tensors)


def test_deformable_detr_reads_lists_and_makes_further_levels():
    extractor = extractor_of(out_names=["layer2", "layer3", "layer4"])
    joiner = as_detr(extractor, sine_positions, num_channels="list")
    projections = [nn.Conv2d(joiner.num_channels[level], WIDTH, 1) for level in range(len(joiner.strides))]
    with torch.no_grad():
        levels, positions = joiner(pad_together([torch.randn(3, 128, 96), torch.randn(3, 64, 160)]))
        assert [p(level.tensors).shape[1] for p, level in zip(projections, levels, strict=True)] == [WIDTH] * 3
        coarser = nn.functional.max_pool2d(levels[-1].tensors, 2)
        extra = Nested(coarser, levels[-1].mask[:, ::2, ::2][:, : coarser.shape[2], : coarser.shape[3]])
        assert joiner[1](extra).shape == (2, WIDTH, *coarser.shape[2:])
    assert joiner.strides == [8, 16, 32]
    assert len(positions) == 3


@pytest.mark.parametrize(("backbone", "width"), [("resnet18", 512), ("vit_b_32", 768)])
def test_transvg_gets_400_tokens_at_640(backbone, width):
    branch = as_transvg(extractor_of(backbone))
    mask = torch.zeros(1, 640, 640, dtype=torch.bool)
    mask[:, 320:] = True
    with torch.no_grad():
        small, source = branch(Nested(torch.randn(1, 3, 640, 640), mask))
    assert small.dtype == torch.bool
    assert small.shape == (1, 400)
    assert source.shape == (400, 1, width)
    assert branch.num_channels == width
    assert small.sum() == 200
    assert small[0, 200:].all()


# ------------------------------------------------------------------------------------------ the state-dict file


class ConstantNorm(nn.Module):
    """Batch norm of four buffers, as DETR has it: no counter, no parameters."""

    def __init__(self, width):
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((width,), value))

    def forward(self, images):
        scale = self.weight / (self.running_var + 1e-5).sqrt()
        return images * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


class MinimalDetr(nn.Module):
    """Only what the keys of the checkpoint depend on: ``backbone.0.body`` and something that has no weights in it."""

    def __init__(self, network=models.resnet18):
        super().__init__()
        body = IntermediateLayerGetter(
            network(weights=None, norm_layer=ConstantNorm), {f"layer{n}": str(n - 1) for n in (1, 2, 3, 4)}
        )
        self.backbone = nn.Sequential(nn.Module())
        self.backbone[0].body = body
        self.class_embed = nn.Linear(4, 2)


@pytest.mark.parametrize(("backbone", "num_tensors"), [("resnet18", 100), ("resnet50", 265)])
@pytest.mark.parametrize("freeze_norm", [True, False])
def test_the_file_drops_into_detr(tmp_path, backbone, num_tensors, freeze_norm):
    extractor = extractor_of(backbone, freeze_norm=freeze_norm)
    written = export_detr_state_dict(extractor, tmp_path / "new" / "detr.pth")
    checkpoint = torch.load(tmp_path / "new" / "detr.pth", weights_only=True)
    detr = MinimalDetr(getattr(models, backbone)).eval()
    result = detr.load_state_dict(checkpoint["model"], strict=False)
    assert result.unexpected_keys == []
    assert result.missing_keys == ["class_embed.weight", "class_embed.bias"]
    assert written == len(checkpoint["model"]) == num_tensors
    images = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        theirs = detr.backbone[0].body(images)
        for a, b in zip(theirs.values(), extractor(images).values(), strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item())


def test_the_file_also_loads_into_a_detr_on_the_adapter(tmp_path):
    extractor = extractor_of()
    export_detr_state_dict(extractor, tmp_path / "detr.pth")
    detr = SmallDetr(as_detr(FineTuneModel("resnet18", 3, pretrained=False).get_feature_extractor(), sine_positions))
    weights = torch.load(tmp_path / "detr.pth", weights_only=True)["model"]
    result = detr.load_state_dict(weights, strict=False)
    assert result.unexpected_keys == []
    assert not [k for k in result.missing_keys if k.startswith("backbone") and "num_batches" not in k]
    assert torch.equal(detr.backbone[0].body.layer4[1].conv2.weight, extractor.layer4[1].conv2.weight)


@pytest.mark.parametrize("backbone", ["vit_b_32", "mobilenet_v2", "shufflenet_v2_x0_5"])
def test_a_file_of_which_no_key_would_match_is_not_written(tmp_path, backbone):
    with pytest.raises(ConfigError, match=rf"{backbone}.*layer4.*as_detr"):
        export_detr_state_dict(extractor_of(backbone), tmp_path / "detr.pth")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backbone", ["timm:resnet10t", "timm:seresnet18", "timm:vit_tiny_patch16_224", "custom_cnn"])
def test_other_layers_than_torchvisions_are_not_written_as_detrs(tmp_path, backbone, capfd):
    if backbone.startswith("timm:"):
        pytest.importorskip("timm")
    model = FineTuneModel(backbone, 3, pretrained=False, image_size=64)
    with pytest.raises(ConfigError, match=rf"{backbone}.*as_detr"):
        export_detr_state_dict(model.get_feature_extractor(), tmp_path / "detr.pth")
    model.save_checkpoint(tmp_path / "m.pt")
    assert export.main([str(tmp_path / "m.pt"), "--format", "detr", "--out", str(tmp_path / "detr.pth")]) == 2
    assert backbone in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


@pytest.mark.parametrize(
    "backbone", ["timm:resnet18", "resnext50_32x4d", pytest.param("wide_resnet50_2", marks=pytest.mark.slow)]
)
def test_all_with_torchvisions_layers_go_into_detrs_file(tmp_path, backbone, capfd):
    if backbone.startswith("timm:"):
        pytest.importorskip("timm")
    FineTuneModel(backbone, 3, pretrained=False, image_size=64).save_checkpoint(tmp_path / "m.pt")
    assert export.main([str(tmp_path / "m.pt"), "--format", "detr", "--out", str(tmp_path / "d.pth")]) == 0
    assert export.main([str(tmp_path / "m.pt"), "--verify", str(tmp_path / "d.pth")]) == 0
    weights = torch.load(tmp_path / "d.pth", weights_only=True)["model"]
    detr = MinimalDetr(getattr(models, backbone.removeprefix("timm:")))
    assert detr.load_state_dict(weights, strict=False).unexpected_keys == []


def test_a_row_of_the_family_that_torchvision_has_not_is_refused_in_a_sentence(tmp_path, monkeypatch, capfd):
    family = BACKBONES["resnet18"].family
    own = replace(
        family, build=lambda name, num_classes, size: models.resnet18(num_classes=num_classes), weights=no_weights
    )
    monkeypatch.setitem(BACKBONES, "resnet_of_ours", BackboneRow("resnet_of_ours", own))
    FineTuneModel("resnet_of_ours", 3, pretrained=False, image_size=64).save_checkpoint(tmp_path / "m.pt")
    assert export.main([str(tmp_path / "m.pt"), "--format", "detr", "--out", str(tmp_path / "d.pth")]) == 2
    assert "resnet_of_ours" in capfd.readouterr().err


def test_a_failed_write_leaves_the_file_from_before(tmp_path, monkeypatch):
    path = tmp_path / "detr.pth"
    path.write_bytes(b"before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(WriteError, match="No space left"):
        export_detr_state_dict(extractor_of(), path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
