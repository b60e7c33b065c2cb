"""The options of ``sat-vg serve``."""

from dataclasses import dataclass
from typing import Annotated

from sat_vg.backbone_finetuning.configs.ranges import PositiveFloat, PositiveInt, Range


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Options of ``sat-vg serve``."""

    checkpoint: str
    """A best_model.pt, or the folder of a run."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0: all of this machine. There is no authentication."""
    port: Annotated[int, Range(lowest=0, highest=65535, example=8000)] = 8000
    """Port to listen at; 0: any that is free."""
    batch_size: PositiveInt = 16
    """Images that go through the model at once, of one or several requests."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    max_images: PositiveInt = 32
    """Most images of a request."""
    max_body_mib: PositiveInt = 32
    """Largest request in MiB."""
    max_megapixels: PositiveInt = 50
    """Largest image in millions of pixels."""
    max_requests: PositiveInt = 64
    """Requests that are worked on at once; further ones get 503."""
    timeout: PositiveFloat = 30.0
    """Seconds in which a request must have arrived."""
