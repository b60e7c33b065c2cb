"""The page of an evaluation: figures by kind of phrase and size of box, and boxes over images, worst first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.reports.pages import image_url, render_page

_MOST_PICTURES = 48
_SIDE = 288  # of a picture on the page, in pixels
FOUND, TRUE = (255, 64, 200), (90, 230, 90)


def page_of(content: Mapping[str, Any], worst: Sequence[Mapping[str, Any]]) -> str:
    """A self-contained HTML page.

    Args:
        content: of metrics.json.
        worst: rows of predictions.json, the lowest IoU first.
    """
    tables = {
        "Kind of phrase": content["by_phrase_family"],
        "Size of the box": content["by_box_size"],
        "Without the image": content["without_the_image"],
    }
    pictures = [(row, image_url(_with_boxes(row))) for row in worst[:_MOST_PICTURES]]
    return render_page(
        "grounding.html",
        templates=Path(__file__).parent / "templates",
        title="Grounding",
        sections=("Groups", "Worst"),
        content=content,
        tables={name: table for name, table in tables.items() if table},
        pictures=pictures,
    )


def _with_boxes(row: Mapping[str, Any]) -> np.ndarray:
    """The image with the predicted and the true box, uint8 ``[H, W, 3]``."""
    pixels = decode_rgb(row["image"]).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    scale = _SIDE / max(picture.size)
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    draw = ImageDraw.Draw(picture)
    for box, colour in ((row["target"], TRUE), (row["box"], FOUND)):
        draw.rectangle([side * scale for side in box], outline=colour, width=2)
    return np.asarray(picture)
