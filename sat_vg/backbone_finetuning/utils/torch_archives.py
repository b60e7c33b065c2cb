"""Checks of a file of ``torch.save`` before any of it is loaded.

``torch.load(weights_only=True)`` runs no code, but it believes the sizes that a file names, unpacks compressed
entries and compares no checksums. Here a file is refused that is cut or altered, or that would take more memory than
it is long.
"""

import io
import math
import pickletools
import struct
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

_MAX_DIRECTORY = 64 * 2**20  # bytes of a zip's directory: some 500 000 tensors
_MAX_PICKLE = 256 * 2**20
_MAX_DEPTH = 100

_IS_ENCRYPTED = 0x1  # among the flags of an entry
_IS_FOLDER = 0x10  # among the attributes of an entry, as DOS has them

_ITEM_SIZES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1, "ComplexDoubleStorage": 16,
    "ComplexFloatStorage": 8, "UntypedStorage": 1,
}  # fmt: skip
_REBUILDERS = frozenset(f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3"))
# What plain checkpoints call. torch allows more, bytearray(10**12) among it.
_CALLED = _REBUILDERS | {
    "builtins.complex",
    "builtins.set",
    "__builtin__.complex",
    "__builtin__.set",
    "_codecs.encode",
    "collections.Counter",
    "collections.OrderedDict",
    "torch.Size",
    "torch.device",
    "torch.serialization._get_layout",
    "torch._tensor._rebuild_from_type_v2",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
}
_NAMED = frozenset({"torch.Tensor", "torch.nn.parameter.Parameter"})
NAMESPACE = "argparse.Namespace"  # holds the command line in many published checkpoints; nothing but named values
_VALUES = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "NONE", "NEWTRUE", "NEWFALSE", "BINUNICODE"),
    *("SHORT_BINSTRING", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"),
)
# The instructions that torch's own reader knows, and how many values each takes from the stack; None: to the mark.
_TAKES: dict[str, int | None] = {
    **dict.fromkeys([*_VALUES, "PROTO", "STOP", "GLOBAL", "BINGET", "LONG_BINGET", "EMPTY_TUPLE"], 0),
    **dict.fromkeys(["APPEND", "BUILD", "BINPERSID", "BINPUT", "LONG_BINPUT", "TUPLE1"], 1),
    **dict.fromkeys(["SETITEM", "REDUCE", "NEWOBJ", "TUPLE2"], 2),
    "TUPLE3": 3,
    **dict.fromkeys(["APPENDS", "SETITEMS", "TUPLE"]),
}


class RefusedFileError(Exception):
    """A file that asks for more than plain tensors need; the message says what it holds."""


class DamagedFileError(Exception):
    """A file that is cut short or altered; the message says where it shows."""


def require_sound(path: Path, with_namespace: bool = False) -> None:
    """Look through a file of ``torch.save``, of either of its formats, without loading it.

    Args:
        path: of the file.
        with_namespace: objects of the class ``argparse.Namespace`` are allowed.

    Raises:
        RefusedFileError: it holds Python objects, or declares more than it holds.
        DamagedFileError: a checksum or a length does not fit.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        if is_zip:
            _survey_zip(file, size, with_namespace)
        else:
            _survey_stream(file, size, with_namespace)


def require_plain_zip(file: BinaryIO) -> dict[str, int]:
    """Length of each entry of a zip archive, whose entries are stored as they are and no longer than the file.

    Raises:
        RefusedFileError: an entry is compressed, or claims more than the file holds.
        DamagedFileError: it is no zip archive.
    """
    size = file.seek(0, io.SEEK_END)
    _bound_directory(file, size)
    try:
        with zipfile.ZipFile(file) as archive:
            return _bound_entries(archive.infolist(), size)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise DamagedFileError(str(error)) from error


def _survey_zip(file: BinaryIO, size: int, with_namespace: bool) -> None:
    _bound_directory(file, size)
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if not any(name.endswith("data.pkl") for name in names):
                held = ", ".join(map(repr, names[:3])) + (" …" if len(names) > 3 else "")
                raise DamagedFileError(
                    f"it has no list of its tensors, but {held or 'nothing'}; if it is an archive of other files, "
                    "unpack it and name the one that is meant"
                )
            if any(name.endswith("/constants.pkl") for name in names):
                raise RefusedFileError("it holds a TorchScript program and not a state dict")
            lengths = _bound_entries(archive.infolist(), size)
            if (altered := archive.testzip()) is not None:
                raise DamagedFileError(f"Bad CRC-32 for file {altered!r}")
            pickles = [name for name in lengths if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise DamagedFileError("it has no list of its tensors")
            if lengths[pickles[0]] > _MAX_PICKLE:
                raise RefusedFileError(f"its list of tensors is {lengths[pickles[0]]} bytes long")
            listing = BytesIO(archive.read(pickles[0]))
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise DamagedFileError(str(error)) from error
    root = pickles[0].removesuffix("data.pkl")
    for key, declared in _Survey(size, with_namespace).run(listing).storages.items():
        stored = lengths.get(f"{root}data/{key}")
        if stored is None:
            raise DamagedFileError(f"the numbers of tensor {key!r} are not there")
        if declared > stored:
            raise RefusedFileError(f"tensor {key!r} claims {declared} bytes and has {stored}")


def _bound_directory(file: BinaryIO, size: int) -> None:
    """Refuse a directory so long that listing it would fill the memory."""
    file.seek(max(0, size - 98))  # a record of zip64 (56), where it is (20), and the record that ends the file (22)
    tail = file.read()
    if tail[-22:-18] != b"PK\x05\x06":
        raise DamagedFileError("its end is missing")
    length, begin = struct.unpack("<II", tail[-10:-2])
    is_zip64 = len(tail) == 98 and tail[:4] == b"PK\x06\x06"
    if is_zip64 and 0xFFFFFFFF in (length, begin):
        length, begin = struct.unpack("<QQ", tail[40:56])
    if begin + length != size - (98 if is_zip64 else 22):
        raise DamagedFileError("its directory is not where it should be")
    if length > _MAX_DIRECTORY:
        raise RefusedFileError(f"its directory is {length} bytes long")


def _bound_entries(entries: list[zipfile.ZipInfo], size: int) -> dict[str, int]:
    """Length by name; torch stores its entries as they are, so together they cannot be longer than the file."""
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise RefusedFileError(f"its entry {entry.filename!r} is compressed, which torch never does")
        if entry.flag_bits & _IS_ENCRYPTED:
            raise DamagedFileError(f"its entry {entry.filename!r} is marked as encrypted")
        if entry.is_dir() or entry.external_attr & _IS_FOLDER:  # torch reads nothing and leaves memory as it was
            raise DamagedFileError(f"its entry {entry.filename!r} is marked as a folder")
    lengths = {entry.filename: entry.file_size for entry in entries}
    if len(lengths) != len(entries):
        raise RefusedFileError("two of its entries have the same name")
    if sum(lengths.values()) > size:
        raise RefusedFileError(f"its entries claim {sum(lengths.values())} bytes, the file has {size}")
    return lengths


def _survey_stream(file: BinaryIO, size: int, with_namespace: bool) -> None:
    """The format before torch 1.6: pickles one after the other, then the numbers."""
    parts = ("magic number", "protocol", "machine", "content", "order of the tensors")
    declared = sum(sum(_Survey(size, with_namespace).run(file).storages.values()) for _ in parts)
    if declared > size:
        raise RefusedFileError(f"its tensors claim {declared} bytes, the file has {size}")


class _Tuple(NamedTuple):
    """A tuple, and how deep tuples are nested in it."""

    items: list[Any]
    depth: int


class _Survey:
    """Follows the instructions of a pickle without building anything: names stay texts, storages are item sizes.

    Args:
        file_size: what tensors may not exceed, in bytes.
        with_namespace: see ``require_sound``.

    Attributes:
        storages: bytes that the numbers of each tensor claim to take, by their key.
    """

    def __init__(self, file_size: int, with_namespace: bool) -> None:
        self.file_size = file_size
        self.with_namespace = with_namespace
        self.storages: dict[str, int] = {}

    def run(self, file: BinaryIO) -> "_Survey":
        """Read to the pickle's end.

        Raises:
            RefusedFileError: it names or declares what plain tensors do not need.
            DamagedFileError: it is no pickle.
        """
        stacks: list[list[Any]] = [[]]
        memo: dict[int, Any] = {}
        try:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "MARK":
                    stacks.append([])
                    continue
                count = _TAKES[opcode.name]
                taken = stacks.pop() if count is None else [stacks[-1].pop() for _ in range(count)][::-1]
                stacks[-1] += self._put(opcode.name, argument, taken, memo)
        except (ValueError, TypeError, AttributeError, LookupError, EOFError, OverflowError, MemoryError) as error:
            raise DamagedFileError(f"no list of tensors ({type(error).__name__} {error})".strip()) from error
        return self

    def _put(self, name: str, argument: Any, taken: list[Any], memo: dict[int, Any]) -> list[Any]:
        """What an instruction puts onto the stack for the values that it has taken."""
        if name.startswith("TUPLE") or name == "EMPTY_TUPLE":
            return [_tuple_of(taken)]
        if name == "GLOBAL":
            full = argument.replace(" ", ".", 1)
            return [full if full == NAMESPACE and self.with_namespace else _named(*argument.split(" ", 1))]
        if name == "NEWOBJ" and (taken[0] != NAMESPACE or taken[1].items):
            raise RefusedFileError(f"it builds an object of {taken[0]}")
        if name == "NEWOBJ":
            return [None]
        if name == "REDUCE":
            self._check_call(*taken)
            return [None]  # nothing depends on what a call gives
        if name == "BINPERSID":
            return [self._storage_of(taken[0])]
        if name.endswith("BINPUT"):
            memo[argument] = taken[0]
            return taken
        if name.endswith("BINGET"):
            return [memo[argument]]
        if argument == "__setstate__":  # as an attribute of a namespace it would be called with the next state
            raise RefusedFileError("it sets __setstate__")
        return [argument] if name in _VALUES else []

    def _check_call(self, function: str, arguments: Any) -> None:
        """Refuse a call that plain tensors do not need, or that makes a larger tensor than the file can hold."""
        name, given = function, arguments.items
        if name not in _CALLED:
            raise RefusedFileError(f"it calls {name}")
        if name == "_codecs.encode" and given[1:] != ["latin1"]:
            raise RefusedFileError(f"it encodes as {tuple(given[1:])}")
        if name in _REBUILDERS:
            item_size, shape = int(given[0]), tuple(map(int, given[2].items))
            if math.prod(shape) * item_size > self.file_size:
                raise RefusedFileError(f"a tensor of shape {shape} is larger than the file")

    def _storage_of(self, pid: _Tuple) -> int:
        """Note how long a tensor's numbers claim to be."""
        kind, storage, key, _, count = pid.items[:5]
        item_size = _ITEM_SIZES.get(storage.rpartition(".")[2])
        if kind != "storage" or item_size is None or not isinstance(count, int) or count < 0:
            raise RefusedFileError(f"it holds numbers of a kind that is not known here ({storage})")
        self.storages[str(key)] = max(self.storages.get(str(key), 0), count * item_size)
        return item_size


def _tuple_of(items: list[Any]) -> _Tuple:
    """A tuple, not nested too deep: hashing one that is nested a million times deep ends the process."""
    depth = 1 + max((item.depth for item in items if isinstance(item, _Tuple)), default=0)
    if depth > _MAX_DEPTH:
        raise RefusedFileError(f"its tuples are nested more than {_MAX_DEPTH} deep")
    return _Tuple(items, depth)


def _named(module: str, name: str) -> str:
    """The name of a class or function, if plain tensors need it; it is neither imported nor called."""
    full = f"{module}.{name}"
    is_storage = module in ("torch", "torch.storage", "torch.cuda") and name.endswith("Storage")
    is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
    if full not in _CALLED | _NAMED and not is_storage and not is_dtype:
        raise RefusedFileError(f"it holds the Python object {full}")
    return full
