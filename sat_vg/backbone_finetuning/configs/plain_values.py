"""Values as people have them at hand (paths, NumPy's numbers, torch's devices) as plain texts and numbers."""

import os
from collections.abc import Mapping
from enum import Enum
from typing import Any

_DTYPES = {"torch.bfloat16": "bf16", "torch.float16": "fp16"}


def plain_value(value: Any) -> Any:
    """A value as text, number, boolean, None or a tuple of these; anything else is returned unchanged."""
    value = _plain(value)
    if isinstance(value, (list, range)) or (hasattr(value, "tolist") and getattr(value, "ndim", None) == 1):
        value = tuple(value)
    return tuple(_plain(part) for part in value) if isinstance(value, tuple) else value


def as_argument(value: Any) -> str:
    """A plain value as the command line takes it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def as_flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings of plain values as arguments of a command line."""
    return [text for name, value in settings.items() for text in (f"--{name}", as_argument(value))]


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        return str.__str__(value)  # NumPy's texts are a class of their own, which YAML cannot write
    # A number of NumPy, or an array or tensor that holds one. By what it can do: torch is not imported for this.
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    if type(value).__module__ == "torch" and type(value).__name__ in ("device", "dtype"):
        return _DTYPES.get(str(value), str(value))
    return value
