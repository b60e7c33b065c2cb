"""Files of features, written without ever holding more than a few megabytes of them.

``.npz``          members ``<column>``, ``paths``, ``labels``, ``class_names``, ``about`` (JSON); nothing pickled
``.safetensors``  tensors ``<column>``, ``labels``, ``paths`` (UTF-8, NUL between them); in the metadata ``about``
``.parquet``      columns ``path``, ``label`` and ``<column>`` (lists of one length, row-major); JSON in ``about``
"""

import io
import json
import math
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.json_reading import parse_json
from sat_vg.backbone_finetuning.utils.regular_files import open_regular
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write
from sat_vg.backbone_finetuning.utils.torch_archives import require_plain_zip

_CHUNK_BYTES = 2**24  # held at a time by pyarrow
_CHUNK_TEXTS = 2**14
_MAX_ABOUT_BYTES = 10**8  # the limit of safetensors itself


@dataclass(frozen=True)
class Features:
    """What a file of features holds."""

    # ``[N, …]`` each, by name; float32 or float16 (of windows also where they lie); mapped files are not held in
    # memory
    columns: Mapping[str, np.ndarray]
    paths: Sequence[str]  # N texts
    labels: Sequence[int] | None  # N indices into ``class_names``; None: not labelled
    class_names: Sequence[str]  # the classes of the images
    about: Mapping[str, Any]  # plain data for JSON; its ``identity`` is what ``identity_of`` gives


def require_format(path: Path) -> None:
    """Refuse a name whose ending is no known format, and a format whose library is missing.

    Raises:
        ConfigError: names the remedy.
    """
    if path.suffix not in _FORMATS:
        raise ConfigError(f"--out {str(path)!r}: its ending says the format; use {', '.join(_FORMATS)}")
    if path.suffix == ".parquet":
        try:
            import_module("pyarrow.parquet")
        except ImportError as error:
            raise ConfigError(
                f"--out {str(path)!r}: Parquet needs pyarrow: pip install 'sat_vg[parquet]', or use .npz"
            ) from error


def write_features(path: Path, features: Features) -> None:
    """Write a file of features in the format that its ending says; it appears whole or not at all.

    Raises:
        OSError: the folder cannot be written to or the disk is full.
    """
    with atomic_write(path) as file:
        _FORMATS[path.suffix][0](file, features)


def identity_of(path: Path) -> str | None:
    """By what an extraction knows its own finished file again; None for any other file."""
    try:
        with open_regular(path) as file:
            about = parse_json(_FORMATS[path.suffix][1](file))
        return str(about["identity"])
    except Exception:  # noqa: BLE001 - three libraries raise many kinds for foreign or damaged files
        return None


def reading_lines(path: Path, columns: Mapping[str, tuple[int, ...]], rows: int) -> list[str]:
    """Two lines of Python that read the file's first column and its paths."""
    place, (name, shape) = str(path), next(iter(columns.items()))
    variable = "vectors" if len(shape) == 1 else "maps"
    if path.suffix == ".npz":
        return [f"import numpy; data = numpy.load({place!r})", f"{variable}, paths = data[{name!r}], data['paths']"]
    if path.suffix == ".safetensors":
        return [
            f"from safetensors.numpy import load_file; data = load_file({place!r})",
            f"{variable}, paths = data[{name!r}], data['paths'].tobytes().decode().split('\\0')",
        ]
    numbers = f"table[{name!r}].combine_chunks().flatten().to_numpy()"
    return [
        f"import pyarrow.parquet; table = pyarrow.parquet.read_table({place!r})",
        f"{variable}, paths = {numbers}.reshape({[rows, *shape]}), table['path'].to_pylist()",
    ]


def _well_formed(text: str) -> str:
    """The text with bytes that are no UTF-8, as file names may hold, escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _write_npz(file: BinaryIO, features: Features) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in features.columns.items():
            _add_array(archive, name, array)
        _add_texts(archive, "paths", features.paths)
        if features.labels is not None:
            _add_array(archive, "labels", np.array(features.labels, np.int64))
            _add_texts(archive, "class_names", features.class_names)
        _add_array(archive, "about", np.array(json.dumps(features.about)))


def _open_member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    # A ZipInfo of our own has no time of day in it, so the same features are the same bytes.
    return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)


def _add_array(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    with _open_member(archive, name) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)  # holds 16 MiB at a time


def _add_texts(archive: zipfile.ZipFile, name: str, given: Sequence[str]) -> None:
    texts = list(map(_well_formed, given))
    dtype = np.dtype(f"<U{max(1, max(map(len, texts)))}")
    header = {"descr": dtype.str, "fortran_order": False, "shape": (len(texts),)}
    with _open_member(archive, name) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for start in range(0, len(texts), _CHUNK_TEXTS):
            member.write(np.array(texts[start : start + _CHUNK_TEXTS], dtype).tobytes())


def _about_npz(file: BinaryIO) -> str:
    if require_plain_zip(file)["about.npy"] > _MAX_ABOUT_BYTES:
        raise ValueError("too long")
    file.seek(0)
    with np.load(file, allow_pickle=False) as data:
        return str(data["about"])


def _write_safetensors(file: BinaryIO, features: Features) -> None:
    names = "\0".join(map(_well_formed, features.paths)).encode()
    labels = np.array([] if features.labels is None else features.labels, np.int64)
    # The widest numbers first, so that each tensor begins where its numbers are aligned.
    tensors: list[tuple[str, np.ndarray]] = [("labels", labels)] if len(labels) else []
    tensors += sorted(features.columns.items(), key=lambda column: -column[1].itemsize)
    tensors += [("paths", np.frombuffer(names, np.uint8))]
    kinds = {"int64": "I64", "float64": "F64", "float32": "F32", "float16": "F16", "uint8": "U8"}
    header: dict[str, Any] = {"__metadata__": {"about": json.dumps(features.about)}}
    end = 0
    for name, array in tensors:
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": kinds[array.dtype.name], "shape": array.shape, "data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for _, array in tensors:
        file.write(array.data)


def _about_safetensors(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > _MAX_ABOUT_BYTES:
        raise ValueError("too long")
    return str(parse_json(file.read(length))["__metadata__"]["about"])


def _write_parquet(file: BinaryIO, features: Features) -> None:
    arrow: Any = import_module("pyarrow")
    parquet: Any = import_module("pyarrow.parquet")
    kinds = {name: arrow.from_numpy_dtype(array.dtype) for name, array in features.columns.items()}
    widths = {name: math.prod(array.shape[1:]) for name, array in features.columns.items()}
    fields = [arrow.field("path", arrow.string())]
    if features.labels is not None:
        fields.append(arrow.field("label", arrow.dictionary(arrow.int32(), arrow.string())))
    fields += [arrow.field(name, arrow.list_(kinds[name], widths[name])) for name in features.columns]
    schema = arrow.schema(fields, metadata={"about": json.dumps(features.about)})
    classes = arrow.array([_well_formed(name) for name in features.class_names], arrow.string())
    step = max(1, _CHUNK_BYTES // max(1, sum(array.nbytes // len(array) for array in features.columns.values())))
    # A dictionary of the numbers, which are all different, would only cost memory.
    with parquet.ParquetWriter(file, schema, use_dictionary=["label"]) as writer:
        for start in range(0, len(features.paths), step):
            part = slice(start, start + step)
            columns = [arrow.array([_well_formed(path) for path in features.paths[part]], arrow.string())]
            if features.labels is not None:
                indices = arrow.array(features.labels[part], arrow.int32())
                columns.append(arrow.DictionaryArray.from_arrays(indices, classes))
            for name, array in features.columns.items():
                values = arrow.array(array[part].reshape(-1), kinds[name])
                columns.append(arrow.FixedSizeListArray.from_arrays(values, widths[name]))
            writer.write_batch(arrow.record_batch(columns, schema=schema), row_group_size=step)


def _about_parquet(file: BinaryIO) -> str:
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 8))
    (length,) = struct.unpack("<I4x", file.read())  # of what describes the columns and parts of the table
    if length > _MAX_ABOUT_BYTES:
        raise ValueError("too long")
    return str(import_module("pyarrow.parquet").read_schema(file).metadata[b"about"].decode())


# Ending → what writes a file, and what reads its ``about``.
_FORMATS: dict[str, tuple[Callable[[BinaryIO, Features], None], Callable[[BinaryIO], str]]] = {
    ".npz": (_write_npz, _about_npz),
    ".safetensors": (_write_safetensors, _about_safetensors),
    ".parquet": (_write_parquet, _about_parquet),
}
