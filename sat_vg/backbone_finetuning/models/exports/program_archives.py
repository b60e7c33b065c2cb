"""A look through files of ``torch.export`` before torch loads them.

Loading such a file can run code: its expressions are evaluated as Python, its operators are looked up by name, and
its pickles are trusted. So only what a plain network needs is let through: tensors as raw numbers, operators of aten,
arithmetic on sizes. Anything else is refused, unread by torch.
"""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from torch.utils._sympy import functions

from sat_vg.backbone_finetuning.utils.errors import CheckpointError

_MAX_GRAPH = 256 << 20  # bytes; that of the largest network here is far below a tenth of it
_ENTRY = re.compile(
    r"[^/]+/(data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|models/model\.json|extra/sat_vg\.json"
    r"|archive_format|archive_version|byteorder|version|\.data/(version|serialization_id))"
)
_OPERATOR = re.compile(r"torch\.ops\.aten\.\w+\.\w+|_operator\.\w+|torch\.sym_\w+|math\.(ceil|floor|trunc)")
_ARGUMENT = re.compile(
    r"as_(none|name|expr|(nested_|optional_)?tensors?|sym_(int|float|bool)s?|int(_list)?s?|int_lists|floats?|bools?"
    r"|strings?|scalar_type|memory_format|layout|device|complex)"
)
_KINDS = {"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
_NAMED_KIND = re.compile(r'\\*"type\\*": *\\*"([^"\\]*)')
# Arithmetic on sizes, as sympy and as Python write it.
_WORDS = {
    *functions.__all__,
    *("Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Max", "Min", "Mod", "positive", "integer"),
    *("nonnegative", "True", "False", "Equality", "Unequality", "StrictLessThan", "LessThan", "GreaterThan"),
    *("StrictGreaterThan", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not"),
    *("L", "images", "size", "torch", "sym_max", "sym_min", "and", "or", "not"),
}
_SYMBOL = re.compile(r"[a-z]{1,3}\d+")
_WORD = re.compile(r"[^\W\d]\w*")
_PLAIN = re.compile(r"[\w\s()\[\],.'=!<>+*/%-]*", re.ASCII)


def require_program(path: Path) -> None:
    """Look through a ``.pt2`` without loading it.

    Raises:
        CheckpointError: it is cut short, altered, or holds more than a plain network.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _require_whole(archive, path.stat().st_size)
            _require_plain(archive)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{str(path)!r} cannot be read: {error}. The file is cut short, altered, or no program of torch.export; "
            "export it again"
        ) from error
    except (_Refused, ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{str(path)!r} was not loaded: {error}. It is no .pt2 that sat-vg export has written, and a foreign one "
            "could run code"
        ) from error


class _Refused(Exception):
    """What was found that no plain network needs."""


def _require_whole(archive: zipfile.ZipFile, file_size: int) -> None:
    """Refuse parts of unknown names, ones that overlap or are compressed, and ones whose checksum does not fit."""
    entries = archive.infolist()
    for entry in entries:
        if not _ENTRY.fullmatch(entry.filename):
            raise _Refused(f"it has a part {entry.filename!r}")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise _Refused(f"its part {entry.filename!r} is compressed")
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names) or sum(entry.file_size for entry in entries) > file_size:
        raise _Refused("its parts overlap")
    damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the checksum of {damaged!r} does not fit")


def _require_plain(archive: zipfile.ZipFile) -> None:
    """Refuse pickles, and graphs that name or evaluate more than a network needs."""
    parts = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
    if "models/model.json" not in parts:
        raise _Refused("it has no graph")
    inputs = parts.get("data/sample_inputs/model.pt")
    if inputs is not None and inputs.file_size:
        raise _Refused("it has example inputs, which are pickles")
    for kind in ("weights", "constants"):
        config = json.loads(archive.read(parts[f"data/{kind}/model_{kind}_config.json"]))["config"]
        if any(one["use_pickle"] is not False for one in config.values()):
            raise _Refused(f"some of its {kind} are pickles")
    if parts["models/model.json"].file_size > _MAX_GRAPH:
        raise _Refused("its graph is too large")
    _look_through(json.loads(archive.read(parts["models/model.json"])))


def _look_through(graph: dict[str, Any]) -> None:
    """Refuse what is evaluated, looked up or unpickled, unless it is plainly harmless."""
    todo: list[tuple[str, Any]] = [("", graph)]
    while todo:
        key, value = todo.pop()
        if key.startswith("as_") and not _ARGUMENT.fullmatch(key):
            raise _Refused(f"its graph has an argument of the kind {key!r}")
        if key in ("metadata", "treespec_namedtuple_fields", "custom_obj_values") and value:
            raise _Refused(f"its graph has {key}")
        if isinstance(value, dict):
            todo += value.items()
        elif isinstance(value, list):
            todo += [(key, item) for item in value]
        elif isinstance(value, str):
            _require_harmless(key, value)
    for symbol in graph["range_constraints"]:
        _require_arithmetic(symbol)


def _require_harmless(key: str, text: str) -> None:
    if key == "target" and text and not _OPERATOR.fullmatch(text):
        raise _Refused(f"its graph calls {text!r}")
    if key in ("expr_str", "guards_code"):
        _require_arithmetic(text)
    if key in ("in_spec", "out_spec"):
        unknown = set(_NAMED_KIND.findall(text)) - _KINDS
        if unknown:
            raise _Refused(f"its inputs or outputs are of the kind {sorted(unknown)[0]!r}")


def _require_arithmetic(text: str) -> None:
    words = set(_WORD.findall(text)) - _WORDS
    foreign = [word for word in words if not _SYMBOL.fullmatch(word)]
    if foreign or "**" in text or not _PLAIN.fullmatch(text):
        raise _Refused(f"its graph evaluates {text[:80]!r}")
