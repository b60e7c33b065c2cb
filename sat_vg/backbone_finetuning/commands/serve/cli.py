"""``sat-vg serve MODEL``: answer requests over HTTP with a best_model.pt."""

from sat_vg.backbone_finetuning.configs.option_parser import parse_options
from sat_vg.backbone_finetuning.utils.exit_codes import run_command

_DESCRIPTION = """\
Serve a best_model.pt over HTTP, on this machine alone unless --host says otherwise.

  start                %(prog)s best_model.pt
  in a browser         http://127.0.0.1:8000: drop an image on the page
  classes              curl -F images=@a.jpg -F images=@b.png http://127.0.0.1:8000/predict
  feature vectors      curl -F images=@a.jpg http://127.0.0.1:8000/embed
  state and limits     curl http://127.0.0.1:8000/health

Images that wait, of whichever request, go through the model together. Needs pip install 'sat_vg[serve]'. Ctrl-C or
SIGTERM end it, once the requests that it has begun are answered."""


def main(arguments: list[str] | None = None, prog: str = "sat-vg serve") -> int:
    """Run the command; returns its exit code."""

    def action() -> None:
        from sat_vg.backbone_finetuning.commands.command_line import require_extra
        from sat_vg.backbone_finetuning.commands.serve.options import ServeOptions

        options = parse_options(ServeOptions, arguments, prog, _DESCRIPTION, {"checkpoint": "MODEL"})
        require_extra("serve", "fastapi", "uvicorn", "python_multipart")
        # Imported only now: torch takes seconds, and --help or a mistyped flag should be answered at once.
        from sat_vg.backbone_finetuning.commands.serve.run import serve

        serve(options)

    return run_command(action)
