"""The commands as Python functions, with the options of the command lines and a result each.

They check their options and print what the commands print; what is wrong is a ``UserError`` that says what to do.
Training itself is ``training.run.finetune``, prediction ``FineTuneModel.predict``.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from sat_vg.backbone_finetuning.commands.check import cli as check_cli
from sat_vg.backbone_finetuning.commands.check.run import Findings, find_faults
from sat_vg.backbone_finetuning.commands.command_line import require_extra
from sat_vg.backbone_finetuning.commands.compare import cli as compare_cli
from sat_vg.backbone_finetuning.commands.compare.results import NAME
from sat_vg.backbone_finetuning.commands.compare.run import compare as run_comparison
from sat_vg.backbone_finetuning.commands.evaluate import cli as evaluate_cli
from sat_vg.backbone_finetuning.commands.evaluate.run import evaluate_checkpoint
from sat_vg.backbone_finetuning.commands.export import cli as export_cli
from sat_vg.backbone_finetuning.commands.export.run import export_checkpoint
from sat_vg.backbone_finetuning.commands.extract import cli as extract_cli
from sat_vg.backbone_finetuning.commands.extract.run import extract_features
from sat_vg.backbone_finetuning.commands.recommend.cli import RecommendOptions
from sat_vg.backbone_finetuning.commands.recommend.run import Recommendation
from sat_vg.backbone_finetuning.commands.recommend.run import recommend as run_recommendation
from sat_vg.backbone_finetuning.commands.runs.run import RunRow, list_runs
from sat_vg.backbone_finetuning.commands.tune.cli import TuneOptions
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.configs.option_parser import Options
from sat_vg.backbone_finetuning.configs.plain_values import as_argument, as_flags, plain_value
from sat_vg.backbone_finetuning.configs.ranges import rules_of
from sat_vg.backbone_finetuning.configs.validation import explain_unknown_fields, refuse_problems
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home


def check(data: str | Path | None = None, **options: Any) -> Findings:
    """Look for what a training would stumble over, as ``sat-vg check DATA``; nothing is printed.

    Args:
        data: class folders, or a .csv table; with ``dataset`` the folder of a copy.
        options: of the command, such as ``bands="1,2,3"`` or ``seed=1``.

    Returns:
        ``errors`` and ``warnings`` as texts; ``to_dict()`` gives all numbers as plain data.
    """
    return find_faults(checked_options(check_cli.CheckOptions, "check", {"data": data, **options}))


def compare(data: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Train backbones x strategies x seeds and rank them, as ``sat-vg compare DATA``.

    Args:
        data: as for a training.
        options: of the command, such as ``backbones=["resnet18", "mobilenet_v2"]``, ``seeds=[0, 1]``, ``out="DIR"``;
            and of every training, such as ``num_epochs=5``.

    Returns:
        What comparison.json in ``out`` holds; empty after a dry run.

    Raises:
        StoppedError: a training failed; the others are compared all the same.
    """
    own_options, flags = _split_options(compare_cli.CompareOptions, "compare", options)
    chosen = checked_options(compare_cli.CompareOptions, "compare", {"data": data, **own_options})
    run_comparison(chosen, flags)
    path = expand_home(chosen.out) / f"{NAME}.json"
    return {} if chosen.dry_run else dict(json.loads(path.read_text()))


def evaluate(checkpoint: str | Path, data: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Measure a best_model.pt on labelled images and write the report, as ``sat-vg evaluate CHECKPOINT DATA``.

    Args:
        checkpoint: a best_model.pt, or the folder of a run.
        data: labelled images; None: those of its training.
        options: of the command, such as ``split="test"`` or ``out="DIR"``.

    Returns:
        What evaluation.json holds.
    """
    return evaluate_checkpoint(
        checked_options(evaluate_cli.EvaluateOptions, "evaluate", {"checkpoint": checkpoint, "data": data, **options})
    )


def extract(checkpoint: str | Path, images: str | Path, **options: Any) -> Path:
    """Write vectors or maps of images into a file, as ``sat-vg extract CHECKPOINT IMAGES``; returns its path.

    Args:
        checkpoint: a best_model.pt, or the folder of a run.
        images: a folder, file, glob or table.
        options: of the command, such as ``out="features.npz"`` or ``stages=["layer3"]``.
    """
    return extract_features(
        checked_options(
            extract_cli.ExtractOptions, "extract", {"checkpoint": checkpoint, "images": images, **options}
        )
    )


def export(checkpoint: str | Path, **options: Any) -> dict[str, Any]:
    """Write a model for other programs, as ``sat-vg export CHECKPOINT --format FORMAT --out PATH``.

    Args:
        checkpoint: a best_model.pt, or the folder of a run.
        options: of the command: ``format="onnx"``, ``out="model.onnx"`` …

    Returns:
        The model card as plain data.
    """
    if options.get("verify") is not None:
        raise ConfigError("export(verify=…) writes nothing: compare a file by sat-vg export CHECKPOINT --verify FILE")
    return export_checkpoint(
        checked_options(export_cli.ExportCommandOptions, "export", {"checkpoint": checkpoint, **options})
    )


def recommend(data: str | Path | None = None, **options: Any) -> Recommendation:
    """A backbone, a strategy and a batch size to begin with, as ``sat-vg recommend DATA``.

    Args:
        data: images whose number is counted; or give ``images=1200``.
        options: of the command, such as ``memory_gib=8`` or ``mobile=True``.

    Returns:
        The choice with its reasons, the other candidates and the command of the training.
    """
    return run_recommendation(checked_options(RecommendOptions, "recommend", {"data": data, **options}))


def tune(data: str | Path | None = None, search: Mapping[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """Search over settings of the training, as ``sat-vg tune DATA --search …``.

    Args:
        data: as for a training.
        search: by field of the training, values or a range as text: ``{"learning_rate": "1e-5..1e-2:log"}``.
        options: of the command, such as ``trials=20``, ``out="DIR"``; and of every training, such as
            ``num_epochs=5``.

    Returns:
        What tuning.json in ``out`` holds; empty after a dry run.

    Raises:
        StoppedError: no trial could be trained to its end.
    """
    require_extra("tune", "optuna")
    from sat_vg.backbone_finetuning.commands.tune.run import RESULTS
    from sat_vg.backbone_finetuning.commands.tune.run import tune as run_search

    own_options, flags = _split_options(TuneOptions, "tune", options)
    texts = [_search_text(name, values) for name, values in (search or {}).items()]
    chosen = checked_options(TuneOptions, "tune", {"data": data, "search": texts, **own_options})
    run_search(chosen, flags)
    return {} if chosen.dry_run else dict(json.loads((expand_home(chosen.out) / RESULTS).read_text()))


def runs(folder: str | Path = ".") -> list[RunRow]:
    """The runs below a folder, the newest first, as ``sat-vg runs DIR``. Raises DataError where there is none."""
    return list_runs(folder)


def _search_text(name: str, values: Any) -> str:
    """A range or values, which may have commas, as ``--search`` takes them. Raises ConfigError for a single one."""
    values = plain_value(values)
    if not isinstance(values, tuple):
        return f"{name}={as_argument(values)}"
    texts = [as_argument(value) for value in values]
    if len(texts) == 1 and "," in texts[0]:
        raise ConfigError(f"search: {name} has one value; give two, or set it for all trials: {name}={values[0]!r}")
    return f"{name}={'|'.join(texts)}"


def _split_options(
    kind: type[Options], function: str, options: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """A command's own options, and those of the training as flags. Raises ConfigError where one is neither."""
    own = {field.name for field in fields(kind)}
    trained = {name: value for name, value in options.items() if name not in own}
    hint = f"sat-vg {function} --help and sat-vg train --help list all options"
    explain_unknown_fields(trained, (*own, *FinetuneConfig.field_names()), f"{function}()", hint)
    flags = as_flags({name: plain_value(value) for name, value in trained.items()})
    return {name: value for name, value in options.items() if name in own}, flags


def checked_options(
    kind: type[Options], function: str, given: Mapping[str, Any], command: str | None = None
) -> Options:
    """The options of a command, checked as on its command line. Raises ConfigError where one is unknown or wrong."""
    explain_unknown_fields(
        given,
        [field.name for field in fields(kind)],
        f"{function}()",
        f"{command or f'sat-vg {function}'} --help lists all options",
    )
    values, rules = {name: plain_value(value) for name, value in given.items()}, rules_of(kind)
    refuse_problems(
        [rules[name].problem(name, value) for name, value in values.items() if not rules[name].holds(value)]
    )
    return kind(**values)


# These names were modules in the version before; programs that call their ``main`` find it here for one more version.
for _function, _cli in (
    (check, check_cli),
    (compare, compare_cli),
    (evaluate, evaluate_cli),
    (export, export_cli),
    (extract, extract_cli),
):
    _function.main = _cli.main  # type: ignore[union-attr]
