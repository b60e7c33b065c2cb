"""Names of other collections load what they say, or are refused with the name of what they say."""

import pytest

from sat_vg.backbone_finetuning.models.networks.hub_names import ALIASES, timm_name
from sat_vg.backbone_finetuning.models.networks.table import BACKBONES, find_backbone
from sat_vg.backbone_finetuning.utils.errors import ConfigError

ELSEWHERE = {
    "google/vit-base-patch16-224-in21k": "vit_base_patch16_224.orig_in21k",
    "google/vit-base-patch32-224-in21k": "vit_base_patch32_224.orig_in21k",
    "google/vit-large-patch16-224-in21k": "vit_large_patch16_224.orig_in21k",
    "google/vit-large-patch32-224-in21k": "vit_large_patch32_224.orig_in21k",
    "google/vit-huge-patch14-224-in21k": "vit_huge_patch14_224.orig_in21k",
    "google/vit-base-patch16-384": "vit_base_patch16_384.orig_in21k_ft_in1k",
    "google/vit-base-patch32-384": "vit_base_patch32_384.augreg_in21k_ft_in1k",
    "google/vit-large-patch16-384": "vit_large_patch16_384.augreg_in21k_ft_in1k",
    "google/vit-large-patch32-384": "vit_large_patch32_384.orig_in21k_ft_in1k",
    "WinKawaks/vit-tiny-patch16-224": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "facebook/vit-mae-base": "vit_base_patch16_224.mae",
    "facebook/vit-mae-huge": "vit_huge_patch14_224.mae",
    "facebook/dino-vits8": "vit_small_patch8_224.dino",
    "facebook/dino-vitb16": "vit_base_patch16_224.dino",
    "facebook/dinov2-small": "vit_small_patch14_dinov2.lvd142m",
    "facebook/dinov2-with-registers-giant": "vit_giant_patch14_reg4_dinov2.lvd142m",
    "facebook/dinov3-vits16-pretrain-lvd1689m": "vit_small_patch16_dinov3.lvd1689m",
    "facebook/dinov3-vitl16-pretrain-sat493m": "vit_large_patch16_dinov3.sat493m",
    "facebook/dinov3-convnext-tiny-pretrain-lvd1689m": "convnext_tiny.dinov3_lvd1689m",
    "facebook/deit-tiny-patch16-224": "deit_tiny_patch16_224.fb_in1k",
    "facebook/deit-base-distilled-patch16-224": "deit_base_distilled_patch16_224.fb_in1k",
    "facebook/deit-base-distilled-patch16-384": "deit_base_distilled_patch16_384.fb_in1k",
    "openai/clip-vit-base-patch32": "vit_base_patch32_clip_224.openai",
    "openai/clip-vit-large-patch14": "vit_large_patch14_clip_224.openai",
    "openai/clip-vit-large-patch14-336": "vit_large_patch14_clip_336.openai",
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": "vit_base_patch32_clip_224.laion2b",
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": "vit_huge_patch14_clip_224.laion2b",
    "google/siglip-base-patch16-224": "vit_base_patch16_siglip_224.webli",
    "microsoft/beit-base-patch16-224": "beit_base_patch16_224.in22k_ft_in22k_in1k",
    "microsoft/beit-base-patch16-224-pt22k-ft22k": "beit_base_patch16_224.in22k_ft_in22k",
    "microsoft/swin-base-patch4-window7-224-in22k": "swin_base_patch4_window7_224.ms_in22k",
    "microsoft/swin-large-patch4-window12-384-in22k": "swin_large_patch4_window12_384.ms_in22k",
    "microsoft/swin-large-patch4-window7-224": "swin_large_patch4_window7_224.ms_in22k_ft_in1k",
    "microsoft/swinv2-base-patch4-window12-192-22k": "swinv2_base_window12_192.ms_in22k",
    "microsoft/swinv2-large-patch4-window12to16-192to256-22kto1k-ft": (
        "swinv2_large_window12to16_192to256.ms_in22k_ft_in1k"
    ),
    "microsoft/swinv2-tiny-patch4-window16-256": "swinv2_tiny_window16_256.ms_in1k",
    "facebook/convnext-base-224-22k": "convnext_base.fb_in22k",
    "facebook/convnext-large-224-22k-1k": "convnext_large.fb_in22k_ft_in1k",
    "facebook/convnext-xlarge-384-22k-1k": "convnext_xlarge.fb_in22k_ft_in1k_384",
    "facebook/convnextv2-tiny-1k-224": "convnextv2_tiny.fcmae_ft_in1k",
    "facebook/convnextv2-base-22k-384": "convnextv2_base.fcmae_ft_in22k_in1k_384",
    "timm/vit_base_patch16_224.augreg_in21k": "vit_base_patch16_224.augreg_in21k",
    "hf_hub:timm/resnet50.a1_in1k": "resnet50.a1_in1k",
    "vit_base_patch16_224_in21k": "vit_base_patch16_224.augreg_in21k",
    "vit_large_patch32_224_in21k": "vit_large_patch32_224.orig_in21k",
    "vit_small_patch16_224_dino": "vit_small_patch16_224.dino",
    "swin_base_patch4_window7_224_in22k": "swin_base_patch4_window7_224.ms_in22k",
    "convnext_base_in22k": "convnext_base.fb_in22k",
    "convnext_base_in22ft1k": "convnext_base.fb_in22k_ft_in1k",
    "tf_efficientnet_b3_ns": "tf_efficientnet_b3.ns_jft_in1k",
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_name_of_other_weights_is_refused_with_timms_name_of_them(name):
    with pytest.raises(ConfigError, match=r"torchvision has no such weights; timm has them: timm:") as caught:
        find_backbone(name)
    assert str(caught.value).endswith(f"timm:{ELSEWHERE[name]}")


def test_timm_has_weights_under_each_of_these_names():
    timm = pytest.importorskip("timm")
    assert len(ELSEWHERE) > 40
    assert [name for name in ELSEWHERE.values() if name not in timm.list_pretrained()] == []


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("google/vit-base-patch16-256-in21k", "in21k"),
        ("someone/resnet50-moco", "moco"),
        ("facebook/vit-msn-base", "msn"),
        ("resnet50_swsl", "swsl"),
        ("org/vit-clip", "clip"),
    ],
)
def test_other_training_in_an_unknown_name_is_never_taken_for_a_misspelling(name, word):
    with pytest.raises(ConfigError, match=rf"names weights \({word}\) that torchvision does not have") as caught:
        find_backbone(name)
    assert "did you mean" not in str(caught.value)


def test_names_of_architectures_alone_are_still_known():
    assert len(ALIASES) > 30
    for name, ours in ALIASES.items():
        assert find_backbone(name) is BACKBONES[ours]
        assert timm_name(name) is None
    with pytest.raises(ConfigError, match="did you mean resnet50"):
        find_backbone("resnet5O")
