"""What a file of ``torch.save`` declares, looked at before any of it is loaded.

``torch.load(weights_only=True)`` runs no code, but it believes the sizes that a file names, unpacks compressed
entries and does not look at checksums. Here a file is refused that is cut or altered, or that would take more memory
than it is long.
"""

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch

_MAX_DIRECTORY = 64 * 2**20  # bytes of a zip's directory: some 500 000 tensors
_MAX_PICKLE = 256 * 2**20
_MAX_DEPTH = 100
_CHUNK = 4 * 2**20

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
# The instructions that torch's own reader knows.
_INSTRUCTIONS = (
    b"c R b a e s u ( t \x85 \x86 \x87 N \x89 \x88 ) ] } \x8f J K M G X U Q h j q r \x8a \x80 .".split()
)  # fmt: skip


class RefusedFileError(Exception):
    """A file that asks for more than plain tensors need; the message says what it holds."""


class DamagedFileError(Exception):
    """A file that is cut short or altered; the message says where it shows."""


def require_sound(path: Path) -> None:
    """Look through a file of ``torch.save``, of either of its formats, without loading it.

    Raises:
        RefusedFileError: it holds Python objects, or declares more than it holds.
        DamagedFileError: a checksum or a length does not fit.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        if is_zip:
            _survey_zip(file, size)
        else:
            _survey_stream(file, size)


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


def _survey_zip(file: BinaryIO, size: int) -> None:
    _bound_directory(file, size)
    try:
        with zipfile.ZipFile(file) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise RefusedFileError("it holds a TorchScript program and not a state dict")
            _require_tensors(archive.namelist())
            lengths = _bound_entries(archive.infolist(), size)
            for name in lengths:
                with archive.open(name) as entry:
                    while entry.read(_CHUNK):  # at its end the checksum is compared
                        pass
            pickles = [name for name in lengths if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise DamagedFileError("it has no list of its tensors")
            if lengths[pickles[0]] > _MAX_PICKLE:
                raise RefusedFileError(f"its list of tensors is {lengths[pickles[0]]} bytes long")
            survey = _Survey(BytesIO(archive.read(pickles[0])), size)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise DamagedFileError(str(error)) from error
    survey.run()
    root = pickles[0].removesuffix("data.pkl")
    for key, declared in survey.storages.items():
        held = lengths.get(f"{root}data/{key}")
        if held is None:
            raise DamagedFileError(f"the numbers of tensor {key!r} are not there")
        if declared > held:
            raise RefusedFileError(f"tensor {key!r} claims {declared} bytes and has {held}")


def _require_tensors(names: list[str]) -> None:
    """Tell an archive of other files, such as the images of a data set, from one of tensors."""
    if not any(name.endswith("data.pkl") for name in names):
        held = ", ".join(map(repr, names[:3])) + (" …" if len(names) > 3 else "")
        raise DamagedFileError(
            f"it has no list of its tensors, but {held or 'nothing'}; if it is an archive of other files, unpack it "
            "and name the one that is meant"
        )


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
    lengths = {entry.filename: entry.file_size for entry in entries}
    if len(lengths) != len(entries):
        raise RefusedFileError("two of its entries have the same name")
    if sum(lengths.values()) > size:
        raise RefusedFileError(f"its entries claim {sum(lengths.values())} bytes, the file has {size}")
    return lengths


def _survey_stream(file: BinaryIO, size: int) -> None:
    """The format before torch 1.6: pickles one after the other, then the numbers."""
    declared = 0
    for _ in ("magic number", "protocol", "machine", "content", "order of the tensors"):
        survey = _Survey(file, size)
        survey.run()
        declared += sum(survey.storages.values())
    if declared > size:
        raise RefusedFileError(f"its tensors claim {declared} bytes, the file has {size}")


class _Inert:
    """Stands in for an object that a pickle builds; whatever is done to it does nothing."""

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Storage:
    """Stands in for the numbers of a tensor."""

    def __init__(self, item_size: int) -> None:
        self.item_size = item_size


class _Name:
    """Stands in for a class or function that a pickle names."""

    def __init__(self, name: str, file_size: int) -> None:
        self.name, self.file_size = name, file_size

    def __call__(self, *arguments: Any) -> _Inert:
        if self.name not in _CALLED:
            raise RefusedFileError(f"it calls {self.name}")
        if self.name == "_codecs.encode" and arguments[1:] != ("latin1",):
            raise RefusedFileError(f"it encodes as {arguments[1:]}")
        if self.name in _REBUILDERS:
            storage, _, shape = arguments[:3]
            if math.prod(shape) * storage.item_size > self.file_size:
                raise RefusedFileError(f"a tensor of shape {tuple(shape)} is larger than the file")
        return _Inert()


class _Survey(pickle._Unpickler):
    """Reads a pickle with inert objects in place of all it names.

    Attributes:
        storages: bytes that each storage claims, by its key.
    """

    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]]

    def __init__(self, file: BinaryIO | BytesIO, file_size: int) -> None:
        super().__init__(file, encoding="bytes")  # Python 2 wrote names as bytes
        self.file_size = file_size
        self.storages: dict[str, int] = {}
        self._depths: dict[int, int] = {}
        self._tuples: list[tuple[Any, ...]] = []  # kept, so that no id is given twice

    def run(self) -> Any:
        """Read to the pickle's end.

        Raises:
            RefusedFileError: it names or declares what plain tensors do not need.
            DamagedFileError: it is no pickle.
        """
        try:
            return self.load()
        except (RefusedFileError, RecursionError):
            raise
        except (pickle.UnpicklingError, EOFError, KeyError, IndexError, struct.error, UnicodeDecodeError) as error:
            raise DamagedFileError(f"no list of tensors ({type(error).__name__} {error})".strip()) from error
        except (TypeError, ValueError, AttributeError, OverflowError, MemoryError) as error:
            raise DamagedFileError(f"no list of tensors ({error})") from error

    def find_class(self, module: str, name: str) -> Any:
        """An inert name, if plain tensors need it."""
        full = f"{module}.{name}"
        is_storage = module in ("torch", "torch.storage", "torch.cuda") and name.endswith("Storage")
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if full not in _CALLED | _NAMED and not is_storage and not is_dtype:
            raise RefusedFileError(f"it holds the Python object {full}")
        return _Name(full, self.file_size)

    def persistent_load(self, pid: Any) -> _Storage:
        """Note how long a tensor's numbers claim to be."""
        kind, storage, key, _, count = pid[:5]
        item_size = _ITEM_SIZES.get(storage.name.rpartition(".")[2])
        if kind not in ("storage", b"storage") or item_size is None or not isinstance(count, int) or count < 0:
            raise RefusedFileError(f"it holds numbers of a kind that is not known here ({storage.name})")
        self.storages[str(key)] = max(self.storages.get(str(key), 0), count * item_size)
        return _Storage(item_size)

    def note_tuple(self) -> None:
        """Bound how deep tuples nest: hashing one that is nested a million times deep ends the process."""
        made = self.stack[-1]
        depth = 1 + max((self._depths.get(id(item), 0) for item in made if isinstance(item, tuple)), default=0)
        if depth > _MAX_DEPTH:
            raise RefusedFileError(f"its tuples are nested more than {_MAX_DEPTH} deep")
        self._depths[id(made)] = depth
        self._tuples.append(made)


def _noting(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def load_and_note(survey: _Survey) -> None:
        load(survey)
        survey.note_tuple()

    return load_and_note


def _instructions() -> dict[int, Callable[[Any], None]]:
    known = {code[0]: pickle._Unpickler.dispatch[code[0]] for code in _INSTRUCTIONS}
    for code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
        known[code[0]] = _noting(known[code[0]])
    return known


_Survey.dispatch = _instructions()
