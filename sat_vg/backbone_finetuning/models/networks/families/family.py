"""What a family of networks is, and the pieces that several families share."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torchvision import models

from sat_vg.backbone_finetuning.models.stages import Stage, find_member
from sat_vg.backbone_finetuning.utils.errors import ConfigError

PoolFunction = Callable[[nn.Module, Tensor], Tensor]
Value = TypeVar("Value")


@dataclass(frozen=True)
class AuxiliaryHead:
    """A second classifier halfway, trained with the network and left out of the extractor."""

    module: str
    """Dotted name of the head in the network."""
    after_stage: str
    """Name of the stage whose output it takes."""
    classifier: str
    """Dotted name of its last linear layer."""
    weight: float
    """Of its loss beside the main one."""


def unchanged(network: nn.Module, value: Value, *image_hw: object) -> Value:
    """The value itself, where a family has nothing to do: its last stage pools, or its output is a map already."""
    return value


pooled_already = unchanged  # the ``pool`` of networks whose last stage is a neck


def parameters_named(parts: Collection[str], network: nn.Module) -> Collection[str]:
    """Full names of the parameters whose dotted names have one of ``parts`` among their own parts."""
    return [name for name, _ in network.named_parameters() if not set(parts).isdisjoint(name.split("."))]


def always(value: Value, network_or_name: object) -> Value:
    """What is the same for all members of a family; with ``partial`` for fields that are functions."""
    return value


_ONE, _NONE = partial(always, 1), partial(always, None)
_NO_OPTIONS: Callable[[int], dict[str, Any]] = partial(always, {})
_NO_NAMES: Callable[[nn.Module], Collection[str]] = partial(always, ())
_USUAL_SIZE = partial(always, 224)


@dataclass(frozen=True)
class PublishedWeights:
    """Weights that are published under a name such as ``IMAGENET1K_V2``, and the preprocessing of their training."""

    name: str
    url: str
    fetch: Callable[[], dict[str, Tensor]]
    """Downloads them, or reads the file of an earlier download."""
    image_size: int
    """In pixels."""
    mean: tuple[float, ...]
    """As ``std``, for images scaled to [0, 1]."""
    std: tuple[float, ...]
    interpolation: str


def torchvision_weights(name: str) -> dict[str, PublishedWeights]:
    """What torchvision publishes for a network, by name, and its best under ``DEFAULT``."""
    if name not in models.list_models(module=models):
        return {}
    published = {}
    for key, entry in models.get_model_weights(name).__members__.items():
        preset = entry.transforms()
        published[key] = PublishedWeights(
            name=entry.name,
            url=entry.url,
            fetch=partial(entry.get_state_dict, progress=True, check_hash=True),
            image_size=preset.crop_size[0],
            mean=tuple(preset.mean),
            std=tuple(preset.std),
            interpolation=preset.interpolation.value,
        )
    return published


def no_weights(name: str) -> dict[str, PublishedWeights]:
    """For networks without published weights."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Family:
    """Networks that are cut in the same way.

    Attributes:
        name: for messages.
        stages: the network's stages, in order of depth.
        pool: ``(network, last stage's output) -> [B, D]``: the vector that the classifier sees.
        classifier: dotted name of the last linear layer.
        to_map: ``(network, a stage's output, image height and width) -> [B, C, h, w]``.
        size_divisibility: ``network ->`` what the extractor pads height and width to multiples of.
        smallest_image: fewest pixels a side that come through all stages.
        position_embedding: dotted name of the parameter that depends on the image size, if there is one.
        num_prefix_tokens: tokens without a place in the image, such as the class token.
        build: ``(name, number of classes, image size) ->`` the network with random weights. Unset: torchvision's
            network of that name, with ``builder_options``.
        builder_options: ``image size ->`` what torchvision's builder needs beside name and number of classes.
        image_multiple: ``name ->`` what the training's image size must be a multiple of for torchvision's builder.
        auxiliary_heads: second classifiers halfway.
        weights: ``name ->`` the published weights, by their names.
        usual_size: ``name ->`` height and width of the images that it was made for, where no weights are published.
        normalisation: mean and deviation of the pre-training, where torchvision's presets say something else.
        smallest_measured: ``network ->`` as ``smallest_image``, where the members differ.
        fixed_image_size: ``network ->`` the only size it takes, in pixels; None: it takes others too. Its
            ``size_divisibility`` must be this size then, so that smaller images are padded to it.
        why_traced_at_one_size: why ``torch.export`` is not tried for images of all sizes, if it is not.
        no_weight_decay: ``network ->`` full names of the parameters that weight decay must leave alone besides biases
            and the vectors of norms: position embeddings, class tokens, scales.
        adapt_weights: ``(network, weights under their publisher's names) -> weights under the network's names``.
        patch_average: ``network ->`` a ``pool`` that averages its patch tokens, for networks that pool by a class
            token; None: it does not.
    """

    name: str
    stages: Callable[[nn.Module], tuple[Stage, ...]]
    pool: PoolFunction
    classifier: str
    to_map: Callable[[nn.Module, Tensor, tuple[int, int]], Tensor] = unchanged
    size_divisibility: Callable[[nn.Module], int] = _ONE
    smallest_image: int = 1
    position_embedding: str | None = None
    num_prefix_tokens: int = 0
    build: Callable[[str, int, int], nn.Module] | None = None
    builder_options: Callable[[int], dict[str, Any]] = _NO_OPTIONS
    image_multiple: Callable[[str], int] = _ONE
    auxiliary_heads: tuple[AuxiliaryHead, ...] = ()
    weights: Callable[[str], dict[str, PublishedWeights]] = torchvision_weights
    usual_size: Callable[[str], int] = _USUAL_SIZE
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    smallest_measured: Callable[[nn.Module], int] = _ONE
    fixed_image_size: Callable[[nn.Module], int | None] = _NONE
    why_traced_at_one_size: str | None = None
    no_weight_decay: Callable[[nn.Module], Collection[str]] = _NO_NAMES
    adapt_weights: Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]] = unchanged
    patch_average: Callable[[nn.Module], PoolFunction | None] = _NONE

    def new_network(self, name: str, num_classes: int, image_size: int) -> nn.Module:
        """The network with random weights.

        Raises:
            ConfigError: it cannot be built for this image size.
        """
        if self.build is not None:
            return self.build(name, num_classes, image_size)
        require_multiple(name, image_size, self.image_multiple(name))
        network: nn.Module = models.get_model(
            name, weights=None, num_classes=num_classes, **self.builder_options(image_size)
        )
        return network


def require_multiple(name: str, image_size: int, multiple: int) -> None:
    """Refuse image sizes that a network cannot be built for.

    Raises:
        ConfigError: names the nearest size that it can.
    """
    if image_size % multiple:
        near = max(multiple, round(image_size / multiple) * multiple)
        raise ConfigError(f"image_size = {image_size}: {name} needs a multiple of {multiple}; for example {near}")


def global_average(network: nn.Module, features: Tensor) -> Tensor:
    """The network's own ``avgpool``, flattened."""
    average_pool: nn.Module = network.avgpool  # type: ignore[assignment]
    return torch.flatten(average_pool(features), 1)


def adaptive_average(network: nn.Module, features: Tensor) -> Tensor:
    """As the networks that pool by function and not by layer."""
    return torch.flatten(nn.functional.adaptive_avg_pool2d(features, (1, 1)), 1)


def mean_over_places(network: nn.Module, features: Tensor) -> Tensor:
    """``[B, C, h, w] → [B, C]``."""
    return features.mean([2, 3])


def mean_of_patches(num_prefix_tokens: int, network: nn.Module, tokens: Tensor) -> Tensor:
    """``[B, tokens, D] → [B, D]``, without the first tokens, which have no place in the image."""
    return tokens[:, num_prefix_tokens:].mean(1)


def listed_stages(stages: Mapping[str, str]) -> Callable[[nn.Module], tuple[Stage, ...]]:
    """Stages that are the same in all members: names of stages → their members' dotted names with blanks between."""
    return partial(always, tuple(Stage(name, tuple(members.split())) for name, members in stages.items()))


def cut_features(network: nn.Module, starts: Sequence[int], names: Sequence[str]) -> list[Stage]:
    """Stages over ``network.features`` that begin at the given positions."""
    features: nn.Sequential = network.features  # type: ignore[assignment]
    ends = [*starts[1:], len(features)]
    return [
        Stage(name, tuple(f"features.{index}" for index in range(start, end)))
        for name, start, end in zip(names, starts, ends, strict=True)
    ]


def four_stages(network: nn.Module) -> list[Stage]:
    """Stem, then four stages of which each but the first begins with its downsampling."""
    return cut_features(network, (0, 1, 2, 4, 6), ("stem", "stage1", "stage2", "stage3", "stage4"))


def neck_stage(num_layers: int, flatten_first: bool = True) -> Stage:
    """The stage between the pooling and the last linear layer: the first layers of ``network.classifier``."""
    members = tuple(f"classifier.{position}" for position in range(num_layers))
    return Stage("neck", members, partial(_neck, members, flatten_first), gives_map=False)


def _neck(layers: Sequence[str], flatten_first: bool, network: nn.Module, features: Tensor) -> Tensor:
    average_pool: nn.Module = network.avgpool  # type: ignore[assignment]
    value: Tensor = average_pool(features)
    if flatten_first:
        value = torch.flatten(value, 1)
    for layer in layers:
        value = find_member(network, layer)(value)
    return torch.flatten(value, 1)
