"""The server: model → application → socket, until a signal ends it."""

import contextlib
import socket

import torch
import uvicorn

from sat_vg.backbone_finetuning.commands.serve.app import ServedModel, make_app
from sat_vg.backbone_finetuning.commands.serve.cli import ServeOptions
from sat_vg.backbone_finetuning.commands.serve.limits import ImpatientProtocol
from sat_vg.backbone_finetuning.commands.trained_models import load_model, model_file
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.precision import choose_device, choose_precision
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.stop_signals import StoppedBySignal
from sat_vg.backbone_finetuning.utils.terminal import say

_BACKLOG = 2048


def serve(options: ServeOptions) -> None:
    """Serve a model until SIGINT or SIGTERM; requests that have begun are answered first.

    Raises UserError where the checkpoint or a setting cannot be used, or the address cannot be listened at.
    """
    path = model_file(options.checkpoint)
    model = load_model(path)
    precision = choose_precision(choose_device(options.device), mixed_precision=False)
    precision.place_model(model)
    served = ServedModel(model, precision, options)
    size = model.preprocessing.image_size
    served.compute(torch.zeros(1, len(model.preprocessing.bands), size, size, dtype=torch.uint8))
    with contextlib.closing(_listen(options.host, options.port)) as listening:
        config = uvicorn.Config(
            make_app(served),
            http=type("Protocol", (ImpatientProtocol,), {"seconds": options.timeout}),
            ws="none",
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=max(1, round(options.timeout)),
        )
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        say(f"{path}: {model.backbone}, {counted(model.num_classes, 'class', 'classes')}, on {precision}")
        say(f"serving at http://{shown}:{port}: a page for images, /predict, /embed, /health; Ctrl-C ends it")
        with contextlib.suppress(StoppedBySignal):  # which uvicorn raises again once it has ended
            uvicorn.Server(config).run(sockets=[listening])
    say("ended; the requests that had begun were answered")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server((host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"--host {host} --port {port}: cannot be listened at ({reason}); choose another --port, or 0 for any"
        ) from error
