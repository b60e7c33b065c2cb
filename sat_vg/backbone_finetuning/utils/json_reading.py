"""JSON that a stranger or a killed process may have written: read with bounds, or refused with a reason."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from sat_vg.backbone_finetuning.utils.regular_files import read_bounded

MOST_BYTES = 2**26  # of a file that holds settings or results
_MOST_LEVELS = 64
_MOST_DIGITS = 25


class UnsoundJSONError(ValueError):
    """A text is no JSON that this program writes; the message says why, without the file's name."""


def read_json(path: str | Path, most_bytes: int = MOST_BYTES) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: it cannot be read, is no regular file, or is longer than ``most_bytes``.
        UnsoundJSONError: see ``parse_json``.
    """
    return parse_json(read_bounded(path, most_bytes))


def parse_json(text: str | bytes) -> Any:
    """Plain data out of a JSON text, in UTF-8 where it is bytes.

    Refused beyond what is no JSON at all: NaN, Infinity and numbers that 64 bits cannot hold, a name that comes twice
    in an object, and values nested more than 64 deep.

    Raises:
        UnsoundJSONError: says what is wrong.
    """
    try:
        content = json.loads(
            text if isinstance(text, str) else text.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_of_64_bits,
            object_pairs_hook=_without_duplicates,
        )
    except UnsoundJSONError:
        raise
    except UnicodeDecodeError as error:
        raise UnsoundJSONError(f"it is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise UnsoundJSONError(_TOO_DEEP) from None
    except ValueError as error:
        raise UnsoundJSONError(f"it is no JSON ({error})") from None
    _require_shallow(content)
    return content


_TOO_DEEP = f"its values are nested more than {_MOST_LEVELS} deep"


def _refuse_constant(text: str) -> NoReturn:
    raise UnsoundJSONError(f"it holds {text}, which is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise UnsoundJSONError(f"it holds the number {text[:_MOST_DIGITS]}, which is too large")
    return value


def _of_64_bits(text: str) -> int:
    if len(text) > _MOST_DIGITS or not -(2**63) <= int(text) < 2**64:
        raise UnsoundJSONError(f"it holds the number {text[:_MOST_DIGITS]}, which is too large")
    return int(text)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise UnsoundJSONError(f"it names {twice[:_MOST_DIGITS]!r} twice")
    return found


def _require_shallow(content: Any) -> None:
    level = [content] if isinstance(content, (list, dict)) else []
    for _ in range(_MOST_LEVELS):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (list, dict))
        ]
        if not level:
            return
    raise UnsoundJSONError(_TOO_DEEP)
