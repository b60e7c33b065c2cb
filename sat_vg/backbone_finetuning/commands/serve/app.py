"""The application: what is answered under which path."""

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from torch import Tensor

from sat_vg import __version__
from sat_vg.backbone_finetuning.commands.predict.run import Answer, likeliest
from sat_vg.backbone_finetuning.commands.serve.batching import Batches
from sat_vg.backbone_finetuning.commands.serve.cli import ServeOptions
from sat_vg.backbone_finetuning.commands.serve.limits import HOW, LimitedRequests, RefusedRequest, read_form
from sat_vg.backbone_finetuning.data.reading.files import PathInArchive
from sat_vg.backbone_finetuning.data.reading.gdal import has_rasterio, with_gdal
from sat_vg.backbone_finetuning.data.reading.geo import decoder_of
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.probabilities import PROBABILITIES
from sat_vg.backbone_finetuning.utils.cores import usable_cores
from sat_vg.backbone_finetuning.utils.pil_pixels import PILLOW_ERRORS
from sat_vg.backbone_finetuning.utils.precision import Precision
from sat_vg.backbone_finetuning.utils.printable import one_line
from sat_vg.backbone_finetuning.utils.unreadable import Unreadable

PAGE = Path(__file__).parents[2] / "reports" / "templates" / "serve.html"
_LONGEST_NAME = 200
_POLICY = (
    "default-src 'none'; img-src blob: data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'"
)


class UploadedImage(PathInArchive):
    """An image that came with a request; a text, its name."""

    __slots__ = ("content",)
    content: bytes  # the bytes of its file

    def open(self) -> BinaryIO:
        """See ``PathInArchive``."""
        return io.BytesIO(self.content)


class ServedModel:
    """A model that answers for images as ``sat-vg predict`` and ``sat-vg extract`` do."""

    def __init__(self, model: FineTuneModel, precision: Precision, options: ServeOptions) -> None:
        self.model, self.limits = model.eval(), options
        self._precision = precision
        self._decoder, self._geometry = decoder_of(model.preprocessing), model.preprocessing.geometry()
        self._threads = ThreadPoolExecutor(usable_cores(), thread_name_prefix="read-images")
        self.batches = Batches(self.compute, options.batch_size)

    @torch.inference_mode()
    def compute(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``[B, C, H, W]``, not normalised → vectors ``[B, D]`` and probabilities ``[B, num_classes]``."""
        normalised = self.model.preprocessing.normalise(images.to(self._precision.device))
        vectors, logits = self.model.vectors_and_logits(self._precision.place_images(normalised))
        shares = PROBABILITIES[self.model.task](logits.float() / self.model.temperature)
        return vectors.float().cpu(), shares.cpu()

    async def answer(self, request: Request) -> list[tuple[str, Tensor, Tensor]]:
        """Name, vector ``[D]`` and probabilities ``[num_classes]`` of each image of a request.

        Raises RefusedRequest where it holds no images, too many, or one that cannot be read.
        """
        loop, images = asyncio.get_running_loop(), await self._images_of(request)
        pixels = await asyncio.gather(*(loop.run_in_executor(self._threads, self._read, image) for image in images))
        outputs = await asyncio.gather(*map(self.batches.outputs_of, pixels))
        if not all(shares.isfinite().all() for _, shares in outputs):
            raise RefusedRequest(500, "the model's probabilities are no numbers: its weights are broken")
        return [(str(image), *both) for image, both in zip(images, outputs, strict=True)]

    async def _images_of(self, request: Request) -> list[UploadedImage]:
        form, files = await read_form(request, self.limits.max_images)
        try:
            images = []
            for number, file in enumerate(files, start=1):
                image = UploadedImage(one_line(file.filename or f"image {number}")[:_LONGEST_NAME])
                image.content = await file.read()
                image.size = len(image.content)
                images.append(image)
            return images
        finally:
            await form.close()

    def _read(self, image: UploadedImage) -> Tensor:
        """The pixels as the model takes them."""
        width, height = _size_of(image)
        if width * height > self.limits.max_megapixels * 10**6:
            most = f"{self.limits.max_megapixels} million pixels at most"
            raise RefusedRequest(413, f"{image}: it is too large, {width} x {height} pixels; {most}")
        pixels = self._decoder.read_or_reason(image)
        if isinstance(pixels, str):
            raise RefusedRequest(422, f"{image}: it cannot be read: {pixels}")
        found: Tensor = self._geometry(pixels)
        return found

    def health(self) -> dict[str, Any]:
        """What is served, and its limits, as plain data."""
        model = self.model
        return {
            "status": "ok",
            "backbone": model.backbone,
            "task": model.task,
            "classes": list(model.class_names),
            "image_size": model.preprocessing.image_size,
            "device": str(self._precision),
            "max_images": self.limits.max_images,
            "max_body_mib": self.limits.max_body_mib,
            "max_megapixels": self.limits.max_megapixels,
            "version": __version__,
        }


def _size_of(image: UploadedImage) -> tuple[int, int]:
    """Width and height by the header; 0 where nothing understands it, of which the decoder says what is wrong."""
    try:
        with Image.open(image.open()) as opened:
            return int(opened.width), int(opened.height)
    except Image.DecompressionBombError as error:
        raise RefusedRequest(413, f"{image}: it is too large ({error})") from None
    except PILLOW_ERRORS:  # GeoTIFFs of several bands among them
        if has_rasterio():
            with contextlib.suppress(Unreadable):
                return with_gdal(image.open(), lambda source, _: (int(source.width), int(source.height)))
    return 0, 0


def make_app(served: ServedModel) -> FastAPI:
    """The application of a model."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(served.batches.run())
        yield
        running.cancel()

    # A client that does not follow redirects would get an empty answer from /predict/.
    app = FastAPI(
        title="sat_vg", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.add_middleware(LimitedRequests, limits=served.limits)

    @app.head("/")
    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": _POLICY})

    @app.head("/health")  # which some proxies ask for
    @app.get("/health")
    async def health() -> dict[str, Any]:
        return served.health()

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        top = _top_of(request.query_params.get("top"))
        found = await served.answer(request)
        is_multi_label = served.model.task == "multi_label"
        answers = [
            Answer(name, classes=likeliest(served.model, shares, top), is_multi_label=is_multi_label)
            for name, _, shares in found
        ]
        return {"predictions": [answer.to_dict() for answer in answers]}

    @app.post("/embed")
    async def embed(request: Request) -> dict[str, Any]:
        found = await served.answer(request)
        return {"embeddings": [{"path": name, "embedding": vector.tolist()} for name, vector, _ in found]}

    _explain_errors(app)
    return app


def _top_of(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and int(text[:9]) > 0):
        raise RefusedRequest(400, f"top = {text[:20]!r}: must be a whole number of 1 or more; for example 3")
    return int(text[:9])


def _explain_errors(app: FastAPI) -> None:
    """Let every error be a JSON object with a sentence."""

    @app.exception_handler(RefusedRequest)
    async def refused(request: Request, error: RefusedRequest) -> Response:
        return error.response()

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        reasons = {404: "there is no such path", 405: "this path takes another method"}
        reason = reasons.get(error.status_code, f"{str(error.detail).rstrip('.')}; {HOW}")
        paths: Sequence[str] = ("GET /", "GET /health", "POST /predict", "POST /embed")
        listed = f"; there are {', '.join(paths)}" if error.status_code in reasons else ""
        return JSONResponse({"error": reason + listed}, error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody reads it

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": f"the server failed ({type(error).__name__}); its log says why"}, 500)
