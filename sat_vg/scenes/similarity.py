"""``sat-vg search``: the entries of a file of vectors that are the most like an image, by cosine."""

import os
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
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError
from sat_vg.backbone_finetuning.utils.file_stamps import sha256_of
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
_MOST_SHOWN = 60  # pictures in it

Vectors = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Hit:
    """An entry of the index that is like the query."""

    path: str  # of the image or window
    similarity: float  # cosine of the two vectors, -1 to 1


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
    sheet, places = _targets(options)
    index = read_index(expand_home(options.index))
    query = _vector_of(options, index)
    best, similarity = nearest(index.vectors, query, options.top)
    hits = [Hit(index.paths[place], float(value)) for place, value in zip(best, similarity, strict=True)]
    say(f"{counted(len(index.paths), 'vector')} in {options.index}; the {len(hits)} most similar to {options.query}:")
    for rank, hit in enumerate(hits, 1):
        say(f"{rank:4d}  {hit.similarity:7.4f}  {one_line(hit.path)}")
    _write(sheet, places, options.query, hits)
    return hits


def _targets(options: SearchOptions) -> tuple[Path, Path]:
    """The sheet and the places to write.

    Raises:
        ConfigError: ``out`` is no name, or the sheet would be written over the query.
    """
    out = expand_home(options.out)
    if out.name in ("", ".."):
        raise ConfigError(f"--out {options.out!r}: give a name, such as --out hits, for hits.png and hits.geojson")
    sheet, places = (out.with_name(f"{out.name}.{ending}") for ending in ("png", "geojson"))
    if os.path.realpath(expand_home(options.query)) == os.path.realpath(sheet):
        raise ConfigError(f"--out {options.out!r}: {sheet.name!r} is the query; choose another name")
    return sheet, places


def read_index(path: Path) -> _Index:
    """The vectors, paths and metadata of a file of ``sat-vg extract``.

    Raises:
        DataError: it is none, or holds maps.
    """
    try:
        if path.suffix == ".parquet":
            table = import_module("pyarrow.parquet").read_table(path)
            about = parse_json(table.schema.metadata[b"about"])
            paths, numbers = table["path"].to_pylist(), table[_POOLED].combine_chunks().flatten().to_numpy()
            vectors = numbers.reshape(len(table), -1)
        else:
            with path.open("rb") as file:
                if file.read(2) != b"PK":  # NumPy takes it for a pickle, and advises to load it without care
                    raise ValueError("it is neither .npz nor .parquet")
            with np.load(path, allow_pickle=False) as data:
                paths, vectors, about = data["paths"].tolist(), data[_POOLED], parse_json(str(data["about"]))
        if not (vectors.ndim == 2 and vectors.dtype.kind == "f" and 0 < len(vectors) == len(paths)):
            raise ValueError(f"{len(paths)} paths, and vectors {vectors.dtype} {list(vectors.shape)}")
        if not (isinstance(about, dict) and all(isinstance(path, str) for path in paths)):
            raise ValueError("its paths or its metadata are none")
        return _Index(paths, vectors, about)
    except Exception as error:  # noqa: BLE001 - two libraries raise many kinds for foreign or damaged files
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"{str(path)!r} is no file of vectors ({one_line(reason)}); make it with sat-vg extract CHECKPOINT SCENE "
            "--size 256 --out index.npz"
        ) from None


def _vector_of(options: SearchOptions, index: _Index) -> Vectors:
    """The query's vector: the index's own where it names one of its entries, else computed by its model."""
    if options.query in index.paths:
        vector: Vectors = index.vectors[index.paths.index(options.query)]
        return vector
    path = model_file(options.checkpoint or str(index.about.get("checkpoint")))
    model = load_model(path)
    preprocessing = model.preprocessing
    weights = sha256_of(path).hexdigest()
    found = {"weights": weights, "backbone": model.backbone, "preprocessing": preprocessing.to_dict()}
    foreign = ConfigError(f"{str(path)!r} is not the model of {options.index!r}; name that one with --checkpoint")
    if any(index.about.get(name, value) != value for name, value in found.items()):  # early files have no weights
        raise foreign
    precision = choose_precision(choose_device(options.device), mixed_precision=False)
    precision.place_model(model)
    wanted = parse_window_path(options.query) or str(expand_home(options.query))
    pixels = preprocessing.geometry()(decoder_of(preprocessing).read(wanted))[None]
    with torch.inference_mode():
        images = precision.place_images(preprocessing.normalise(pixels.to(precision.device)))
        vector = model.forward_pooled(images).float().cpu().numpy()[0]
    if vector.shape != index.vectors.shape[1:]:
        raise foreign
    return vector


def nearest(vectors: Vectors, query: Vectors, top: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The places of the ``top`` of N vectors with the largest cosine to ``query``, and these cosines, falling.

    Exact: every vector is compared, of equal ones the first is taken. Above a million FAISS compares them. One
    without a direction (zero, or not finite) has the cosine 0.

    Raises:
        ConfigError: there are more than a million, and FAISS is not installed.
        DataError: the query's vector is zero or not finite.
    """
    with np.errstate(over="ignore"):
        size = float(np.linalg.norm(query.astype(np.float64)))
    if not np.isfinite(size) or size == 0:
        raise DataError("the query's vector has no direction (it is zero or not finite): nothing is like it")
    direction = (query / size).astype(np.float32)
    if len(vectors) > _MOST_EXACT:
        return _nearest_by_faiss(vectors, direction, top)
    cosines = np.empty(len(vectors), np.float64)
    for start in range(0, len(vectors), _AT_A_TIME):
        part = vectors[start : start + _AT_A_TIME]
        cosines[start : start + len(part)] = _directions(part) @ direction
    order = np.argsort(-cosines, kind="stable")[:top]
    return order, cosines[order]


def _directions(vectors: Vectors) -> NDArray[np.float32]:
    """Vectors of length 1 ``[N, D]``; zeros where one has no direction."""
    with np.errstate(all="ignore"):
        values = vectors.astype(np.float32)
        sizes = np.linalg.norm(values, axis=1, keepdims=True)
        return np.asarray(np.where(np.isfinite(sizes) & (sizes > 0), values / sizes, 0), np.float32)


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
        index.add(_directions(vectors[start : start + _AT_A_TIME]))
    cosines, places = index.search(direction[None], min(top, len(vectors)))
    return places[0].astype(np.intp), cosines[0].astype(np.float64)


def _write(sheet: Path, places: Path, query: str, hits: Sequence[Hit]) -> None:
    """A sheet of the query and its hits, and where these lie; that of an earlier search does not stay."""
    features = [feature for rank, hit in enumerate(hits, 1) if (feature := _feature(rank, hit)) is not None]
    shown = hits[:_MOST_SHOWN]
    pictures = [_picture(query), *(_picture(hit.path) for hit in shown)]
    titles = ["query", *(f"{rank}: {hit.similarity:.4f}" for rank, hit in enumerate(shown, 1))]
    with files_aside(sheet, [places]) as aside:
        write_sheet(aside[sheet], pictures, titles, f"most similar to {query}")
        if features:
            write_features(aside[places], features)
        else:
            places.unlink(missing_ok=True)
    few = f" with the first {len(shown)}" if len(shown) < len(hits) else ""
    where = f", {places}" if features else " (the entries are no windows, so they have no place)"
    say(f"written: {sheet}{few}{where}")


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
