"""A backbone as an ordered list of named stages over torchvision's own modules.

A stage owns modules and parameters by their dotted names in the torchvision network; it holds no module
itself, so the same stages run the network, a copy of it, or any module that has the same children.
Composing all stages is torchvision's forward pass up to the features.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Stage:
    """One step of a backbone."""

    name: str
    """Such as ``layer3`` or ``block11``."""
    members: tuple[str, ...]
    """Dotted names of the modules and parameters that belong to the stage."""
    forward: Callable[[nn.Module, Tensor], Tensor] | None = None
    """``(network, input) -> output``; unset: the members one after another."""
    gives_map: bool = True
    """Whether the output still has places in the image; a neck after the pooling has none."""

    def run(self, network: nn.Module, value: Tensor) -> Tensor:
        """Compute the stage's output with the modules of ``network``."""
        if self.forward is not None:
            return self.forward(network, value)
        for member in self.members:
            value = find_member(network, member)(value)
        return value

    def modules(self, network: nn.Module) -> Iterator[nn.Module]:
        """All modules of the stage, nested ones included."""
        for member in self.members:
            found = find_member(network, member)
            if isinstance(found, nn.Module):
                yield from found.modules()

    def named_parameters(self, network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters of the stage under their full names in ``network``."""
        for member in self.members:
            found = find_member(network, member)
            if isinstance(found, nn.Module):
                for name, parameter in found.named_parameters():
                    yield f"{member}.{name}", parameter
            else:
                yield member, found


def find_member(network: nn.Module, dotted_name: str) -> Any:
    """The module or parameter under a dotted name such as ``features.0`` or ``encoder.pos_embedding``."""
    found: Any = network
    for part in dotted_name.split("."):
        found = getattr(found, part)
    return found
