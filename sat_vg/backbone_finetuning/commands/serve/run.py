"""The server: model → application → socket, until a signal ends it."""

import contextlib
import socket

import torch
import uvicorn

from sat_vg.backbone_finetuning.commands.serve.app import ServedModel, make_app
from sat_vg.backbone_finetuning.commands.serve.limits import ImpatientProtocol, Limits
from sat_vg.backbone_finetuning.commands.serve.options import ServeOptions
from sat_vg.backbone_finetuning.commands.trained_models import load_model, model_file
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.precision import choose_device, choose_precision
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.stop_signals import StoppedBySignal
from sat_vg.backbone_finetuning.utils.terminal import say

_BACKLOG = 2048


def serve(options: ServeOptions) -> None:
    """Serve a model until SIGINT or SIGTERM; requests that have begun are answered first.

    Raises:
        UserError: the checkpoint or a setting cannot be used.
        ConfigError: the address cannot be listened at.
    """
    path = model_file(options.checkpoint)
    model = load_model(path)
    precision = choose_precision(choose_device(options.device), mixed_precision=False)
    precision.place_model(model)
    limits = Limits(
        images=options.max_images,
        body_bytes=options.max_body_mib * 2**20,
        pixels=options.max_megapixels * 10**6,
        requests=options.max_requests,
        seconds=options.timeout,
    )
    served = ServedModel(model, precision, limits, options.batch_size)
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
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
            listening.listen(_BACKLOG)
        except OSError:
            listening.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"--host {host} --port {port}: cannot be listened at ({reason}); choose another --port, or 0 for any"
        ) from error
    return listening
