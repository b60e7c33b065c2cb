"""HTML pages from the templates beside this module: single files that need no network and run no script.

Whatever comes from the data or a checkpoint (class names, paths, settings) is text to a page: jinja2 escapes it,
control characters are made visible, and a content security policy forbids everything but the page's own style sheet
and the pictures within it.
"""

import base64
import hashlib
import io
from pathlib import Path

import matplotlib
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from sat_vg.backbone_finetuning.utils.printable import counted, one_line

_TEMPLATES = Path(__file__).parent / "templates"
_LARGEST_SIDE = 288  # of an image on a page, in pixels


def percent(share: float, digits: int = 2) -> str:
    """A share of 1 as a number of hundredths."""
    return f"{100 * share:.{digits}f}"


def _as_text(value: object) -> object:
    return value if isinstance(value, Markup) else one_line(str(value))


_PAGES = Environment(
    loader=FileSystemLoader(_TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_as_text,
    trim_blocks=True,
    lstrip_blocks=True,
)
_PAGES.filters.update(percent=percent, counted=counted)


def render_page(template: str, templates: Path = _TEMPLATES, **values: object) -> str:
    """A page from a template, in the folder ``templates``, that extends ``page.html``.

    ``values`` are what it shows, the page's ``title`` among them. All is escaped, but for ``Markup``.
    """
    style = (_TEMPLATES / "style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    pages = _PAGES.overlay(loader=FileSystemLoader([templates, _TEMPLATES]))
    return pages.get_template(template).render(style=Markup(style), style_digest=digest, **values)


def figure_as_svg(figure: Figure) -> bytes:
    """A figure as SVG on transparent paper: texts as outlines, no date, so that the same figure is the same file."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "sat_vg"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return file.getvalue()


def figure_url(figure: Figure) -> Markup:
    """A figure as a ``data:`` URL. As an image of its own it cannot alter the page."""
    return _data_url(figure_as_svg(figure), "svg+xml")


def image_url(image: np.ndarray) -> Markup:
    """An image, uint8 ``[H, W, 3]``, as a JPEG in a ``data:`` URL."""
    picture = Image.fromarray(image)
    picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=88)
    return _data_url(file.getvalue(), "jpeg")


def picture_url(picture: Image.Image) -> Markup:
    """A drawn picture as a PNG in a ``data:`` URL."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return _data_url(file.getvalue(), "png")


def _data_url(content: bytes, kind: str) -> Markup:
    return Markup(f"data:image/{kind};base64,{base64.b64encode(content).decode()}")
