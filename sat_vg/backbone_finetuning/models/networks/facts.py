"""Facts of every backbone of the table: measured once, stored as JSON, and measured again by the tests.

Reading it needs no torch, so the listing appears at once.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

FACTS_FILE = Path(__file__).with_name("backbone_facts.json")


@dataclass(frozen=True)
class StageFacts:
    """One stage; channels and stride, in input pixels per map pixel, are None where it gives no map."""

    name: str
    parameters: int
    channels: int | None
    stride: int | None


@dataclass(frozen=True)
class BackboneFacts:
    """One backbone without its classifier."""

    name: str
    family: str
    stages: tuple[StageFacts, ...]  # in order of depth
    embed_dim: int  # length of the pooled vector
    size_divisibility: int
    image_size: int | None  # of the best published weights, in pixels; None where there are none
    interpolation: str | None  # of their training's resizing
    weights: tuple[str, ...]  # names of the published ones

    @property
    def parameters(self) -> int:
        """Number of parameters of all stages together."""
        return sum(stage.parameters for stage in self.stages)

    @property
    def maps(self) -> tuple[StageFacts, ...]:
        """The stages whose maps the extractor gives by default: the last of every stride from 4 on."""
        return tuple({s.stride: s for s in self.stages if s.stride is not None and s.stride >= 4}.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the name."""
        values = asdict(self)
        del values["name"]
        return {**values, "stages": [list(stage.values()) for stage in values["stages"]]}

    @classmethod
    def from_dict(cls, name: str, values: Mapping[str, Any]) -> "BackboneFacts":
        """Restore what ``to_dict`` gave."""
        stages = tuple(StageFacts(*stage) for stage in values["stages"])
        return cls(name=name, **{**values, "stages": stages, "weights": tuple(values["weights"])})


@cache
def read_facts() -> dict[str, BackboneFacts]:
    """The facts of all backbones of the table, by name."""
    content = json.loads(FACTS_FILE.read_text(encoding="utf-8"))
    return {name: BackboneFacts.from_dict(name, values) for name, values in content.items()}
