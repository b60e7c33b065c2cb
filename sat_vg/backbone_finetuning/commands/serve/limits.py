"""What a request may cost: its size, its time, how many there are at once, its files; and clients that hang."""

import asyncio
from typing import Any

import h11
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from sat_vg.backbone_finetuning.commands.serve.cli import ServeOptions

HOW = "send images as multipart/form-data, as in curl -F images=@a.jpg"
_MOST_FIELDS = 8  # that are no files


class RefusedRequest(Exception):
    """A request that is answered with an error of the client: HTTP's number and a sentence."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason

    def response(self) -> JSONResponse:
        """The answer; after 408 and 413 the rest of the request is not waited for."""
        headers = {408: {"Connection": "close"}, 503: {"Retry-After": "1"}}
        return JSONResponse({"error": self.reason}, self.status, headers.get(self.status))


class LimitedRequests:
    """Bounds the number of requests with a body, their size, and the time in which each must have arrived."""

    def __init__(self, app: ASGIApp, limits: ServeOptions) -> None:
        self._app, self._limits, self._running = app, limits, 0
        self._most_bytes = limits.max_body_mib * 2**20

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; see ASGI."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        refused = None
        if self._running >= self._limits.max_requests:
            refused = RefusedRequest(503, f"{self._running} requests are being answered; try again in a second")
        elif length.isdecimal() and int(length) > self._most_bytes:
            refused = self._too_large()
        if refused is not None:
            await refused.response()(scope, receive, send)
            return
        self._running += 1
        try:
            await self._app(scope, self._bounded(receive), send)
        finally:
            self._running -= 1

    def _too_large(self) -> RefusedRequest:
        return RefusedRequest(413, f"the request is too large: {self._limits.max_body_mib} MiB at most")

    def _bounded(self, receive: Receive) -> Receive:
        received, end = 0, asyncio.get_running_loop().time() + self._limits.timeout

        async def receive_bounded() -> Message:
            nonlocal received
            try:
                left = max(0.0, end - asyncio.get_running_loop().time())
                message = await asyncio.wait_for(receive(), left)
            except asyncio.TimeoutError:
                raise RefusedRequest(408, f"the request did not arrive within {self._limits.timeout:g} s") from None
            received += len(message.get("body", b""))
            if received > self._most_bytes:
                raise self._too_large()
            return message

        return receive_bounded


class ImpatientProtocol(H11Protocol):
    """HTTP of uvicorn that closes a connection on which no request is whole after ``seconds``.

    uvicorn itself waits for ever for a head that does not come, and for the rest of a body that was answered already.
    """

    seconds = 30.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """See ``asyncio.Protocol``."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        super().data_received(data)
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP as other errors are; where an answer has begun already, hang up alone."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            refused = RefusedRequest(400, "these bytes are no HTTP request").response()
            headers = [*refused.raw_headers, (b"connection", b"close")]
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=bytes(refused.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self._stop_timer()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        if self._is_answering():
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.seconds, self._hang_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _hang_up(self) -> None:
        self._timer = None
        if not self._is_answering():
            self.transport.close()


class _Form(MultiPartParser):
    """Knows whether the form ended with its last boundary; without it, the last file would be left out unsaid."""

    has_end = False

    def on_end(self) -> None:
        """See ``MultiPartParser``."""
        self.has_end = True


async def read_form(request: Request, most_files: int) -> tuple[FormData, list[UploadFile]]:
    """The form of a request, to be closed by the caller, and its files in their order.

    Raises RefusedRequest where it is no form, holds no file or too many, or is cut short.
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "multipart/form-data":
        raise RefusedRequest(400, f"the request holds no image; {HOW}")
    parser = _Form(request.headers, request.stream(), max_files=most_files, max_fields=_MOST_FIELDS)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RefusedRequest(400, f"{error.message.rstrip('.')}; {HOW}") from error
    except UnicodeError as error:
        raise RefusedRequest(400, f"the charset that Content-Type names cannot be read; {HOW}") from error
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if files and parser.has_end:
        return form, files
    await form.close()
    reason = "the request holds no image" if parser.has_end else "the form is cut short: its last boundary is missing"
    raise RefusedRequest(400, f"{reason}; {HOW}")
