"""Position embeddings of vision transformers at other image sizes than they were trained at."""

import torch
from torch import Tensor
from torch.nn import functional


def resample_positions(positions: Tensor, grid: tuple[int, int], num_prefix_tokens: int) -> Tensor:
    """Resample position embeddings to another grid of patches (Dosovitskiy et al., 2021, section 3.2).

    Args:
        positions: ``[1, prefix + n * n, C]``, trained on a square grid.
        grid: height and width of the wanted grid, in patches.
        num_prefix_tokens: leading tokens that have no place in the grid, such as the class token.

    Returns:
        ``[1, prefix + height * width, C]``: bicubic, antialiased, computed in fp32; the very tensor that was
        passed where the grid is the trained one.

    Raises:
        ValueError: the trained positions do not form a square grid.
    """
    count = positions.shape[1] - num_prefix_tokens
    side = round(count**0.5)
    if side * side != count:
        raise ValueError(f"{count} position embeddings do not form a square grid")
    if grid == (side, side):
        return positions
    prefix, patches = positions[:, :num_prefix_tokens], positions[:, num_prefix_tokens:]
    square = patches.float().unflatten(1, (side, side))[0]  # [rows, columns, C]
    down, across = (_resampling_weights(side, length, positions.device) for length in grid)
    resampled = torch.einsum("hr,wc,rcd->hwd", down, across, square)
    return torch.cat([prefix, resampled.flatten(0, 1)[None].to(patches.dtype)], dim=1)


@torch.no_grad()
def _resampling_weights(old: int, new: int, device: torch.device) -> Tensor:
    """``[new, old]``: how much each of the old places gives to each of the new ones, bicubic with antialiasing.

    As a matrix, since the gradient of torch's own antialiased resampling cannot be compiled for changing sizes.
    """
    identity = torch.eye(old, device=device)[None, None]
    return functional.interpolate(identity, size=(new, old), mode="bicubic", antialias=True)[0, 0]
