"""``sat-vg search``: the entries of a file of vectors that are the most like an image, by cosine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sat_vg.backbone_finetuning.commands.trained_models import load_model, model_file
from sat_vg.backbone_finetuning.data.reading.decoding import RGB_DECODER
from sat_vg.backbone_finetuning.data.reading.geo import decoder_of
from sat_vg.backbone_finetuning.data.windows.opened import open_scene
from sat_vg.backbone_finetuning.data.windows.paths import parse_window_path
from sat_vg.backbone_finetuning.data.windows.places import corners_of
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError, WriteError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.json_reading import parse_json
from sat_vg.backbone_finetuning.utils.precision import choose_device, choose_precision
from sat_vg.backbone_finetuning.utils.printable import counted, one_line
from sat_vg.backbone_finetuning.utils.terminal import say
from sat_vg.scenes.geojson import LONGITUDES, feature_of, write_features
from sat_vg.scenes.options import SearchOptions
from sat_vg.scenes.preview import picture_of, write_sheet
from sat_vg.scenes.rasters import files_aside

_POOLED = "pooled"
_MOST_EXACT = 1_000_000
_AT_A_TIME = 65_536
_SHOWN = 128  # pixels of a picture in the sheet

Vectors = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Hit:
    """An entry of the index that is like the query.

    Attributes:
        path: of the image or window.
        similarity: cosine of the two vectors, -1 to 1.
    """

    path: str
    similarity: float


@dataclass(frozen=True)
class _Index:
    paths: list[str]
    vectors: Vectors
    about: Mapping[str, Any]


def search_index(options: SearchOptions) -> list[Hit]:
    """Find, print, draw and write the most similar entries, the most similar first.

    Raises:
        DataError: the index or the query cannot be read.
        ConfigError: the vectors are of another model, or a library is missing.
        WriteError: there is no room.
    """
    index = read_index(expand_home(options.index))
    query = _vector_of(options, index)
    best, similarity = nearest(index.vectors, query, options.top)
    hits = [Hit(index.paths[place], float(value)) for place, value in zip(best, similarity, strict=True)]
    say(f"{counted(len(index.paths), 'vector')} in {options.index}; the {len(hits)} most similar to {options.query}:")
    for rank, hit in enumerate(hits, 1):
        say(f"{rank:4d}  {hit.similarity:7.4f}  {one_line(hit.path)}")
    _write(options, hits)
    return hits


def read_index(path: Path) -> _Index:
    """The vectors, paths and metadata of a file of ``sat-vg extract``.

    Raises:
        DataError: it is none, or holds maps.
    """
    try:
        if path.suffix == ".parquet":
            table = import_module("pyarrow.parquet").read_table(path)
            about = parse_json(table.schema.metadata[b"about"])
            numbers = table[_POOLED].combine_chunks().flatten().to_numpy()
            return _Index(table["path"].to_pylist(), numbers.reshape(len(table), -1), about)
        with np.load(path, allow_pickle=False) as data:
            return _Index(data["paths"].tolist(), data[_POOLED], parse_json(str(data["about"])))
    except Exception as error:  # noqa: BLE001 - two libraries raise many kinds for foreign or damaged files
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"{str(path)!r} is no file of vectors ({one_line(reason)}); make it with sat-vg extract CHECKPOINT SCENE "
            "--size 256 --out index.npz"
        ) from None


def _vector_of(options: SearchOptions, index: _Index) -> Vectors:
    """The query's vector: the index's own where it names one of its entries, else computed by its model."""
    if options.query in index.paths:
        vector: Vectors = index.vectors[index.paths.index(options.query)].astype(np.float32)
        return vector
    named = options.checkpoint or str(index.about.get("checkpoint"))
    path = model_file(named)
    model = load_model(path)
    if model.preprocessing.to_dict() != index.about.get("preprocessing") or model.backbone != index.about.get(
        "backbone"
    ):
        raise ConfigError(f"{str(path)!r} is not the model of {options.index!r}; name that one with --checkpoint")
    precision = choose_precision(choose_device(options.device), mixed_precision=False)
    precision.place_model(model)
    wanted = parse_window_path(options.query) or str(expand_home(options.query))
    pixels = model.preprocessing.geometry()(decoder_of(model.preprocessing).read(wanted))[None]
    with torch.inference_mode():
        images = precision.place_images(model.preprocessing.normalise(pixels.to(precision.device)))
        found: Vectors = model.forward_pooled(images).float().cpu().numpy()[0]
    if found.shape != index.vectors.shape[1:]:
        raise ConfigError(f"{str(path)!r} is not the model of {options.index!r}; name that one with --checkpoint")
    return found


def nearest(vectors: Vectors, query: Vectors, top: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The places of the ``top`` vectors with the largest cosine to ``query``, and these cosines, in falling order.

    Exact: every vector is compared, of equal ones the first is taken. Above a million FAISS compares them.

    Args:
        vectors: ``[N, D]``.
        query: ``[D]``.
        top: how many, at most N.

    Raises:
        ConfigError: there are more than a million, and FAISS is not installed.
        DataError: the query's vector is zero or not finite.
    """
    size = float(np.linalg.norm(query.astype(np.float64)))
    if not np.isfinite(size) or size == 0:
        raise DataError("the query's vector has no direction (it is zero or not finite): nothing is like it")
    direction = (query / size).astype(np.float32)
    if len(vectors) > _MOST_EXACT:
        return _nearest_by_faiss(vectors, direction, top)
    cosines = np.empty(len(vectors), np.float64)
    for start in range(0, len(vectors), _AT_A_TIME):
        part = vectors[start : start + _AT_A_TIME].astype(np.float32)
        sizes = np.linalg.norm(part, axis=1)
        cosines[start : start + len(part)] = (part @ direction) / np.where(sizes > 0, sizes, np.inf)
    order = np.argsort(-cosines, kind="stable")[:top]
    return order, cosines[order]


def _nearest_by_faiss(vectors: Vectors, direction: Vectors, top: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    try:
        faiss = import_module("faiss")
    except ImportError:
        raise ConfigError(
            f"{len(vectors):,} vectors are more than NumPy compares in a moment; install FAISS: pip install "
            "'sat_vg[search]'"
        ) from None
    index = faiss.IndexFlatIP(vectors.shape[1])
    for start in range(0, len(vectors), _AT_A_TIME):
        part = np.ascontiguousarray(vectors[start : start + _AT_A_TIME], np.float32)
        faiss.normalize_L2(part)
        index.add(part)
    cosines, places = index.search(direction[None], min(top, len(vectors)))
    return places[0].astype(np.intp), cosines[0].astype(np.float64)


def _write(options: SearchOptions, hits: Sequence[Hit]) -> None:
    """A sheet of the query and its hits, and where these lie."""
    out = expand_home(options.out)
    sheet, places = out.with_name(f"{out.name}.png"), out.with_name(f"{out.name}.geojson")
    features = [feature for rank, hit in enumerate(hits, 1) if (feature := _feature(rank, hit)) is not None]
    pictures = [_picture(options.query), *(_picture(hit.path) for hit in hits)]
    titles = ["query", *(f"{rank}: {hit.similarity:.4f}" for rank, hit in enumerate(hits, 1))]
    try:
        with files_aside(sheet, [places]) as aside:
            write_sheet(aside[sheet], pictures, titles, f"most similar to {options.query}")
            if features:
                write_features(aside[places], features)
    except OSError as error:
        raise WriteError(f"{str(sheet)!r} cannot be written ({error.strerror or error}); make room there") from error
    say(f"written: {sheet}" + (f", {places}" if features else " (the entries are no windows, so they have no place)"))


def _feature(rank: int, hit: Hit) -> dict[str, Any] | None:
    window = parse_window_path(hit.path)
    if window is None:
        return None
    scene = open_scene(window.scene)
    corners = corners_of(scene, window.window)
    outline: Any = {"type": "Polygon", "coordinates": [[*corners.tolist(), corners[0].tolist()]]}
    if scene.crs is not None:
        outline = import_module("rasterio.warp").transform_geom(scene.crs, LONGITUDES, outline)
    properties = {"rank": rank, "similarity": round(hit.similarity, 6), "path": hit.path}
    return feature_of(outline, properties)


def _picture(path: str) -> NDArray[np.uint8]:
    """An entry as colours; grey where it cannot be shown."""
    window = parse_window_path(path)
    try:
        if window is not None:
            return picture_of(open_scene(window.scene), window.window, _SHOWN)
        pixels = RGB_DECODER.read_or_reason(str(expand_home(path)))
        if not isinstance(pixels, str):
            step = max(1, max(pixels.shape[1:]) // _SHOWN)
            return np.ascontiguousarray(pixels[:, ::step, ::step].permute(1, 2, 0).numpy())
        scene = open_scene(str(expand_home(path)))
        return picture_of(scene, scene.whole, _SHOWN)
    except DataError:
        return np.full((_SHOWN, _SHOWN, 3), 128, np.uint8)
