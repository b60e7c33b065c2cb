"""Dilated convolutions in place of a backbone's last halving (DeepLab: Chen et al., 2017; DETR calls it DC5)."""

from collections.abc import Iterable

from torch import nn

from sat_vg.backbone_finetuning.utils.errors import ConfigError

_POOLINGS = (nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d)


def dilate(backbone: str, modules: Iterable[nn.Module]) -> None:
    """Give strided convolutions stride 1, and all after them twice the dilation; the weights stay.

    So every place of the new map with even row and column sees just the pixels that a place of the old map saw.
    torchvision's ``replace_stride_with_dilation`` does the same with a ResNet's layer. ``modules`` are those of the
    last halving and of all that comes after it, in the order in which they are run.

    Raises:
        ConfigError: there are layers other than convolutions that the stride depends on, or convolutions that do
            not pad evenly on both sides.
    """
    modules = list(modules)
    if any(isinstance(module, nn.Linear) for module in modules):
        raise undilatable(backbone, "its last stage is not made of convolutions alone")
    if any(isinstance(module, _POOLINGS) and module.stride not in (1, (1, 1)) for module in modules):
        raise undilatable(backbone, "its last stage begins with a pooling")
    convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
    has_strided = False
    for layer in convolutions:
        is_strided = layer.stride == (2, 2)
        if not (is_strided or (has_strided and layer.kernel_size != (1, 1))):
            continue
        margin = tuple(step * (size - 1) / 2 for step, size in zip(layer.dilation, layer.kernel_size, strict=True))
        if layer.padding != margin or layer.padding_mode != "zeros":
            raise undilatable(backbone, f"a convolution of {layer.kernel_size} there pads by {layer.padding}")
        if is_strided:
            layer.stride, has_strided = (1, 1), True
        else:
            down, across = layer.dilation
            layer.dilation = (2 * down, 2 * across)
            layer.padding = tuple(2 * int(side) for side in margin)
    if not has_strided:
        raise undilatable(backbone, "no convolution of its last stage has stride 2")


def undilatable(backbone: str, reason: str) -> ConfigError:
    """What is raised where a backbone's last stage cannot be dilated."""
    return ConfigError(
        f"dilation = True: {backbone} has no last stage that could be dilated ({reason}). Use a backbone such as "
        "resnet50, or take the map of the stage before it by out_names"
    )
