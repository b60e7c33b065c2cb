"""``sat-vg tune DATA --search NAME=VALUES …``: search over settings of the training."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

from sat_vg.backbone_finetuning.commands.command_line import function_of, require_extra
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.configs.option_parser import parse_options, split_arguments
from sat_vg.backbone_finetuning.configs.ranges import PositiveInt, WholeNumber, rule_of, rules_of
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.exit_codes import run_command

_DESCRIPTION = """\
Search over settings of the training: every combination where all are lists, otherwise by TPE (Bergstra et al., 2011)
with a fixed seed. Every trial is a training in a process of its own, on the same images and the same split.

  a search       %(prog)s DATA --search learning_rate=1e-5..1e-2:log weight_decay=1e-4,1e-3 --trials 20
  with settings  %(prog)s DATA --search strategy=full,lp_ft --backbone resnet18 --num_epochs 8
  after compare  %(prog)s --from_compare OUT/comparison.json --best 3 --search learning_rate=1e-5..1e-2:log

All options of the training (sat-vg train --help) and --config hold for every trial. Stopped, killed, or Ctrl-C? The
same command goes on. The same command in several terminals shares the work. Needs pip install 'sat_vg[tune]'.
Results in --out: trials.csv, importance.png, best.yaml, and the command of the best.
Exit codes: 0 done, 1 no trial could be trained to its end, 2 a setting or an input is wrong, 130 stopped by Ctrl-C,
75 by SIGTERM or SIGUSR1."""
_USAGE = "%(prog)s [DATA] --search NAME=VALUES ... [--OPTION VALUE ...] [--TRAINING_OPTION VALUE ...]"


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """Options of ``sat-vg tune``."""

    data: str | None = None
    """Images, as for the training: class folders, or a .csv table. Unset: those of --from_compare, --config or
    --dataset."""
    search: tuple[str, ...] | None = None
    """What is searched: NAME=A,B for values (NAME=A|B where they have commas), NAME=LOW..HIGH for a range, with :log
    at its end for a logarithmic one. Several have spaces between them. NAME is a field of the training."""
    trials: PositiveInt | None = None
    """Number of trainings, those of earlier calls included. Unset: 20, or where all are lists every combination."""
    out: str = "tuning"
    """Folder of the trials and of the results."""
    from_compare: str | None = None
    """comparison.json of sat-vg compare: its best rows are searched as well, each with its backbone, strategy,
    weights and settings."""
    best: PositiveInt | None = None
    """Number of rows of --from_compare. Unset: 3."""
    prune: bool = True
    """Stop a trial after an epoch in which it is below the median of the trials before (from the fifth trial on)."""
    prune_after: WholeNumber | None = None
    """Epochs in which no trial is stopped. Unset: a third of num_epochs, 1 at least."""
    keep_models: bool = False
    """Keep the checkpoints of all trials, not of the best alone."""
    dry_run: bool = False
    """Check the search and say what it is; train nothing."""


def main(arguments: list[str] | None = None, prog: str = "sat-vg tune") -> int:
    """Run the command; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)

    def action() -> None:
        given_without, search = _take_search(given)
        own, flags = _split(given_without, prog)
        options = parse_options(TuneOptions, own, prog, _DESCRIPTION, {"data": "DATA"}, usage=_USAGE)
        require_extra("tune", "optuna")
        function_of(TuneOptions, "tune")(replace(options, search=tuple(search)), flags)

    return run_command(action)


def _take_search(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments without ``--search``, and all that stands behind it."""
    others, search, rest = list[str](), list[str](), list(given)
    while rest:
        word = rest.pop(0)
        if word != "--search" and not word.startswith("--search="):
            others.append(word)
            continue
        found = [word.partition("=")[2]] if "=" in word else []
        while rest and re.match(r"\w+=", rest[0]):
            found.append(rest.pop(0))
        if not found:
            raise ConfigError("--search needs NAME=VALUES behind it; for example learning_rate=1e-5..1e-2:log")
        search += found
    return others, search


def _split(given: Sequence[str], prog: str) -> tuple[list[str], list[str]]:
    """The command's own arguments, and those of the training."""
    own: dict[str, Any] = get_type_hints(TuneOptions)
    hints = get_type_hints(FinetuneConfig)
    types = {name: hints[name] for name in FinetuneConfig.field_names()} | {"config": str} | own
    rules = {"config": rule_of(str), **rules_of(FinetuneConfig), **rules_of(TuneOptions)}
    written, words = split_arguments(given, types, rules, prog, {"data": "DATA"})
    if "help" in written:
        return ["--help"], []
    flags = {name: [f"--{name}={text}" for text in texts] for name, texts in written.items()}
    mine = [flag for name in flags if name in own for flag in flags[name]]
    return [*mine, *words], [flag for name in flags if name not in own for flag in flags[name]]
