"""``sat-vg serve MODEL``: answer requests over HTTP with a best_model.pt."""

from dataclasses import dataclass
from typing import Annotated

from sat_vg.backbone_finetuning.commands.command_line import main_of
from sat_vg.backbone_finetuning.configs.ranges import PositiveFloat, PositiveInt, Range

_DESCRIPTION = """\
Serve a best_model.pt over HTTP, on this machine alone unless --host says otherwise.

  start                %(prog)s best_model.pt
  in a browser         http://127.0.0.1:8000: drop an image on the page
  classes              curl -F images=@a.jpg -F images=@b.png http://127.0.0.1:8000/predict
  feature vectors      curl -F images=@a.jpg http://127.0.0.1:8000/embed
  state and limits     curl http://127.0.0.1:8000/health

Images that wait, of whichever request, go through the model together. Needs pip install 'sat_vg[serve]'. Ctrl-C or
SIGTERM end it, once the requests that it has begun are answered."""


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


main = main_of(
    "serve",
    ServeOptions,
    "serve",
    _DESCRIPTION,
    {"checkpoint": "MODEL"},
    extra=("fastapi", "uvicorn", "python_multipart"),
)
