"""Random changes that can be added to an augmentation, each with a strength: turns, distortions, blur and noise.

As in ``transforms.py`` each draws its random numbers from torch's default generator. They take uint8 and float32 of
any number of bands: what a change of place brings in from outside is the mirrored image, as no value stands for
"nothing" in every band. A new one is a class here, its line in ``STEPS``, and its name in ``configs/choices.py``.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from sat_vg.backbone_finetuning.configs.choices import AugmentationStep
from sat_vg.backbone_finetuning.configs.ranges import parse_augmentation_step
from sat_vg.backbone_finetuning.data.loading.transforms import GaussianNoise, RandomChange, Sometimes

_PROBABILITY = 0.5  # of each step, for each image
_CELLS = 5  # of grid distortion, along each side
_PLACES = 6  # at which elastic distortion is drawn, along each side


# Strength → where each pixel of a changed image comes from: a 2 × 3 matrix of an affine map, or a function of places
# ``[H, W, 2]``, each from -1 to 1.
Places = Callable[[float], Tensor | Callable[[Tensor], Tensor]]


class Warp(nn.Module):
    """Takes each pixel from the place that ``draw(strength)`` says, bilinear; the image is mirrored at its border."""

    def __init__(self, draw: Places, strength: float) -> None:
        super().__init__()
        self.draw, self.strength = draw, strength

    def forward(self, image: Tensor) -> Tensor:
        """uint8 or float32 ``[C, H, W]`` → the same shape and type."""
        return warp(image, self.draw(self.strength))

    def extra_repr(self) -> str:
        """The settings."""
        return f"{getattr(self.draw, '__name__')}, strength={self.strength}"  # noqa: B009 - a callable may have none


def warp(image: Tensor, places: Tensor | Callable[[Tensor], Tensor]) -> Tensor:
    """Take each pixel of ``[C, H, W]`` from where a matrix ``[2, 3]`` or a function of ``[H, W, 2]`` says."""
    matrix = places if isinstance(places, Tensor) else torch.eye(2, 3)
    grid = functional.affine_grid(matrix[None], [1, 1, *image.shape[-2:]], align_corners=False)
    if not isinstance(places, Tensor):
        grid = places(grid[0])[None]
    moved = functional.grid_sample(image[None].float(), grid, padding_mode="reflection", align_corners=False)[0]
    return _as_before(moved, image.dtype)


def affine(degrees: float, scale: float = 1.0, right: float = 0.0, down: float = 0.0) -> Tensor:
    """The matrix by which an image is turned anticlockwise, enlarged, and shifted by shares of its side."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    turn = torch.tensor([[cos, -sin], [sin, cos]])
    shift = turn @ torch.tensor([[-2 * right], [-2 * down]])
    return torch.cat([turn, shift], 1)


def rotation(strength: float) -> Tensor:
    """By any angle up to ``strength`` degrees."""
    return affine(strength * _between())


def shift_scale_rotate(strength: float) -> Tensor:
    """Shift by up to ``strength`` of the side, scale by up to ``1 ± strength``, turn by up to ``strength`` × 180°."""
    turn, scale, right, down = (strength * _between() for _ in range(4))
    return affine(180 * turn, 1 + scale, right, down)


def elastic(strength: float) -> Callable[[Tensor], Tensor]:
    """By a smooth random field (Simard et al., 2003) of up to ``strength`` of the side."""
    drawn = torch.rand(1, 2, _PLACES, _PLACES).mul_(2).sub_(1).mul_(2 * strength)

    def moved(places: Tensor) -> Tensor:
        field = functional.interpolate(drawn, (places.shape[0], places.shape[1]), mode="bicubic")
        return places + field[0].permute(1, 2, 0)

    return moved


def grid_distortion(strength: float) -> Callable[[Tensor], Tensor]:
    """Rows and columns of cells are made wider and narrower, by factors of up to ``1 ± strength``."""
    widths = torch.rand(2, _CELLS).mul_(2).sub_(1).mul_(strength).add_(1)
    edges = functional.pad(widths.cumsum(1) / widths.sum(1, keepdim=True), (1, 0))

    def moved(places: Tensor) -> Tensor:
        position = (places + 1) / 2 * _CELLS
        cell = position.floor().clamp(0, _CELLS - 1).long()
        columns = []
        for axis in (0, 1):
            low, high = edges[axis][cell[..., axis]], edges[axis][cell[..., axis] + 1]
            columns.append(low + (position[..., axis] - cell[..., axis]) * (high - low))
        return torch.stack(columns, -1) * 2 - 1

    return moved


def optical_distortion(strength: float) -> Callable[[Tensor], Tensor]:
    """As by a lens: pincushion or barrel, the corners by up to ``strength`` of their distance from the centre."""
    bend = strength * _between()
    return lambda places: places * (1 + bend * places.square().sum(-1, keepdim=True) / 2)


class _Blur(RandomChange):
    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength


class GaussianBlur(_Blur):
    """Blur with a deviation from 0.1 up to ``strength`` pixels."""

    def forward(self, image: Tensor) -> Tensor:
        """uint8 or float32 ``[C, H, W]`` → the same shape and type."""
        sigma = 0.1 + (max(self.strength, 0.1) - 0.1) * float(torch.rand(()))
        side = 2 * math.ceil(2 * sigma) + 1
        blurred: Tensor = v2.functional.gaussian_blur(image, [side, side], [sigma, sigma])
        return blurred


class MotionBlur(_Blur):
    """The mean along a line of any direction, 1 to ``strength`` pixels long, as of a moving platform."""

    def forward(self, image: Tensor) -> Tensor:
        """uint8 or float32 ``[C, H, W]`` → the same shape and type."""
        share, turn = torch.rand(2).tolist()
        kernel = line_kernel(1 + share * (self.strength - 1), math.pi * turn)
        reach, bands = kernel.shape[0] // 2, image.shape[0]
        padded = functional.pad(image[None].float(), (reach,) * 4, mode="replicate")
        blurred = functional.conv2d(padded, kernel.expand(bands, 1, *kernel.shape), groups=bands)[0]
        return _as_before(blurred, image.dtype)


def line_kernel(length: float, angle: float) -> Tensor:
    """Weights ``[S, S]``, S odd, of a line through the middle; they sum to 1."""
    reach = math.ceil((length - 1) / 2)
    steps = torch.linspace(-(length - 1) / 2, (length - 1) / 2, 2 * reach + 1)
    kernel = torch.zeros(2 * reach + 1, 2 * reach + 1)
    rows, columns = (
        (steps * part + reach).round().long().clamp(0, 2 * reach) for part in (math.sin(angle), math.cos(angle))
    )
    kernel.index_put_((rows, columns), torch.ones(len(steps)), accumulate=True)
    return kernel / kernel.sum()


def _as_before(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.round_().clamp_(0, 255).to(dtype) if dtype == torch.uint8 else values


def _between() -> float:
    """A random number from -1 to 1."""
    return 2 * float(torch.rand(())) - 1


# Strength → change, by name.
STEPS: dict[AugmentationStep, Callable[[float], nn.Module]] = {
    "rotation": lambda strength: Warp(rotation, strength),
    "shift_scale_rotate": lambda strength: Warp(shift_scale_rotate, strength),
    "elastic": lambda strength: Warp(elastic, strength),
    "grid_distortion": lambda strength: Warp(grid_distortion, strength),
    "optical_distortion": lambda strength: Warp(optical_distortion, strength),
    "gaussian_blur": GaussianBlur,
    "motion_blur": MotionBlur,
    "noise": GaussianNoise,
}


def with_steps(augmentation: nn.Module, steps: Sequence[str] | None) -> nn.Module:
    """An augmentation, and after it each of ``steps``, such as ``noise=0.1``, for half of the images."""
    if not steps:
        return augmentation
    parsed = [parse_augmentation_step(step) for step in steps]
    return nn.Sequential(augmentation, *(Sometimes(_PROBABILITY, STEPS[name](strength)) for name, strength in parsed))
