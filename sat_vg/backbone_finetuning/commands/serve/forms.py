"""The files of a request that is a form (``multipart/form-data``)."""

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from sat_vg.backbone_finetuning.commands.serve.limits import RefusedRequest

HOW = "send images as multipart/form-data, as in curl -F images=@a.jpg"
_MOST_FIELDS = 8  # that are no files


class _Form(MultiPartParser):
    """Knows whether the form ended with its last boundary; without it, the last file would be left out unsaid."""

    has_end = False

    def on_end(self) -> None:
        """See ``MultiPartParser``."""
        self.has_end = True


async def read_form(request: Request, most_files: int) -> tuple[FormData, list[UploadFile]]:
    """The form of a request, to be closed by the caller, and its files in their order.

    Raises:
        RefusedRequest: it is no form, holds no file or too many, or is cut short.
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
