"""The files that TensorBoard's projector reads: vectors, what they belong to, and thumbnails."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sat_vg.backbone_finetuning.utils.printable import one_line
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write, write_text

CONFIG = "projector_config.pbtxt"  # the name that TensorBoard looks for
FOLDER = "projector"


@dataclass(frozen=True)
class Embedding:
    """Vectors of images."""

    name: str  # of the embedding; plain letters
    vectors: np.ndarray  # ``[N, D]``
    columns: Mapping[str, Sequence[str]]  # what is known of each image, by the column's name; N texts each
    thumbnails: np.ndarray  # uint8 ``[N, S, S, 3]``


def write_projector(log_dir: Path, embedding: Embedding) -> None:
    """Write an embedding in place of an earlier one; each file appears whole, that which names the others at last."""
    folder = log_dir / FOLDER
    rows = zip(*embedding.columns.values(), strict=True)
    header = "\t".join(embedding.columns)  # of one column alone TensorBoard would take it for a value
    table = "".join("\t".join(map(one_line, row)) + "\n" for row in rows)
    write_text(folder / "metadata.tsv", table if len(embedding.columns) == 1 else f"{header}\n{table}")
    lines = ("\t".join(f"{value:.5g}" for value in vector) for vector in embedding.vectors.tolist())
    write_text(folder / "tensors.tsv", "\n".join(lines) + "\n")
    with atomic_write(folder / "sprite.png") as file:
        file.write(_sprite(embedding.thumbnails))
    side = embedding.thumbnails.shape[1]
    write_text(
        log_dir / CONFIG,
        f"""embeddings {{
  tensor_name: "{embedding.name}"
  tensor_path: "{FOLDER}/tensors.tsv"
  metadata_path: "{FOLDER}/metadata.tsv"
  sprite {{
    image_path: "{FOLDER}/sprite.png"
    single_image_dim: {side}
    single_image_dim: {side}
  }}
}}
""",
    )


def principal_components(vectors: np.ndarray, count: int) -> np.ndarray:
    """Vectors ``[N, D]`` in the directions in which they differ most, ``[N, count]``, or fewer if there are.

    By the eigenvectors of the smaller of both products; without random numbers.
    """
    centred: np.ndarray = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    if vectors.shape[1] <= count:
        return centred
    if len(vectors) < vectors.shape[1]:
        squares, directions = np.linalg.eigh(centred @ centred.T)
        found = directions * np.sqrt(squares.clip(0))
    else:
        found = centred @ np.linalg.eigh(centred.T @ centred)[1]
    largest_first: np.ndarray = found[:, ::-1][:, :count]
    return largest_first


def _sprite(thumbnails: np.ndarray) -> bytes:
    """All thumbnails row by row as one PNG, which is square, as the projector wants it."""
    count, side = thumbnails.shape[:2]
    places = math.ceil(math.sqrt(count))
    sheet = np.zeros((places * places, side, side, 3), np.uint8)
    sheet[:count] = thumbnails
    pixels = sheet.reshape(places, places, side, side, 3).swapaxes(1, 2).reshape(places * side, places * side, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
