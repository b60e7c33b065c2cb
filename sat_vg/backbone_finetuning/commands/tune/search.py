"""What is searched: values and ranges of fields of the training, and the configuration of each trial."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from sat_vg.backbone_finetuning.configs.combinations import LP_FT_DEFAULTS, LP_FT_EPOCHS
from sat_vg.backbone_finetuning.configs.finetune_config import FIELDS_FREE_ON_RESUME, FinetuneConfig
from sat_vg.backbone_finetuning.configs.option_parser import typed_value
from sat_vg.backbone_finetuning.configs.plain_values import plain_value
from sat_vg.backbone_finetuning.configs.ranges import rules_of
from sat_vg.backbone_finetuning.configs.validation import explain_unknown_fields
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.json_reading import read_json

if TYPE_CHECKING:
    from optuna.trial import Trial

# Trials with other images, another split or another measure could not be compared.
_OF_THE_IMAGES = (
    "train_split", "val_split", "val_fraction", "split", "block_size", "group_column", "num_classes", "on_bad_image",
    "early_stopping_metric", "seed",
)  # fmt: skip
_OF_THEIR_READING = ("label_separator", "bands", "nodata", "rescale")  # may be searched, but for the first
OWN_FIELDS = ("name", "log_dir", "checkpoint_dir", "resume")  # set for each trial
_MOST_COMBINATIONS = 10_000
_MOST_CHECKED = 1000  # combinations whose settings are looked through before anything is trained
_EXAMPLE = "for example learning_rate=1e-5..1e-2:log, or strategy=full,lp_ft"


@dataclass(frozen=True)
class Choice:
    """Values to choose among."""

    name: str  # of the field; of several fields that go together, their names
    options: Mapping[str, Mapping[str, Any]]  # by its text, the settings that a value stands for

    @property
    def text(self) -> str:
        """The values as they were given."""
        return " | ".join(self.options)

    def ends(self) -> list[str]:
        """The values that are checked before anything is trained: all."""
        return list(self.options)

    def suggest(self, trial: Trial) -> None:
        """Let a trial choose."""
        trial.suggest_categorical(self.name, list(self.options))

    def settings(self, value: Any) -> Mapping[str, Any]:
        """The settings that a value stands for."""
        return self.options[value]


@dataclass(frozen=True)
class Interval:
    """A range of numbers, its ends included."""

    name: str  # of the field
    low: float  # whole where the field is
    high: float  # above ``low``
    is_log: bool  # whether the logarithm is searched evenly

    @property
    def text(self) -> str:
        """The range as it was given."""
        return f"{self.low}..{self.high}{':log' * self.is_log}"

    def ends(self) -> list[float]:
        """The values that are checked before anything is trained."""
        return [self.low, self.high]

    def suggest(self, trial: Trial) -> None:
        """Let a trial choose."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            trial.suggest_int(self.name, self.low, self.high, log=self.is_log)
        else:
            trial.suggest_float(self.name, self.low, self.high, log=self.is_log)

    def settings(self, value: Any) -> Mapping[str, Any]:
        """The settings that a value stands for."""
        return {self.name: value}


@dataclass(frozen=True)
class Search:
    """What is searched, over which settings."""

    base: FinetuneConfig  # what all trials have in common
    dimensions: tuple[Choice | Interval, ...]  # in the order in which they were named

    @property
    def combinations(self) -> list[dict[str, Any]] | None:
        """Every combination; None where there is a range."""
        if not all(isinstance(one, Choice) for one in self.dimensions):
            return None
        return [
            dict(zip(self.names, values, strict=True)) for values in product(*(d.ends() for d in self.dimensions))
        ]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the dimensions."""
        return tuple(one.name for one in self.dimensions)

    @property
    def left_to_lp_ft(self) -> list[str]:
        """The fields that ``lp_ft`` sets by itself in trials that it trains, or that may come to be trained by it."""
        strategies = [one.ends() for one in self.dimensions if one.name in ("strategy", "row")]
        may_train = "lp_ft" in strategies[0] if strategies else not self.base.says_what_is_trained
        if not may_train or (self.base.num_epochs < LP_FT_EPOCHS and "num_epochs" not in self.names):
            return []
        return [name for name in LP_FT_DEFAULTS if name not in self.base.given and name not in self.names]

    def config_of(self, values: Mapping[str, Any]) -> FinetuneConfig:
        """The configuration with one value for each dimension. Raises ConfigError for a contradiction."""
        changes: dict[str, Any] = {}
        for one in self.dimensions:
            changes |= one.settings(values[one.name])
        return self.base.replace(**changes)

    def checked_configs(self) -> list[FinetuneConfig]:
        """The configurations of all values and ends of ranges, in their combinations; of very many the first.

        Raises ConfigError where the settings of one contradict one another.
        """
        configs = []
        for values in islice(product(*(one.ends() for one in self.dimensions)), _MOST_CHECKED):
            pairs = dict(zip(self.names, values, strict=True))
            try:
                configs.append(self.config_of(pairs))
            except ConfigError as error:
                raise ConfigError(f"--search with {all_shown(pairs)}: {error}") from error
        return configs


def shown(value: Any) -> str:
    """A value as tables show it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def all_shown(values: Mapping[str, Any]) -> str:
    """Values of a trial in one line."""
    return ", ".join(f"{name} {shown(value)}" for name, value in values.items())


def names_of(flags: Sequence[str]) -> list[str]:
    """The fields that flags of the training command set."""
    return [flag[2:].partition("=")[0] for flag in flags if flag.startswith("--")]


def parse_search(texts: Sequence[str], flags: Sequence[str] = ()) -> list[Choice | Interval]:
    """The dimensions that ``NAME=A,B`` and ``NAME=LOW..HIGH:log`` stand for.

    ``flags`` are those of the training command, for all trials. Raises ConfigError where a field is unknown, is not
    to be searched, or is there twice; a range is empty; or a value is not allowed.
    """
    found: dict[str, Choice | Interval] = {}
    given = names_of(flags)
    for text in texts:
        name, _, values = text.partition("=")
        if not values.strip():
            raise ConfigError(f"--search {text}: must be NAME=A,B or NAME=LOW..HIGH; {_EXAMPLE}")
        place, hint = f"--search {text}: the training", "sat-vg train --help lists all fields"
        explain_unknown_fields([name], FinetuneConfig.field_names(), place, hint)
        _require_searchable(name, text)
        if name in found:
            raise ConfigError(f"--search {text}: {name} is searched already; name it once")
        if name in given:
            raise ConfigError(f"--search {text}: --{name} is set as well; leave one of the two out")
        kind = get_type_hints(FinetuneConfig)[name]
        numbers = [part for part in (kind, *get_args(kind)) if part in (int, float)]
        is_range = ".." in values and numbers
        found[name] = _interval(name, values, numbers[0], text) if is_range else _choice(name, values, kind, text)
    count = math.prod(len(one.ends()) for one in found.values() if isinstance(one, Choice))
    if count > _MOST_COMBINATIONS:
        raise ConfigError(
            f"--search: the lists have {count:,} combinations, {_MOST_COMBINATIONS:,} at most; shorten them"
        )
    return list(found.values())


def _require_searchable(name: str, text: str) -> None:
    if name in OWN_FIELDS:
        raise ConfigError(f"--search {text}: {name} is set for each trial by the search itself; leave it out")
    if name in _OF_THE_IMAGES:
        raise ConfigError(
            f"--search {text}: trials with another {name} could not be compared; set it for all: --{name} VALUE"
        )
    if name in FIELDS_FREE_ON_RESUME:
        raise ConfigError(
            f"--search {text}: {name} changes where or how fast a training runs, and not its result; set it for all "
            f"trials: --{name} VALUE"
        )


def _interval(name: str, values: str, number: type, text: str) -> Interval:
    rule = rules_of(FinetuneConfig)[name]
    bounds, has_scale, scale = values.strip().partition(":")
    low, _, high = (part.strip() for part in bounds.partition(".."))
    # Of 1e-5...1e-2 the third dot would make .1e-2 of the end.
    if not low or not high or "..." in bounds or (has_scale and scale != "log"):
        raise ConfigError(f"--search {text}: a range is LOW..HIGH or LOW..HIGH:log; {_EXAMPLE}")
    ends = [typed_value(end, number) for end in (low, high)]
    for end in ends:
        if isinstance(end, str) or not rule.holds(end):
            raise ConfigError(f"--search {text}: {rule.problem(name, end)}")
    if ends[0] >= ends[1]:
        raise ConfigError(f"--search {text}: the range is empty, as {low} is not below {high}; write LOW..HIGH")
    if scale and ends[0] <= 0:
        raise ConfigError(f"--search {text}: a logarithmic range begins above 0; raise {low}, or leave :log out")
    return Interval(name, ends[0], ends[1], bool(scale))


def _choice(name: str, values: str, kind: Any, text: str) -> Choice:
    rule = rules_of(FinetuneConfig)[name]
    options: dict[str, dict[str, Any]] = {}
    seen = set()
    for entry in (part.strip() for part in values.split("|" if "|" in values else ",")):
        value = typed_value(entry, kind)
        if not rule.holds(value):
            raise ConfigError(f"--search {text}: {rule.problem(name, value)}")
        if (type(value), value) in seen:
            raise ConfigError(f"--search {text}: {entry} is there more than once; name each value once")
        seen.add((type(value), value))
        options[entry] = {name: value}
    return Choice(name, options)


def settings_of_comparison(path: Path) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    """The settings of the images in a comparison.json, and name and other settings of each row, best first."""
    try:
        content = read_json(path)
        cells = {(c["settings"]["backbone"], c["settings"]["strategy"]): c["settings"] for c in content["cells"]}
        rows = [
            (f"{row['backbone']} {row['strategy']}", cells[row["backbone"], row["strategy"]])
            for row in content["rows"]
        ]
        shared = ("dataset_path", "dataset", *_OF_THE_IMAGES, *_OF_THEIR_READING)
        first = rows[0][1]
        of_images = {
            name: first[name] for name in shared if name in first and all(r[name] == first[name] for _, r in rows)
        }
    except OSError as error:
        raise ConfigError(
            f"--from_compare {str(path)!r} cannot be read: {error.strerror or error}; check it"
        ) from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ConfigError(
            f"--from_compare {str(path)!r} is no comparison.json of sat-vg compare; name the one in its --out"
        ) from error
    defaults = FinetuneConfig.defaults()
    left_out = {*of_images, "seed", *OWN_FIELDS, *FIELDS_FREE_ON_RESUME}
    of_images.pop("seed", None)  # a comparison has several
    return _changed(of_images, defaults), [(name, _changed(one, defaults, left_out)) for name, one in rows]


def _changed(
    settings: Mapping[str, Any], defaults: Mapping[str, Any], leave_out: Collection[str] = ()
) -> dict[str, Any]:
    known = {
        name: plain_value(value) for name, value in settings.items() if name in defaults and name not in leave_out
    }
    # Of lp_ft what equals a default was chosen: left out, it would be what the strategy sets.
    chosen = LP_FT_DEFAULTS if settings.get("strategy") == "lp_ft" else {}
    return {name: value for name, value in known.items() if name in chosen or value != defaults[name]}


def choice_of_rows(rows: Sequence[tuple[str, Mapping[str, Any]]], given: Collection[str]) -> Choice:
    """The rows of a comparison as a dimension of the search.

    ``given`` are fields that are set or searched, which outrank the rows' own. Raises ConfigError where one of them
    makes a row what it is.
    """
    for name in ("backbone", "strategy", "weights"):
        if name in given:
            raise ConfigError(f"{name} is set or searched, and each row of --from_compare has its own; leave it out")
    return Choice("row", {name: {f: v for f, v in one.items() if f not in given} for name, one in rows})
