"""YAML files of settings: small, without objects and aliases, and with numbers as people write them."""

import difflib
import errno
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sat_vg.backbone_finetuning.utils.errors import ConfigError

_PACKAGE = Path(__file__).parents[2]
# The recipes: in an installed package inside it, in a checkout beside it.
RECIPES = (_PACKAGE / "recipes", _PACKAGE.parent / "configs")
_MAX_YAML_BYTES = 2**18
_DECIMAL = re.compile(r"[-+]?[0-9_]*[0-9]")


class _Loader(yaml.SafeLoader):
    """The safe loader, with numbers such as 1e-4 read as numbers, which YAML 1.1 takes for text; without aliases.

    Dates are text here. Numbers that YAML 1.1 takes for others are refused: 010 (8) and 1:30 (90).
    A few lines of aliases to aliases stand for more values than memory holds, and no configuration needs them.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; a name that comes twice is refused, where the safe loader takes the last."""
        seen: dict[Any, yaml.Mark] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    first = seen[key.value].line + 1
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value!r} is set in line {first} already; keep one of them", key.start_mark
                    )
                seen[key.value] = key.start_mark
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """A number that means what it looks like."""
        text = str(self.construct_scalar(node))
        is_whole = node.tag.endswith(":int")
        number: int | float = (self.construct_yaml_int if is_whole else self.construct_yaml_float)(node)
        is_octal = is_whole and _DECIMAL.fullmatch(text) is not None and number != int(text)
        if not is_octal and ":" not in text:
            return number
        decimal = int(text) if is_octal else number
        problem = f"{text} means {number} in YAML 1.1; write {decimal}, or {text!r} in quotes if it is a text"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)

    def construct_date(self, node: yaml.ScalarNode) -> str:
        """A date as it is written."""
        return str(self.construct_scalar(node))


class _Dumper(yaml.SafeDumper):
    """Writes what ``_Loader`` reads: text that looks like a number gets quotes, line breaks of all kinds escapes."""

    def represent_text(self, text: str) -> yaml.Node:
        """A text; in double quotes where some of its characters, such as U+0085, would not be read back."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_text)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_date)

for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def yaml_text(values: Mapping[str, Any]) -> str:
    """Plain data as YAML that ``read_yaml`` gives back."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def find_recipe(given: str) -> Path:
    """The path of a YAML file, or of the recipe of that name that comes with the package, such as ``ucmerced``.

    Raises:
        ConfigError: there is no file and no recipe of that name; names the nearest.
    """
    path = Path(given)
    if path.exists() or path.suffix or path.name != given:
        return path
    for folder in RECIPES:
        if (folder / f"{given}.yaml").is_file():
            return folder / f"{given}.yaml"
    near = difflib.get_close_matches(given, recipe_names(), n=1)
    raise ConfigError(
        f"--config {given!r}: there is no such file, and no recipe of that name"
        + (f": did you mean {near[0]!r}?" if near else f"; the recipes are {', '.join(recipe_names())}")
    )


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    return sorted({path.stem for folder in RECIPES for path in folder.glob("*.yaml")})


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, read with the safe loader.

    Raises:
        ConfigError: there is no such file, it is too large, or it holds something else than a mapping.
    """
    try:
        text = _read_text(Path(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"the config file {str(path)!r} is not UTF-8 text; check --config") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"the config file {str(path)!r} cannot be read: {reason}; check --config") from error
    try:
        content = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: a number or date that cannot be
        raise ConfigError(f"the config file {str(path)!r} is not valid YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"the config file {str(path)!r} is nested too deeply; check --config") from error
    if not isinstance(content, dict):
        raise ConfigError(f"the config file {str(path)!r} must hold lines such as 'backbone: resnet50'")
    return content


def _read_text(path: Path) -> str:
    """The text of a small regular file; a pipe or a device, which may never end, is refused."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is a folder, a pipe or a device")
    with path.open("rb") as file:
        content = file.read(_MAX_YAML_BYTES + 1)
    if len(content) > _MAX_YAML_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {_MAX_YAML_BYTES // 2**10} KiB")
    return content.decode("utf-8")
