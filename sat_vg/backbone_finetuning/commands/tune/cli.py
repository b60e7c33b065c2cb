"""``sat-vg tune DATA --search NAME=VALUES …``: search over settings of the training."""

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_type_hints

from sat_vg.backbone_finetuning.configs.option_parser import parse_options, split_arguments
from sat_vg.backbone_finetuning.configs.ranges import rule_of, rules_of
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


def main(arguments: list[str] | None = None, prog: str = "sat-vg tune") -> int:
    """Run the command; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)

    def action() -> None:
        # Imported only now: an error in the settings file, which users edit, becomes a message.
        from sat_vg.backbone_finetuning.commands.command_line import require_extra
        from sat_vg.backbone_finetuning.commands.tune.options import TuneOptions

        given_without, search = _take_search(given)
        own, flags = _split(given_without, prog)
        options = parse_options(TuneOptions, own, prog, _DESCRIPTION, {"data": "DATA"}, usage=_USAGE)
        require_extra("tune", "optuna")
        # Imported only now: torch takes seconds, and --help or a mistyped flag should be answered at once.
        from sat_vg.backbone_finetuning.commands.tune.run import tune

        tune(replace(options, search=tuple(search)), flags)

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
    from sat_vg.backbone_finetuning.commands.tune.options import TuneOptions
    from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig

    own: dict[str, Any] = get_type_hints(TuneOptions)
    hints = get_type_hints(FinetuneConfig)
    types = {name: hints[name] for name in FinetuneConfig.field_names()} | {"config": str} | own
    rules = {
        **{name: rule_of(kind) for name, kind in types.items()},
        **rules_of(FinetuneConfig),
        **rules_of(TuneOptions),
    }
    written, words = split_arguments(given, types, rules, prog, {"data": "DATA"})
    if "help" in written:
        return ["--help"], []
    flags = {name: [f"--{name}={text}" for text in texts] for name, texts in written.items()}
    mine = [flag for name in flags if name in own for flag in flags[name]]
    return [*mine, *words], [flag for name in flags if name not in own for flag in flags[name]]
