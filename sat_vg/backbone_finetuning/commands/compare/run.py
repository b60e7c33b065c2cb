"""The comparison, from top to bottom: cells → data → trainings → costs → ranking → tables and chart."""

import io
import shlex
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

from sat_vg.backbone_finetuning.commands.compare import cell_files
from sat_vg.backbone_finetuning.commands.compare.cells import Cell, make_cells, parse_count
from sat_vg.backbone_finetuning.commands.compare.cli import CompareOptions
from sat_vg.backbone_finetuning.commands.compare.results import Finished, command_of, write_results
from sat_vg.backbone_finetuning.commands.compare.training_process import TrainingProcess, why_it_failed
from sat_vg.backbone_finetuning.commands.evaluate.cli import EvaluateOptions
from sat_vg.backbone_finetuning.commands.evaluate.run import evaluate_checkpoint
from sat_vg.backbone_finetuning.commands.output_folder import explaining_writing, lock_output
from sat_vg.backbone_finetuning.configs.plain_values import as_flags
from sat_vg.backbone_finetuning.data.sources.splits import Splits
from sat_vg.backbone_finetuning.models.artifact import BEST_MODEL, current_versions, read_artifact
from sat_vg.backbone_finetuning.models.networks.table import find_backbone
from sat_vg.backbone_finetuning.reports.comparison_report import Failure, Limits
from sat_vg.backbone_finetuning.reports.tables import text_table
from sat_vg.backbone_finetuning.training.preparation import choose_hardware
from sat_vg.backbone_finetuning.training.unset_fields import choose_image_size
from sat_vg.backbone_finetuning.utils.errors import ConfigError, InterruptedRun, StoppedError, UserError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.terminal import say

_SHOWN_LINES = ("warning: the starting weights", "epoch ", "exact linear probe", "stopped early", "going on with")


def compare(options: CompareOptions, flags: Sequence[str] = ()) -> None:
    """Train what has not been trained yet, and write the results to ``options.out``.

    ``flags`` are those of the training command, for all cells.

    Raises:
        UserError: a setting or the data cannot be used, or cells have other settings than an earlier call's.
        StoppedError: a training failed; the others are compared all the same.
        InterruptedRun: a signal came; the running cell has saved its state, the same call goes on.
    """
    limits = Limits(parse_count(options.max_params), options.min_images_per_second)
    cells = make_cells(options, flags)
    _require_backbones(cells)
    cells = _with_image_sizes(cells)
    out = expand_home(options.out)
    seeds = {cell.config.seed: cell.config for cell in cells}
    # Listed and checked before anything is trained on them.
    data = {seed: cell_files.checked_images(config) for seed, config in seeds.items()}
    if options.dry_run:
        _show_cells(cells, options)
        return
    with lock_output(out):
        _refuse_changes(cells, {seed: fingerprint for seed, (_, fingerprint) in data.items()}, options, flags)
        finished, failures = [], []
        for number, cell in enumerate(cells, start=1):
            heading = f"[{number}/{len(cells)}] {cell.name}"
            outcome = _run_cell(cell, *data[cell.config.seed], heading)
            if isinstance(outcome, Failure):
                failures.append(outcome)
            else:
                finished.append(Finished(cell, outcome))
        if finished:
            splits, _ = data[finished[0].cell.config.seed]
            write_results(out, finished, failures, splits, limits, command_of(options, flags))
    if failures:
        listed = "".join(f"\n  {one.cell}: {one.reason}\n    its output: {one.folder}" for one in failures)
        compared = "the others are compared; " if finished else ""
        raise StoppedError(
            f"{len(failures)} of {counted(len(cells), 'training')} failed:{listed}\n{compared}fix the cause and run "
            "the same command again: it trains only the missing cells"
        )


def _require_backbones(cells: Sequence[Cell]) -> None:
    """Refuse unknown names, and two names of the same network."""
    meant: dict[str, str] = {}
    for given in dict.fromkeys(cell.config.backbone for cell in cells):
        name = find_backbone(given).name
        if name in meant:
            raise ConfigError(f"backbones: {given!r} and {meant[name]!r} are the same network; name one of them")
        meant[name] = given
    for config in {cell.config.device: cell.config for cell in cells}.values():
        choose_hardware(config)


def _with_image_sizes(cells: Sequence[Cell]) -> list[Cell]:
    sizes = [choose_image_size(cell.config) for cell in cells]
    return [
        cell if size is None else replace(cell, config=cell.config.replace(image_size=size.pixels))
        for cell, size in zip(cells, sizes, strict=True)
    ]


def _refuse_changes(
    cells: Sequence[Cell], fingerprints: Mapping[int, str], options: CompareOptions, flags: Sequence[str]
) -> None:
    """Refuse cells that were trained with other settings or on other images; with ``--anew``, move them aside."""
    changed = {}
    for cell in cells:
        lines = cell_files.changed_settings(cell.folder, cell.config)
        result = cell_files.read_result(cell.folder)
        now = fingerprints[cell.config.seed]
        # Results of earlier versions know nothing of what the images show.
        if result is not None and result.data not in (now, now.partition(":")[0]):
            lines.append("the images have changed")
        if lines:
            changed[cell] = lines
    if changed and not options.anew:
        shown = "".join(f"\n  {cell.name}: {'; '.join(lines)}" for cell, lines in list(changed.items())[:6])
        more = f"\n  and {len(changed) - 6} more" if len(changed) > 6 else ""
        as_before = _flags_that_go_on(list(changed), options, flags)
        go_on = f"Put {as_before} behind -- to go on with them; or use" if as_before else "Use"
        raise ConfigError(
            f"{len(changed)} of {counted(len(cells), 'cell')} in {options.out!r}: trained with other settings or "
            f"images:{shown}{more}\n{go_on} another --out, or --anew true to move them aside and train them again"
        )
    for cell in changed:
        cell_files.put_aside(cell.folder, cell.folder.parent.parent / "earlier_cells")


def _flags_that_go_on(changed: Sequence[Cell], options: CompareOptions, flags: Sequence[str]) -> str:
    """The flags with which no cell has other settings than it was trained with; empty where no flags do that.

    A field that nobody set may be among them: its default has changed since.
    """
    earlier: dict[str, Any] = {}
    try:
        for cell in changed:
            fields = cell_files.changed_fields(cell.folder, cell.config)
            earlier |= {name: value for name, (value, _) in fields.items()}
        own = as_flags(earlier)
        again = _with_image_sizes(make_cells(options, [*_without(flags, earlier), *own]))
        if not own or any(cell_files.changed_fields(cell.folder, cell.config) for cell in again):
            return ""
    except ConfigError:
        return ""
    return shlex.join(own)


def _without(flags: Sequence[str], names: Collection[str]) -> list[str]:
    """Flags of the training without those of some fields, and their values."""
    kept, is_kept = list[str](), True
    for word in flags:
        if word.startswith("--"):
            is_kept = word[2:].partition("=")[0] not in names
        kept += [word] if is_kept else []
    return kept


def _run_cell(cell: Cell, splits: Splits, fingerprint: str, heading: str) -> cell_files.CellResult | Failure:
    """The results of a cell: stored ones, or those of a training that is started or resumed now."""
    result = _result_of(cell, splits)
    if result is not None:
        say(f"{heading}: {_describe(result)}, trained before")
        return result
    say(heading)
    with explaining_writing(f"{str(cell.folder)!r} cannot be written to", ": make room"):
        cell.folder.mkdir(parents=True, exist_ok=True)
        cell.config.to_yaml(cell.folder / cell_files.CONFIG)
        code, usage = _train(cell)
    if code:
        output = cell.folder / cell_files.OUTPUT
        failure = Failure(cell.name, why_it_failed(code, output), str(output))
        say(f"  failed: {failure.reason}")
        return failure
    try:
        result = _evaluate(cell, fingerprint, usage)
    except UserError as error:
        return Failure(cell.name, str(error), str(cell.folder / cell_files.OUTPUT))
    cell_files.write_result(cell.folder, cell.config, result, current_versions())
    say(f"  {_describe(result)}")
    return result


def _result_of(cell: Cell, splits: Splits) -> cell_files.CellResult | None:
    result = cell_files.read_result(cell.folder)
    if result is None or result.map is not None or not splits.train.is_multi_label:
        return result
    # Finished by a version that compared such cells by their accuracy: the run's own metrics hold the mAP.
    metrics = read_artifact(cell.folder / "checkpoints" / BEST_MODEL).metrics
    return replace(result, map=float(metrics["val_map"])) if "val_map" in metrics else None


def _train(cell: Cell) -> tuple[int, cell_files.Usage]:
    """Run the training command; returns its exit code and what its processes used."""
    cell_files.wait_for_orphan(cell.folder / "checkpoints")
    usage = cell_files.read_usage(cell.folder)
    usage.begin()
    cell_files.write_usage(cell.folder, usage)
    arguments = ["--config", str(cell.folder / cell_files.CONFIG)]
    process = TrainingProcess(arguments, cell.folder / cell_files.OUTPUT)
    for line in process.lines():
        if line.startswith(_SHOWN_LINES):
            say(f"  {line}")
    ended = process.ended
    usage.end(ended.peak_bytes, ended.seconds)
    cell_files.write_usage(cell.folder, usage)
    if ended.stopped_by is not None:
        raise InterruptedRun(
            f"stopped while {cell.name} was trained, which saved its state if it had begun; the same command goes on",
            ended.stopped_by,
        )
    return ended.code, usage


def _evaluate(cell: Cell, fingerprint: str, usage: cell_files.Usage) -> cell_files.CellResult:
    """Evaluate best_model.pt on the validation images, as ``sat-vg evaluate`` does, and add up time and memory."""
    best = cell.folder / "checkpoints" / BEST_MODEL
    options = EvaluateOptions(checkpoint=str(best), out=str(cell.folder / "evaluation"), device=cell.config.device)
    with redirect_stdout(io.StringIO()):  # a table by class for each cell would bury the comparison
        content = evaluate_checkpoint(options)
    epochs = cell_files.ended_epochs(cell.folder)
    epoch = int(read_artifact(best).metrics["epoch"])
    losses = [row["train_loss"] for row in epochs if row["epoch"] == epoch and row["step"] > 0]
    return cell_files.CellResult(
        accuracy=content["accuracy"],
        macro_f1=content["macro_f1"],
        epoch=epoch,
        epochs=len(epochs),
        training_seconds=sum(epoch["seconds"] for epoch in epochs),
        seconds=usage.seconds,
        peak_gib=usage.peak_gib,
        val_images=content["images"],
        data=fingerprint,
        map=content.get("map"),
        train_loss=losses[-1] if losses else None,
        val_loss=content["loss"],
        top_5=content.get("top_5_accuracy"),
        gpu_gib=cell_files.gpu_peak(cell.folder),
    )


def _describe(result: cell_files.CellResult) -> str:
    peak = "" if result.peak_gib is None else f", {result.peak_gib:.2f} GiB"
    measure = "accuracy" if result.map is None else "mAP"
    return (
        f"{measure} {100 * result.score:.2f} %, macro F1 {100 * result.macro_f1:.2f} %, "
        f"{result.training_seconds:.1f} s of training{peak}"
    )


def _show_cells(cells: Sequence[Cell], options: CompareOptions) -> None:
    rows = []
    for cell in cells:
        config, result = cell.config, cell_files.read_result(cell.folder)
        if cell_files.changed_settings(cell.folder, config):
            state = "trained with other settings"
        elif result is not None:
            state = f"done: {100 * result.score:.2f} %"
        else:
            state = "begun" if (cell.folder / "checkpoints").exists() else "to be trained"
        numbers = (config.seed, config.num_epochs, config.image_size, f"{config.learning_rate:g}")
        rows.append((config.backbone, config.strategy, *numbers, config.weights or "default", state))
    header = ("backbone", "strategy", "seed", "epochs", "pixels", "rate", "weights", "state")
    say(text_table(header, rows, left=(0, 1, 6, 7)))
    say(f"\n{counted(len(cells), 'training')}, one after another, in {expand_home(options.out) / 'cells'}")
    say("dry run: nothing was trained")
