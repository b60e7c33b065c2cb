"""Names, aliases, sizes."""

import sys

import pytest
import torch

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.networks.table import ALIASES, BACKBONES, build_network, find_backbone
from sat_vg.backbone_finetuning.utils.errors import ConfigError, UserError


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("microsoft/resnet-50", "resnet50"),
        ("facebook/convnext-tiny-224", "convnext_tiny"),
        ("google/vit-base-patch16-224", "vit_b_16"),
        ("vit_base_patch16_224", "vit_b_16"),
        ("efficientnet_b3", "efficientnet_b3"),
        ("microsoft/swin-tiny-patch4-window7-224", "swin_t"),
        ("google/efficientnet-b3", "efficientnet_b3"),
    ],
)
def test_hub_names_are_aliases(theirs, ours):
    assert find_backbone(theirs) is BACKBONES[ours]


def test_every_alias_leads_to_a_row():
    assert len(ALIASES) > 30
    assert set(ALIASES.values()) <= set(BACKBONES)
    assert not set(ALIASES) & set(BACKBONES)


def test_an_alias_leaves_its_real_name_in_the_artifact(tmp_path):
    FineTuneModel("microsoft/resnet-18", 2, pretrained=False, image_size=32).save_checkpoint(tmp_path / "m.pt")
    assert torch.load(tmp_path / "m.pt", weights_only=True)["backbone"] == "resnet18"


@pytest.mark.parametrize("name", ["resnet51", "mobilnet_v2", "microsoft/resnet-51", "ViT_B_16"])
def test_an_unknown_name_suggests_the_nearest(name):
    with pytest.raises(ConfigError, match=r"did you mean .*sat-vg backbones lists"):
        find_backbone(name)


@pytest.mark.parametrize(
    "name", ["vgg11_bn", "alexnet", "inception_v3", "convnext_tiny", "squeezenet1_0", "densenet121", "googlenet"]
)
def test_the_smallest_image_is_the_smallest(name):
    family = BACKBONES[name].family
    with torch.device("meta"):
        network = build_network(BACKBONES[name], 2, 224).eval()
    stages = family.stages(network)

    def runs(side):
        value = torch.zeros(1, 3, side, side, device="meta")
        for stage in stages:
            value = stage.run(network, value)
        family.pool(network, value)

    runs(family.smallest_image)
    with pytest.raises(RuntimeError):
        runs(family.smallest_image - 1)
    with pytest.raises(ConfigError, match=f"needs {family.smallest_image} pixels or more"):
        build_network(BACKBONES[name], 2, family.smallest_image - 1)


@pytest.mark.parametrize(
    ("name", "size", "near"), [("vit_b_16", 100, 96), ("vit_h_14", 224 + 5, 224), ("maxvit_t", 256, 224)]
)
def test_sizes_that_do_not_divide_are_refused_with_the_nearest(name, size, near):
    with pytest.raises(ConfigError, match=f"image_size = {size}.*for example {near}"):
        FineTuneModel(name, 2, pretrained=False, image_size=size)


def test_a_network_without_published_weights_says_so():
    with pytest.raises(UserError, match=r"nobody has published weights for custom_cnn.*--pretrained false"):
        FineTuneModel("custom_cnn", 2)


def test_out_names_by_position():
    model = FineTuneModel("resnet18", 2, pretrained=False, image_size=32)
    assert model.get_feature_extractor(out_names=[-1, 2]).out_names == ("layer2", "layer4")
    assert model.get_feature_extractor(out_names=["layer1", -1]).out_names == ("layer1", "layer4")
    for wrong in ([5], [-6], ["layer9"], [], "layer4"):
        with pytest.raises(ConfigError, match=r"out_names = .*stem, layer1"):
            model.get_feature_extractor(out_names=wrong)


def test_freeze_layers_counts_stages_from_the_input():
    model = FineTuneModel("swin_t", 2, pretrained=False, image_size=32, freeze_layers=2)
    assert model.trainable_stages == ("stage2", "stage3", "stage4", "norm")
    model.train_from("stage4")
    assert model.trainable_stages == ("stage4", "norm")
    with pytest.raises(ConfigError, match=r"first_stage = 'layer4'.*stem, stage1"):
        model.train_from("layer4")
    with pytest.raises(ConfigError, match="freeze_layers = 7: must be 0 to 6"):
        FineTuneModel("swin_t", 2, pretrained=False, image_size=32, freeze_layers=7)
    with pytest.raises(ConfigError, match="both say what is frozen"):
        FineTuneModel("swin_t", 2, pretrained=False, image_size=32, freeze_layers=2, freeze_early_layers=True)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("pvt_v2_b3", "pvt_v2_b3"),
        ("deit3_base_patch16_224", "deit3_base_patch16_224"),
        ("efficientnet_lite0", "efficientnet_lite0"),
        ("PVT_V2_B3", "pvt_v2_b3"),
        ("timm/resnet10t.c3_in1k", "resnet10t.c3_in1k"),
        ("hf-hub:timm/resnet10t.c3_in1k", "resnet10t.c3_in1k"),
        ("mixer_b16_224", "mixer_b16_224"),
    ],
)
def test_a_name_of_timm_without_its_prefix_is_told(name, theirs):
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=rf"timm has (it: --backbone|them:) timm:{theirs}\b"):
        find_backbone(name)


def test_a_name_near_one_of_timm_is_told_with_its_prefix():
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=r"did you mean .*timm:pvt_v2_b"):
        find_backbone("pvt-v2-b9")


def test_without_timm_its_networks_come_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'sat_vg\[timm\]', then --backbone timm:pvt_v2_b3"):
        find_backbone("pvt_v2_b3")
