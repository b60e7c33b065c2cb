"""Names of other collections: of the same architectures, and of weights that torchvision does not have."""

import re

# Names under which the same architectures are known elsewhere. The weights are torchvision's.
_HUB_NAMES = {
    "microsoft/resnet-{}": ("resnet{}", "18 34 50 101 152"),
    "facebook/convnext-{}-224": ("convnext_{}", "tiny small base large"),
    "google/vit-base-patch{}-224": ("vit_b_{}", "16 32"),
    "google/vit-large-patch{}-224": ("vit_l_{}", "16 32"),
    "google/efficientnet-{}": ("efficientnet_{}", "b0 b1 b2 b3 b4 b5 b6 b7"),
    "vit_base_patch{}_224": ("vit_b_{}", "16 32"),
    "vit_large_patch{}_224": ("vit_l_{}", "16 32"),
    "vit_huge_patch{}_224": ("vit_h_{}", "14"),
    "tf_efficientnet_{}": ("efficientnet_{}", "b0 b1 b2 b3 b4 b5 b6 b7"),
    "mobilenetv2_{}": ("mobilenet_v2", "100"),
    "mobilenetv3_{}_100": ("mobilenet_v3_{}", "small large"),
}
_SWIN_SIZES = {"tiny": "t", "small": "s", "base": "b"}
ALIASES: dict[str, str] = {
    theirs.format(part): ours.format(part) for theirs, (ours, parts) in _HUB_NAMES.items() for part in parts.split()
}
ALIASES.update({f"microsoft/swin-{size}-patch4-window7-224": f"swin_{t}" for size, t in _SWIN_SIZES.items()})
ALIASES.update({f"swin_{size}_patch4_window7_224": f"swin_{t}" for size, t in _SWIN_SIZES.items()})
ALIASES.update({f"microsoft/swinv2-{size}-patch4-window8-256": f"swin_v2_{t}" for size, t in _SWIN_SIZES.items()})

# Names that say which weights are meant, where torchvision's would be others: what timm calls them.
_ELSEWHERE = (
    (r"(?:hf[-_]hub:)?timm/(.+)", r"\1"),
    (r"google/vit-(base|large)-patch(16|32)-224-in21k", r"vit_\1_patch\2_224.orig_in21k"),
    (r"google/vit-huge-patch14-224-in21k", r"vit_huge_patch14_224.orig_in21k"),
    (r"google/vit-base-patch16-384", r"vit_base_patch16_384.orig_in21k_ft_in1k"),
    (r"google/vit-large-patch32-384", r"vit_large_patch32_384.orig_in21k_ft_in1k"),
    (r"google/vit-(base-patch32|large-patch16)-384", r"vit_\1_384.augreg_in21k_ft_in1k"),
    (r"WinKawaks/vit-(tiny|small)-patch16-224", r"vit_\1_patch16_224.augreg_in21k_ft_in1k"),
    (r"facebook/vit-mae-(base|large)", r"vit_\1_patch16_224.mae"),
    (r"facebook/vit-mae-huge", r"vit_huge_patch14_224.mae"),
    (r"facebook/dino-vits(16|8)", r"vit_small_patch\1_224.dino"),
    (r"facebook/dino-vitb(16|8)", r"vit_base_patch\1_224.dino"),
    (r"facebook/dinov2-with-registers-(small|base|large|giant)", r"vit_\1_patch14_reg4_dinov2.lvd142m"),
    (r"facebook/dinov2-(small|base|large|giant)", r"vit_\1_patch14_dinov2.lvd142m"),
    (r"facebook/dinov3-vits16-pretrain-lvd1689m", "vit_small_patch16_dinov3.lvd1689m"),
    (r"facebook/dinov3-vitb16-pretrain-lvd1689m", "vit_base_patch16_dinov3.lvd1689m"),
    (r"facebook/dinov3-vitl16-pretrain-(lvd1689m|sat493m)", r"vit_large_patch16_dinov3.\1"),
    (r"facebook/dinov3-vit7b16-pretrain-(lvd1689m|sat493m)", r"vit_7b_patch16_dinov3.\1"),
    (r"facebook/dinov3-convnext-(tiny|small|base|large)-pretrain-lvd1689m", r"convnext_\1.dinov3_lvd1689m"),
    (r"facebook/deit-(tiny|small|base)-patch16-(224|384)", r"deit_\1_patch16_\2.fb_in1k"),
    (r"facebook/deit-(tiny|small|base)-distilled-patch16-(224|384)", r"deit_\1_distilled_patch16_\2.fb_in1k"),
    (r"openai/clip-vit-(base-patch16|base-patch32|large-patch14)", r"vit_\1_clip_224.openai"),
    (r"openai/clip-vit-large-patch14-336", "vit_large_patch14_clip_336.openai"),
    (r"laion/CLIP-ViT-B-(16|32)-laion2B.*", r"vit_base_patch\1_clip_224.laion2b"),
    (r"laion/CLIP-ViT-(L|H|g|bigG)-14-laion2B.*", r"vit_\1_patch14_clip_224.laion2b"),
    (r"google/siglip-(base|large)-patch16-(\d+)", r"vit_\1_patch16_siglip_\2.webli"),
    (r"google/siglip2-(base|large)-patch16-(\d+)", r"vit_\1_patch16_siglip_\2.v2_webli"),
    (r"microsoft/beit-(base|large)-patch16-(224|384|512)", r"beit_\1_patch16_\2.in22k_ft_in22k_in1k"),
    (r"microsoft/beit-(base|large)-patch16-224-pt22k(?:-ft22k)?", r"beit_\1_patch16_224.in22k_ft_in22k"),
    (r"microsoft/swin-(base|large)-patch4-window(7-224|12-384)-in22k", r"swin_\1_patch4_window\2.ms_in22k"),
    (r"microsoft/swin-base-patch4-window12-384", "swin_base_patch4_window12_384.ms_in1k"),
    (r"microsoft/swin-large-patch4-window(7-224|12-384)", r"swin_large_patch4_window\1.ms_in22k_ft_in1k"),
    (r"microsoft/swinv2-(tiny|small|base)-patch4-window16-256", r"swinv2_\1_window16_256.ms_in1k"),
    (r"microsoft/swinv2-(base|large)-patch4-window12-192-22k", r"swinv2_\1_window12_192.ms_in22k"),
    (
        r"microsoft/swinv2-(base|large)-patch4-window12to16-192to256-22kto1k-ft",
        r"swinv2_\1_window12to16_192to256.ms_in22k_ft_in1k",
    ),
    (
        r"microsoft/swinv2-(base|large)-patch4-window12to24-192to384-22kto1k-ft",
        r"swinv2_\1_window12to24_192to384.ms_in22k_ft_in1k",
    ),
    (r"facebook/convnext-(\w+)-224-22k", r"convnext_\1.fb_in22k"),
    (r"facebook/convnext-(\w+)-224-22k-1k", r"convnext_\1.fb_in22k_ft_in1k"),
    (r"facebook/convnext-(\w+)-384-22k-1k", r"convnext_\1.fb_in22k_ft_in1k_384"),
    (r"facebook/convnextv2-(\w+)-1k-224", r"convnextv2_\1.fcmae_ft_in1k"),
    (r"facebook/convnextv2-(\w+)-22k-224", r"convnextv2_\1.fcmae_ft_in22k_in1k"),
    (r"facebook/convnextv2-(\w+)-22k-(384|512)", r"convnextv2_\1.fcmae_ft_in22k_in1k_\2"),
    # Timm's own of former times.
    (r"vit_large_patch32_224_in21k", "vit_large_patch32_224.orig_in21k"),
    (r"vit_huge_patch14_224_in21k", "vit_huge_patch14_224.orig_in21k"),
    (r"(vit_\w+_patch\d+_224)_in21k", r"\1.augreg_in21k"),
    (r"(vit_\w+_patch\d+_224)_(dino|mae)", r"\1.\2"),
    (r"vit_base_patch(16|32)_224_sam", r"vit_base_patch\1_224.sam_in1k"),
    (r"(swin_\w+_patch4_window\w+)_in22k", r"\1.ms_in22k"),
    (r"(convnext_\w+)_in22k", r"\1.fb_in22k"),
    (r"(convnext_\w+)_in22ft1k", r"\1.fb_in22k_ft_in1k"),
    (r"(tf_efficientnet_b\d)_ns", r"\1.ns_jft_in1k"),
    (r"(tf_efficientnet_b\d)_(ap|aa)", r"\1.\2_in1k"),
)
_SIZES = {"L": "large", "H": "huge", "g": "giant", "bigG": "gigantic"}
# Words for other data or another way of training, in names that are not listed above.
_OTHER_TRAINING = re.compile(
    r"(?<![a-z])(in-?(12|21|22)k|(12|21|22)k|jft|dino|dinov[23]|mae|fcmae|clip|siglip2?|beit|eva0?2?|distilled|moco|swav|"
    r"simclr|byol|msn|ibot|sam|laion\w*|openai|webli|swsl|ssl|ns|ap)(?![a-z])"
)


def timm_name(name: str) -> str | None:
    """What timm calls the weights that a name of another collection stands for; None where that is not known."""
    for pattern, theirs in _ELSEWHERE:
        match = re.fullmatch(pattern, name, re.IGNORECASE)
        if match is not None:
            found = match.expand(theirs)
            for letter, size in _SIZES.items():
                found = found.replace(f"vit_{letter}_", f"vit_{size}_")
            return found if "/" not in name or name.startswith(("timm/", "hf")) else found.replace("-", "_")
    return None


def other_training(name: str) -> str | None:
    """The word in a name that tells of other data or another way of training than torchvision's, if there is one."""
    word = _OTHER_TRAINING.search(name.lower())
    return None if word is None else word[0].replace("-", "")
