"""The search, from top to bottom: settings → images → trials → table, chart and the command of the best."""

import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sat_vg.backbone_finetuning.commands.compare.cell_files import CONFIG, OUTPUT, checked_images, wait_for_orphan
from sat_vg.backbone_finetuning.commands.compare.training_process import EndedTraining, TrainingProcess, why_it_failed
from sat_vg.backbone_finetuning.commands.output_folder import explaining_writing
from sat_vg.backbone_finetuning.commands.tune.cli import TuneOptions
from sat_vg.backbone_finetuning.commands.tune.search import (
    OWN_FIELDS,
    Choice,
    Search,
    all_shown,
    choice_of_rows,
    names_of,
    parse_search,
    settings_of_comparison,
    shown,
)
from sat_vg.backbone_finetuning.commands.tune.study import (
    IMAGES,
    LEFT_TO_LP_FT,
    RunningTrial,
    SearchStudy,
    explaining_storage,
)
from sat_vg.backbone_finetuning.configs.command_line import parse_command_line
from sat_vg.backbone_finetuning.configs.finetune_config import FIELDS_FREE_ON_RESUME, FinetuneConfig
from sat_vg.backbone_finetuning.models.networks.table import find_backbone
from sat_vg.backbone_finetuning.reports.tables import csv_text, text_table
from sat_vg.backbone_finetuning.reports.tuning_figures import draw_trials
from sat_vg.backbone_finetuning.training.metric_lines import METRICS, read_metric_lines
from sat_vg.backbone_finetuning.training.preparation import choose_hardware
from sat_vg.backbone_finetuning.training.unset_fields import resolve_metric
from sat_vg.backbone_finetuning.utils.errors import ConfigError, InterruptedRun, StoppedError
from sat_vg.backbone_finetuning.utils.exit_codes import EXIT_BAD_INPUT
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write, write_text
from sat_vg.backbone_finetuning.utils.terminal import say

_USUAL_TRIALS, _USUAL_ROWS = 20, 3
_FAILURES_TO_STOP = 3  # of the first trials, all of them
RESULTS, BEST = "tuning.json", "best.yaml"


def tune(options: TuneOptions, flags: Sequence[str] = ()) -> None:
    """Run the trials that are left, and write the results to ``options.out``.

    ``flags`` are those of the training command, for all trials.

    Raises:
        UserError: a setting or the data cannot be used, or the folder holds another search.
        StoppedError: no trial could be trained to its end.
        InterruptedRun: a signal came; the running trial has saved its state, the same call goes on.
    """
    search = read_search(options, flags)
    configs = search.checked_configs()
    for config in {config.backbone: config for config in configs}.values():
        find_backbone(config.backbone)
    choose_hardware(search.base.replace(**{"backbone": configs[0].backbone}))
    combinations = search.combinations
    most = options.trials or (_USUAL_TRIALS if combinations is None else len(combinations))
    first_epochs = None
    if options.prune:
        first_epochs = max(1, search.base.num_epochs // 3) if options.prune_after is None else options.prune_after
    _tell_search(search, most, first_epochs)
    splits, fingerprint = checked_images(search.base)
    metric = str(resolve_metric(search.base, splits).early_stopping_metric)
    if options.dry_run:
        say("dry run: nothing was trained")
        return
    rows = next((one.options for one in search.dimensions if isinstance(one, Choice) and one.name == "row"), {})
    identity = {
        **{f"search {one.name}": one.text for one in search.dimensions},
        **{f"row {text}": dict(row) for text, row in rows.items()},
        **{n: v for n, v in search.base.to_dict().items() if n not in FIELDS_FREE_ON_RESUME},
        IMAGES: fingerprint,
        "epochs before pruning": first_epochs,
        LEFT_TO_LP_FT: search.left_to_lp_ft,
    }
    identity = json.loads(json.dumps(identity))  # as it is read back
    out = expand_home(options.out)
    with explaining_storage(out):
        study = SearchStudy(out, search, identity, metric != "val_loss", first_epochs)
        told = set[str]()
        while True:
            with study.next_trial(most) as trial:
                if trial is None:
                    break
                _run_trial(trial, search.config_of(trial.values), metric, most, told)
            _require_success(study, most)
            ended = [] if options.keep_models else [row for row in study.rows() if row.state != "running"]
            for row in ended[1:]:  # all but the best
                shutil.rmtree(study.folder_of(row.number) / "checkpoints", ignore_errors=True)
        _write_results(study, search, metric)


def read_search(options: TuneOptions, flags: Sequence[str]) -> Search:
    """What is searched, as options and flags say. Raises ConfigError where that is of no use."""
    own = [name for name in names_of(flags) if name in OWN_FIELDS]
    if own:
        raise ConfigError(f"--{own[0]} cannot be set: a search sets it for each trial; the folder of all is --out")
    if options.prune_after is not None and not options.prune:
        raise ConfigError(
            f"--prune_after {options.prune_after} has no effect with --prune false; leave one of them out"
        )
    dimensions = parse_search(options.search or (), flags)
    settings: dict[str, Any] = {}
    rows: list[tuple[str, dict[str, Any]]] = []
    if options.from_compare is not None:
        settings, rows = settings_of_comparison(expand_home(options.from_compare))
    elif options.best is not None:
        raise ConfigError(
            f"--best {options.best} has no effect without --from_compare, of whose rows it is the number; name the "
            "comparison.json, or leave it out"
        )
    if options.data is not None:
        settings["dataset_path"] = options.data
    base = parse_command_line(flags, settings=settings).config
    if options.data is not None and base.dataset_path != options.data:
        raise ConfigError(f"the images are named twice, {options.data!r} and {base.dataset_path!r}; name them once")
    if base.dataset_path is None and base.dataset is None:
        raise ConfigError("no images to search on: name their folder: sat-vg tune DATA --search …")
    if rows:
        given = {*base.given, *(one.name for one in dimensions)} - {*settings}
        rows = rows[: options.best or _USUAL_ROWS]
        dimensions.insert(0, choice_of_rows(rows, given))
        say(f"{counted(len(rows), 'row')} of {options.from_compare}: {', '.join(name for name, _ in rows)}")
    search = Search(base, tuple(dimensions))
    if not dimensions or len(search.combinations or (1, 2)) < 2:
        raise ConfigError(
            "there is nothing to search: give two values or a range; for example --search "
            "learning_rate=1e-5..1e-2:log weight_decay=1e-4,1e-3"
        )
    return search


def _tell_search(search: Search, most: int, first_epochs: int | None) -> None:
    combinations = search.combinations
    for one in search.dimensions:
        say(f"  {one.name}: {one.text}")
    if combinations is None:
        how = f"chosen by TPE with seed {search.base.seed}"
    elif most >= len(combinations):
        how = "every combination once"
    else:
        how = f"the first of {len(combinations)} combinations"
    pruned = "none is stopped early"
    if first_epochs is not None:
        pruned = f"one below the median is stopped early, after epoch {first_epochs} at the soonest"
    say(f"{counted(min(most, len(combinations or range(most))), 'trial')}, {how}; {pruned}")


def _run_trial(trial: RunningTrial, config: FinetuneConfig, metric: str, most: int, told: set[str]) -> None:
    """Train a trial to its end, or until it is below the median, and write down how it ended.

    ``told`` are warnings of trainings that were shown already.

    Raises ConfigError where the training refuses its settings or images, as it would in the next try.
    """
    folder = trial.folder
    say(f"[{trial.number}/{most}] {all_shown(trial.values)}")
    wait_for_orphan(folder / "checkpoints")
    ended = _train(trial, config, metric, told)
    stopped_by = None if ended is None else ended.stopped_by
    if stopped_by is None and trial.is_below_median(_scores(folder, metric, config.num_epochs)):
        trial.end(len(_scores(folder, metric)))
        say("  stopped early: below the median of the trials before")
        return
    assert ended is not None
    if stopped_by is not None:
        raise InterruptedRun(
            f"stopped while trial {trial.number} was trained, which saved its state if it had begun; the same "
            "command goes on",
            stopped_by,
        )
    if ended.code:
        reason = why_it_failed(ended.code, folder / OUTPUT)
        if ended.code == EXIT_BAD_INPUT:
            raise ConfigError(
                f"trial {trial.number} cannot be trained: {reason}\nMend that, and the same command goes on; or "
                "leave the value out of the search, with another --out"
            )
        trial.end(len(_scores(folder, metric)), reason=reason)
        say(f"  failed: {reason}")
        return
    scores = _scores(folder, metric).values()
    if not scores:  # the training had ended before, and somebody removed its log
        trial.end(0, reason=f"there is no epoch in {folder / 'logs' / METRICS}")
        say(f"  failed: there is no epoch in {folder / 'logs' / METRICS}")
        return
    score = min(scores) if metric == "val_loss" else max(scores)
    trial.end(len(scores), score)
    say(f"  {_described(metric, score)}")


def _train(trial: RunningTrial, config: FinetuneConfig, metric: str, told: set[str]) -> EndedTraining | None:
    """Run the training of a trial, and stop it once it is below the median; None where it was so before."""
    folder = trial.folder
    own = {"checkpoint_dir": str(folder / "checkpoints"), "log_dir": str(folder / "logs")}
    with explaining_writing(f"{str(folder)!r} cannot be written to", ": make room"):
        placed = config.replace(**own)
        # No more than was set: a default may still make room for a strategy that the training chooses.
        write_text(folder / CONFIG, placed.as_yaml(placed.given))
        if trial.is_below_median(_scores(folder, metric, config.num_epochs)):
            return None
        process = TrainingProcess(["--config", str(folder / CONFIG)], folder / OUTPUT)
        for line in process.lines():
            if line.startswith(("epoch ", "going on with")):
                say(f"  {line}")
            elif line.startswith("warning: the starting weights") and line not in told:
                say(f"  {line}")
                told.add(line)
            if line.startswith("epoch ") and trial.is_below_median(_scores(folder, metric, config.num_epochs)):
                process.stop()
    return process.ended


def _scores(folder: Path, metric: str, below: int | None = None) -> dict[int, float]:
    """The measure of each epoch so far, by its number; those from ``below`` on are left out."""
    path = folder / "logs" / METRICS
    epochs = read_metric_lines(path).ended_epochs if path.exists() else []
    key = "macro_f1" if metric == "val_macro_f1" else metric
    return {row["epoch"]: float(row[key]) for row in epochs if below is None or row["epoch"] < below}


def _described(metric: str, score: float | None) -> str:
    if score is None:
        return "-"
    return f"{metric} {score:.4f}" if metric == "val_loss" else f"{metric} {100 * score:.2f} %"


def _require_success(study: SearchStudy, most: int) -> None:
    """Stop where the first trials have all failed, as the others will."""
    rows = study.rows()
    failed = [row for row in rows if row.state == "failed"]
    if len(failed) == len(rows) and len(failed) >= min(_FAILURES_TO_STOP, most):
        raise StoppedError(
            f"the first {counted(len(failed), 'trial')} failed, the last with: {failed[-1].reason}\nits output: "
            f"{study.folder_of(failed[-1].number) / OUTPUT}. Mend the cause, and search anew with another --out"
        )


def _write_results(study: SearchStudy, search: Search, metric: str) -> None:
    """Print the table, and write it, the chart, and the configuration and command of the best."""
    rows, out = study.rows(), study.out
    done = [row for row in rows if row.state == "done"]
    names = search.names
    cells = [
        (place, row.number, *(shown(row.values.get(n)) for n in names), score, row.epochs or "-", row.state)
        for place, row in enumerate(rows, 1)
        for score in [_described(metric, row.score).removeprefix(f"{metric} ")]
    ]
    say("\n" + text_table(("rank", "trial", *names, metric, "epochs", "state"), cells))
    running = sum(row.state == "running" for row in rows)
    if running:
        say(f"{counted(running, 'trial')} still run in another process; the last of them writes all results")
    if not done:
        raise StoppedError("no trial has been trained to its end, so there is no best one")
    importances = study.importances()
    best = search.config_of(done[0].values)
    command = shlex.join(["sat-vg", "train", *best.as_flags(leave_out=OWN_FIELDS)])
    content = {
        "metric": metric,
        "best": {**asdict(done[0]), "settings": best.to_dict(), "command": command},
        "trials": [asdict(row) for row in rows],
        "importances": importances,
    }
    table = [(row.number, row.state, row.score, row.epochs, *(row.values.get(n) for n in names)) for row in rows]
    is_share = metric != "val_loss"
    points = [(row.number, row.score, row.state == "done") for row in rows if row.score is not None]
    with explaining_writing(f"the results cannot be written to {str(out)!r}", ": make room"):
        write_text(out / "trials.csv", csv_text(("trial", "state", metric, "epochs", *names), table))
        write_text(out / RESULTS, json.dumps(content, indent=1) + "\n")
        write_text(out / BEST, best.as_yaml(best.given - {*OWN_FIELDS}))
        with atomic_write(out / "importance.png") as file:
            draw_trials(points, importances, metric, is_share).savefig(file, format="png", dpi=130)
    for name, share in importances.items():
        say(f"importance of {name}: {100 * share:.0f} %")
    folder = study.folder_of(done[0].number)
    say(f"\nbest: trial {done[0].number}, {_described(metric, done[0].score)}; its files: {folder}")
    say(f"  {command}")
    say(f"written to {out}: trials.csv, {RESULTS}, {BEST}, importance.png")
