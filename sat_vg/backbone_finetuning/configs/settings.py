"""How the settings of FinetuneConfig are made, checked, read, written and changed; the fields stand there."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from sat_vg.backbone_finetuning.configs.combinations import resolve_combinations
from sat_vg.backbone_finetuning.configs.plain_values import plain_value
from sat_vg.backbone_finetuning.configs.retired import RETIRED, translate_retired
from sat_vg.backbone_finetuning.configs.validation import (
    check_fields,
    explain_unknown_fields,
    refuse_problems,
    require_all_fields,
)
from sat_vg.backbone_finetuning.configs.yaml_files import read_yaml, yaml_text
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.safe_files import write_text

SHIPPED_DEFAULTS = Path(__file__).with_name("shipped_defaults.yaml")
SettingsType = TypeVar("SettingsType", bound="Settings")


@cache
def shipped_defaults() -> Mapping[str, Any]:
    """The defaults that this version came with; where those of ``FinetuneConfig`` differ, the user edited them."""
    return read_yaml(SHIPPED_DEFAULTS)


class _SettingsByName(type):
    """Makes objects that know which of their fields were set; an unknown one gets a ConfigError, not a TypeError."""

    def __call__(cls, *unnamed: Any, **given: Any) -> Any:
        if unnamed:
            raise ConfigError(f"{cls.__name__} takes its fields by name, such as {cls.__name__}(backbone='resnet50')")
        return cls.of(given)  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class Settings(metaclass=_SettingsByName):
    """What ``FinetuneConfig`` is besides its fields.

    Raises:
        ConfigError: one or more fields are invalid; the message lists field, value, what is allowed, and the remedy.
    """

    given: ClassVar[frozenset[str]] = frozenset()  # set on each object: names of the fields that somebody set
    notes: ClassVar[tuple[str, ...]] = ()  # set on each object: where settings come from and what was adapted
    _asked: ClassVar[Mapping[str, Any]] = {}  # set on each object: the values before any was adapted

    def __post_init__(self) -> None:
        values = {name: plain_value(getattr(self, name)) for name in self.field_names()}
        check_fields(type(self), values)
        object.__setattr__(self, "_asked", values)
        settings = resolve_combinations(values, self.given)
        refuse_problems(settings.problems)
        for name, value in settings.values.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "notes", (*self.notes, *settings.notes))

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """The names of all fields, in order."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The default of each field, as it stands in this class now."""
        return {
            field.name: field.default if field.default_factory is MISSING else field.default_factory()
            for field in fields(cls)
        }

    @classmethod
    def edited_defaults(cls) -> dict[str, Any]:
        """Defaults of this class that are not the shipped ones."""
        shipped = shipped_defaults()
        return {name: value for name, value in cls.defaults().items() if value != shipped.get(name, value)}

    @classmethod
    def of(
        cls: type[SettingsType],
        given: Mapping[str, Any],
        unset: Mapping[str, Any] | None = None,
        notes: Iterable[str] = (),
    ) -> SettingsType:
        """A config of what was set, over other defaults than those of this class.

        Settings of earlier versions are translated, and ``notes`` says how.

        Args:
            given: what somebody set.
            unset: defaults of some fields. Like all defaults they make room for what was set.
            notes: where the settings come from, in lines.

        Raises:
            ConfigError: a field is unknown (the nearest known one is named) or invalid.
        """
        require_all_fields(shipped_defaults(), cls.field_names())
        given, translated = translate_retired(given)
        explain_unknown_fields(given, cls.field_names())
        config = cls.__new__(cls)
        object.__setattr__(config, "given", frozenset({*given, *cls.edited_defaults()}))
        object.__setattr__(config, "notes", (*notes, *translated))
        cls.__init__(config, **{**(unset or {}), **given})
        return config

    @classmethod
    def from_dict(cls: type[SettingsType], values: Mapping[str, Any]) -> SettingsType:
        """A config from plain data; fields that are left out keep their defaults.

        Raises:
            ConfigError: a field is unknown (the nearest known one is named) or invalid.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"a configuration is made from a dict such as {{'backbone': 'resnet50'}}, not {values!r}"
            )
        return cls.of(values)

    @classmethod
    def from_yaml(cls: type[SettingsType], path: str | Path) -> SettingsType:
        """A config from a YAML file.

        Raises:
            ConfigError: there is no such file, it is no YAML mapping, or a field is unknown or invalid.
        """
        return cls.from_dict(read_yaml(path))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data (strings, numbers, booleans, lists)."""
        values = ((name, getattr(self, name)) for name in self.field_names())
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values}

    def to_yaml(self, path: str | Path) -> None:
        """Write the config as YAML, atomically."""
        write_text(Path(path), self.as_yaml())

    def as_yaml(self, names: Collection[str] | None = None) -> str:
        """The config as YAML text: all fields, or those named."""
        values = {name: value for name, value in self.to_dict().items() if names is None or name in names}
        return yaml_text(values)

    def replace(self: SettingsType, **changes: Any) -> SettingsType:
        """A new config with some fields changed; defaults that made room for others do so anew.

        Raises:
            ConfigError: as at construction.
        """
        explain_unknown_fields(changes, (*self.field_names(), *RETIRED))
        given = {name: self._asked[name] for name in self.given} | changes
        return self.of(given, {name: value for name, value in self._asked.items() if name not in given})
