"""``sat-vg serve MODEL``: answer requests over HTTP with a best_model.pt."""

from sat_vg.backbone_finetuning.commands.command_line import main_of

_DESCRIPTION = """\
Serve a best_model.pt over HTTP, on this machine alone unless --host says otherwise.

  start                %(prog)s best_model.pt
  in a browser         http://127.0.0.1:8000: drop an image on the page
  classes              curl -F images=@a.jpg -F images=@b.png http://127.0.0.1:8000/predict
  feature vectors      curl -F images=@a.jpg http://127.0.0.1:8000/embed
  state and limits     curl http://127.0.0.1:8000/health

Images that wait, of whichever request, go through the model together. Needs pip install 'sat_vg[serve]'. Ctrl-C or
SIGTERM end it, once the requests that it has begun are answered."""
main = main_of(
    "serve",
    "ServeOptions",
    "serve",
    _DESCRIPTION,
    {"checkpoint": "MODEL"},
    extra=("fastapi", "uvicorn", "python_multipart"),
)
