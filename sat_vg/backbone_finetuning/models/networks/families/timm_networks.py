"""Networks of timm, under names such as ``timm:pvt_v2_b0``; how they are cut is measured when they are built.

Timm has over a thousand networks, of which no table could say where each is to be cut. So every freshly built one is
run once with its layers watched. Where ``forward_features`` hands each layer just what the layer before it gave, the
layers are stages; the vision transformer is cut by name; any other network is one stage, ``trunk``. Timm is imported
when such a name is asked for, not before.
"""

import difflib
import fnmatch
import importlib
import re
import sys
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sat_vg.backbone_finetuning.models.networks.families.family import (
    Family,
    PoolFunction,
    PublishedWeights,
    mean_of_patches,
    require_multiple,
)
from sat_vg.backbone_finetuning.models.networks.families.timm_cutting import (
    REFUSALS,
    SMALLEST,
    TRUNK,
    measure_cut,
    patch_size,
    read_map,
    run_neck,
)
from sat_vg.backbone_finetuning.utils.errors import ConfigError, WeightsError

PREFIX = "timm:"
_POSITIONS = ("pos_embed", "rel_pos", "relative_position")  # parameters and modules of timm that hold them


class TimmNetwork(nn.Module):
    """A network of timm with a new classifier: ``images [B, C, H, W] → logits [B, num_classes]``."""

    def __init__(self, trunk: nn.Module, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.trunk = trunk  # timm's own module, built without a classifier; ``trunk.cut`` is what was measured of it
        self.head = nn.Linear(num_features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Timm's own forward pass up to the pooled vector, then the classifier."""
        logits: Tensor = self.head(_pooled(self.trunk, images))
        return logits


def _pooled(trunk: Any, images: Tensor) -> Any:
    return trunk.forward_head(trunk.forward_features(images), pre_logits=True)


def timm_family(name: str) -> Family:
    """The family of a network of timm by timm's name, after which a tag of its weights may follow.

    Raises:
        ConfigError: timm is not installed or has no such network; the nearest ones are named.
    """
    timm = _timm(name)
    architectures = timm.list_models()
    if name not in architectures and name not in timm.list_pretrained():
        near = difflib.get_close_matches(name.lower(), architectures, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(PREFIX + other for other in near)}? " if near else ""
        raise ConfigError(
            f"backbone = {PREFIX + name!r}: timm {timm.__version__} has no such network; {hint}"
            f"timm.list_models() lists all {len(architectures)}"
        )
    return _TIMM


def timm_names() -> list[str]:
    """The names of all networks of timm, with and without tags of their weights; none where it is not installed."""
    try:
        timm = importlib.import_module("timm")
    except ImportError:
        return []
    return [*timm.list_models(), *timm.list_pretrained()]


def _timm(name: str) -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ConfigError(
            f"backbone = {PREFIX + name!r}: needs timm, which cannot be imported ({error}); install it with "
            "pip install 'sat_vg[timm]'"
        ) from error


def _timm_network(name: str, num_classes: int, image_size: int) -> nn.Module:
    """Timm's network with random weights, cut into stages by what one run of it shows.

    Raises:
        ConfigError: the network does not take images of this size.
    """
    architecture = name.removeprefix(PREFIX)
    trunk = _build_trunk(architecture, image_size)
    require_multiple(name, image_size, patch_size(trunk))
    holder = nn.Module()  # stages reach the network through its child ``trunk``
    holder.trunk = trunk
    trunk.eval()
    with torch.no_grad():
        # Of its own generator, so that what is drawn next does not depend on the measuring.
        images = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
        try:
            pooled = _pooled(trunk, images)
        except REFUSALS as error:
            raise ConfigError(_explain_size(name, image_size, error)) from error
        if not isinstance(pooled, Tensor) or pooled.dim() != 2:
            raise ConfigError(
                f"backbone = {name!r}: gives no vector per image that could be classified; choose another network"
            )
        trunk.cut = measure_cut(holder, images)
    for module in trunk.modules():
        if hasattr(module, "attention_bias_cache"):
            module.register_forward_hook(_forget_biases)
    if not any(stage.gives_map for stage in trunk.cut.stages):
        raise ConfigError(
            f"backbone = {name!r}: its features are no map of the image, so nothing could be extracted from it; "
            "choose another network, such as timm:pvt_v2_b0"
        )
    trunk.train()
    return TimmNetwork(trunk, pooled.shape[1], num_classes)


def _forget_biases(module: Any, inputs: Any, output: Any) -> None:
    """Timm keeps the biases that attention had in eval mode until ``train()``, whatever weights come in between."""
    module.attention_bias_cache = {}


def _build_trunk(architecture: str, image_size: int) -> Any:
    # Passed to those networks that know them; with them most take images of any size.
    options: dict[str, Any] = {"img_size": image_size, "dynamic_img_size": True, "strict_img_size": False}
    timm = _timm(architecture)
    while True:
        try:
            return timm.create_model(architecture, pretrained=False, num_classes=0, **options)
        except TypeError as error:  # the only way to ask timm which options a network knows
            _, is_about_options, message = str(error).partition("unexpected keyword argument")
            unknown = set(re.findall(r"'(\w+)'", message)) & set(options)
            if not is_about_options or not unknown:
                raise
            options = {key: value for key, value in options.items() if key not in unknown}
        except REFUSALS as error:
            raise ConfigError(_explain_size(PREFIX + architecture, image_size, error)) from error


def _explain_size(name: str, image_size: int, error: Exception) -> str:
    usual = _usual_size(name)
    return (
        f"image_size = {image_size}: {name} does not take it ({error}); it was made for {usual}: --image_size {usual}"
    )


def _usual_size(name: str) -> int:
    published = _timm(name).get_pretrained_cfg(name.removeprefix(PREFIX))
    return 224 if published is None else int(published.input_size[1])


def _measured(attribute: str, network: nn.Module) -> Any:
    return getattr(network.trunk.cut, attribute)  # type: ignore[union-attr]


def _pool(network: nn.Module, features: Tensor) -> Tensor:
    return features if _measured("has_neck", network) else run_neck(network, features)


def _patch_average(network: nn.Module) -> PoolFunction | None:
    """Of networks that take the class token of their last output as it is."""
    trunk: Any = network.trunk
    last = trunk.cut.layouts[-1]
    takes_token = getattr(trunk, "global_pool", None) == "token" and not trunk.cut.has_neck
    if not takes_token or last.kind != "tokens" or not last.num_prefix_tokens:
        return None
    return partial(mean_of_patches, last.num_prefix_tokens)


def _to_map(network: nn.Module, output: Tensor, image_hw: tuple[int, int]) -> Tensor:
    return read_map(network.trunk.cut, output, image_hw)  # type: ignore[union-attr,arg-type]


def _published(name: str) -> dict[str, PublishedWeights]:
    architecture = name.removeprefix(PREFIX)
    config = _timm(architecture).get_pretrained_cfg(architecture)
    if config is None or not config.has_weights:
        return {}
    entry = PublishedWeights(
        name=config.tag or "DEFAULT",
        url=f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else str(config.url or None),
        fetch=partial(_fetch, architecture),
        image_size=config.input_size[1],
        mean=tuple(config.mean),
        std=tuple(config.std),
        interpolation=config.interpolation if config.interpolation in ("bilinear", "bicubic") else "bicubic",
    )
    return {"DEFAULT": entry}


def _fetch(architecture: str) -> dict[str, Tensor]:
    """The published weights under timm's names; timm needs a network to put them in."""
    with torch.random.fork_rng(devices=[]):
        weights: dict[str, Tensor] = _timm(architecture).create_model(architecture, pretrained=True).state_dict()
    return weights


def _adapt_weights(network: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of ``TimmNetwork``, their position embeddings resampled for it as timm does.

    They are given under these names or under timm's, that is without ``trunk.``.

    Raises:
        WeightsError: they are of another image size, and the network cannot do with that; or of other patches, which
            timm would resample too.
    """
    trunk: Any = network.trunk
    of_trunk = {name.removeprefix(TRUNK): value for name, value in given.items() if name.startswith(TRUNK)}
    others = {name: value for name, value in given.items() if not name.startswith(TRUNK)}
    if not of_trunk:
        of_trunk, others = others, {}
    # By this name in all of timm's files that have one.
    convert: Callable[..., Any] | None = getattr(sys.modules[type(trunk).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        before = of_trunk
        of_trunk = dict(convert(dict(of_trunk), trunk))
        for name, value in of_trunk.items():
            if (
                name in before
                and value.dim() == before[name].dim() == 4
                and value.shape[2:] != before[name].shape[2:]
            ):
                was, now = (" x ".join(map(str, one.shape[2:])) for one in (before[name], value))
                raise WeightsError(
                    f"the weights are those of another network: {name} is of patches of {was} pixels, and the "
                    f"backbone has {now}. Pass the backbone they were made with"
                )
    own = trunk.state_dict()
    fixed = _measured("fixed_image_size", network)
    misfits = [
        name
        for name, value in of_trunk.items()
        if name in own and value.shape != own[name].shape and value.dim() != 4  # a first convolution for other bands
    ]
    if fixed is not None and misfits:
        name = misfits[0]
        usual = trunk.pretrained_cfg["input_size"][1]
        raise WeightsError(
            f"image_size = {fixed}: the weights do not fit this network, which takes one size only: {name} is "
            f"{tuple(of_trunk[name].shape)}, not {tuple(own[name].shape)}. Pass the size they were trained with "
            f"(as published: --image_size {usual}), or start from random ones: --pretrained false"
        )
    return {**{TRUNK + name: value for name, value in of_trunk.items()}, **others}


def _no_weight_decay(network: nn.Module) -> Collection[str]:
    """What timm itself leaves alone, and the position embeddings and scales that its lists leave out."""
    trunk: Any = network.trunk
    listed = trunk.no_weight_decay() if hasattr(trunk, "no_weight_decay") else ()  # names, which may have wildcards
    return [
        TRUNK + name
        for name, parameter in trunk.named_parameters()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in listed)
        or any(part.startswith(_POSITIONS) for part in name.split("."))
        # A factor or a token of its own, in whatever shape, and no layer's matrix.
        or (not name.endswith("weight") and parameter.numel() == max(parameter.shape, default=1))
    ]


_TIMM = Family(
    name="timm",
    stages=partial(_measured, "stages"),
    pool=_pool,
    classifier="head",
    to_map=_to_map,
    # Of networks that take but one size it is that size, so that smaller images are padded to it.
    size_divisibility=partial(_measured, "size_divisibility"),
    smallest_image=SMALLEST,
    build=_timm_network,
    weights=_published,
    usual_size=_usual_size,
    smallest_measured=partial(_measured, "smallest_image"),
    fixed_image_size=partial(_measured, "fixed_image_size"),
    why_traced_at_one_size="networks of timm are traced at one size",
    no_weight_decay=_no_weight_decay,
    adapt_weights=_adapt_weights,
    patch_average=_patch_average,
)
