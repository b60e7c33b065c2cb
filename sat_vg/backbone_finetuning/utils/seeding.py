"""Random numbers as a pure function of (seed, purpose, position), so that no generator state needs saving.

Order, augmentation, mixing and dropout each draw from a generator that is seeded anew from what they
are for. A run is then the same with any number of workers and can be resumed at any step.
"""

from enum import IntEnum

import numpy as np
import torch

_MASK = (1 << 64) - 1


class Purpose(IntEnum):
    """What a random stream is for; two purposes never share a stream."""

    ORDER = 1
    SAMPLE = 2
    STEP = 3
    MIXING = 4
    SPLIT = 5
    INITIALISATION = 6
    SCENES = 7
    HELD_OUT = 8
    SEARCH = 9


def derive_seed(seed: int, purpose: Purpose, *position: int) -> int:
    """Mix a seed, a purpose and a position into one 63-bit seed (SplitMix64; Steele et al., 2014).

    Args:
        seed: the run's seed.
        purpose: what the numbers are for.
        *position: integers that name the place, such as ``(epoch, index)`` or ``(step,)``.

    Returns:
        An integer in ``[0, 2**63)``, the same on every machine.
    """
    state = 0
    for value in (seed, int(purpose), *position):
        state = (state ^ (value & _MASK)) & _MASK
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def seed_default_generator(seed: int, device: torch.device | None = None) -> None:
    """Seed the generators that transforms (CPU) and dropout (CPU or ``device``) draw from.

    The CPU generator object is seeded directly: ``torch.manual_seed`` visits every backend and costs
    some sixty times as much, which would show at once per sample.
    """
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type == "cuda":
        torch.cuda.manual_seed(seed)  # of the current device, which is the run's
    elif device is not None and device.type == "mps":
        torch.mps.manual_seed(seed)


def torch_generator(seed: int) -> torch.Generator:
    """A CPU generator of its own, seeded."""
    return torch.Generator().manual_seed(seed)


def numpy_generator(seed: int) -> np.random.Generator:
    """A NumPy generator of its own, seeded."""
    return np.random.Generator(np.random.PCG64(seed))
