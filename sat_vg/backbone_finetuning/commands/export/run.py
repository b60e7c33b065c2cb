"""From a best_model.pt to a file for other programs: written aside, read back, compared, then put in place."""

import glob
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sat_vg.backbone_finetuning.commands.export.cli import ExportCommandOptions
from sat_vg.backbone_finetuning.commands.trained_models import model_file
from sat_vg.backbone_finetuning.models.exports import FORMATS
from sat_vg.backbone_finetuning.models.exports.contract import (
    Contract,
    Difference,
    ExportFailedError,
    ExportOptions,
    Format,
    compare,
    load_format,
)
from sat_vg.backbone_finetuning.models.exports.model_card import HUB_HEAD, NOT_SET, build_card, markdown
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.reports.tables import text_table
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, ConfigError, WriteError
from sat_vg.backbone_finetuning.utils.file_stamps import sha256_of
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.safe_files import folder_aside, remove_unfinished, sync, write_text
from sat_vg.backbone_finetuning.utils.terminal import say


def export_or_verify(options: ExportCommandOptions) -> None:
    """What the command does: see ``export_checkpoint`` and ``verify_export``."""
    export_checkpoint(options) if options.verify is None else verify_export(options)


def export_checkpoint(options: ExportCommandOptions) -> dict[str, Any]:
    """Write the file and its two cards, once the file gives the model's numbers when it is read; returns the card.

    Raises:
        ConfigError: an option cannot be used with this format or this model.
        CheckpointError: the checkpoint cannot be read, or no file could be made that gives its numbers.
        WriteError: the file cannot be written.
    """
    out, exporter = _require_sound(options)
    source = model_file(options.checkpoint)
    model = FineTuneModel.load_checkpoint(source)
    if out.exists() and out.samefile(source):
        raise ConfigError(f"--out {options.out}: is the checkpoint itself; choose another name")
    wanted = ExportOptions(
        part=options.part or "classifier",
        with_normalisation=options.with_normalisation,
        with_head=options.with_head,
        fixed_size=options.fixed_size,
    )
    with _aside(out) as aside:
        contract, differences, note = make_export(exporter, model, wanted, aside, options.tolerance)
        card = build_card(
            model,
            contract,
            differences,
            {"name": out.name, "bytes": aside.stat().st_size, "sha256": sha256_of(aside).hexdigest()},
            {
                "license": options.license,
                "tolerance": options.tolerance,
                "note": note,
                "checkpoint": {"name": source.name, "sha256": sha256_of(source).hexdigest()},
            },
            exporter,
        )
        cards = {
            f"{out.name}.card.json": json.dumps(card, indent=1) + "\n",
            "README.md" if options.readme else f"{out.name}.card.md": markdown(card),
        }
        for name, text in cards.items():
            write_text(aside.with_name(name), text)
        sync(aside)  # not every format's own writer does so
        _put_in_place(aside, out, list(cards))
    inputs, outputs = card["input"], card["outputs"]
    say(f"difference from the checkpoint on random images (tolerance {options.tolerance:.0e}):")
    say(_table_of(differences))
    say(f"input    {inputs['dtype']} [B, {len(inputs['channels'])}, H, W], {inputs['sizes']}")
    say(f"outputs  {', '.join(outputs['names'])}: {outputs['kind']}")
    say(f"licence  {options.license or NOT_SET}")
    say(f"written: {out} ({card['file']['bytes'] / 1e6:.1f} MB), {', '.join(cards)}")
    return card


def _require_sound(options: ExportCommandOptions) -> tuple[Path, Format]:
    """The path to write to and the format, once the options fit together."""
    if options.format is None or options.out is None:
        raise ConfigError(f"say what to write and where: --format {'|'.join(FORMATS)} --out PATH; or --verify FILE")
    exporter = load_format(options.format)
    out = expand_home(options.out)
    if out.suffix not in exporter.endings or out.name == out.suffix:
        raise ConfigError(
            f"--out {options.out}: a file of --format {options.format} ends in {' or '.join(exporter.endings)}"
        )
    if out.is_dir():
        raise ConfigError(f"--out {options.out}: is a folder; name a file in it")
    readme = out.with_name("README.md")
    if options.readme and readme.exists() and not readme.read_bytes().startswith(HUB_HEAD.encode()):
        raise ConfigError(
            f"--readme true: {str(readme)!r} is no card of this program; move it, or choose another --out"
        )
    superfluous = [name for name in _given(options) if name in vars(ExportOptions()) and name not in exporter.options]
    if superfluous:
        known = ", ".join(f"--{name}" for name in sorted(exporter.options))
        raise ConfigError(
            f"--{superfluous[0]} says nothing for --format {options.format}, which "
            + (f"knows {known}" if known else "has no options")
        )
    return out, exporter


def _given(options: ExportCommandOptions) -> list[str]:
    """The options that are not at their defaults, in alphabetical order."""
    defaults = ExportCommandOptions(checkpoint="")
    return sorted(name for name, value in vars(options).items() if value != getattr(defaults, name))


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A path of the same name in a folder beside it, which is removed at the end with what is left in it."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(out.parent, [glob.escape(out.name)])  # under other names than the next line's too
        with folder_aside(out) as folder:
            yield folder / out.name
    except (OSError, WriteError) as error:
        cause = error.__cause__ if isinstance(error, WriteError) else error
        raise WriteError(
            f"{str(out)!r} cannot be written ({getattr(cause, 'strerror', None) or cause}); what was there before is "
            "untouched. Make room or choose another --out"
        ) from error


def _put_in_place(aside: Path, out: Path, cards: Sequence[str]) -> None:
    """Rename the file and its cards; the old cards go first, so that none ever describes another file."""
    for name in (*cards, f"{out.name}.card.md"):
        out.with_name(name).unlink(missing_ok=True)
    for name in (out.name, *cards):
        aside.with_name(name).replace(out.with_name(name))
    sync(out.parent)


def make_export(
    exporter: Format, model: FineTuneModel, options: ExportOptions, path: Path, tolerance: float
) -> tuple[Contract, list[Difference], str]:
    """Write the file to ``path`` and compare it; for images of one size only where it must be so.

    Returns what the file takes and gives, how far its numbers are off, and why it is of one size, if it is. Raises
    CheckpointError where neither way gives the model's numbers.
    """
    is_traced = "fixed_size" in exporter.options
    attempts = [(options, "asked for with --fixed_size" if options.fixed_size else "")]
    if is_traced and options.fixed_size is None:
        trained = replace(options, fixed_size=model.preprocessing.image_size)
        reason = model.row.family.why_traced_at_one_size
        attempts = [(trained, reason)] if reason else [*attempts, (trained, "")]
    failure = ""
    for attempt, reason in attempts:
        note = reason or failure
        size = attempt.fixed_size
        if is_traced:
            sizes = "all sizes" if size is None else f"{size} × {size} pixels only"
            say(f"tracing the {attempt.part} for {sizes}" + (f": {note}" if note else ""))
        try:
            contract = exporter.write(model, attempt, path)
            reading = exporter.read(path, model)
            if reading.contract != contract:
                raise ExportFailedError(f"it was read back as {reading.contract} and written as {contract}")
            differences = compare(model, reading)
            _require_close(differences, tolerance)
            return contract, differences, note
        except ExportFailedError as error:
            failure = str(error)
    raise CheckpointError(
        f"{model.backbone} could not be exported: {failure}. Nothing was left behind. Try another --format"
        + (", or a larger --tolerance if you can live with it" if "the tolerance" in failure else "")
    )


def _require_close(differences: Sequence[Difference], tolerance: float) -> None:
    worst = max(differences, key=lambda one: one.deviation)
    if worst.deviation > tolerance:
        raise ExportFailedError(
            f"its numbers differ by {worst.deviation:.1e} on {worst.batch} × {worst.height} × {worst.width}, above "
            f"the tolerance of {tolerance:.0e}"
        )


def verify_export(options: ExportCommandOptions) -> list[Difference]:
    """Compare an earlier export with the checkpoint. Raises CheckpointError where it is another."""
    assert options.verify is not None
    superfluous = [name for name in _given(options) if name not in ("checkpoint", "verify", "format", "tolerance")]
    if superfluous:
        raise ConfigError(
            f"--{superfluous[0]} says nothing beside --verify, which reads it off the file; leave it out"
        )
    path = expand_home(options.verify)
    model = FineTuneModel.load_checkpoint(model_file(options.checkpoint))
    name = options.format or _format_of(path)
    exporter = load_format(name)
    try:
        exporter.require_own(path, model)
        reading = exporter.read(path, model)
        differences = compare(model, reading)
        say(_table_of(differences))
        _require_close(differences, options.tolerance)
    except ExportFailedError as error:
        raise CheckpointError(
            f"{str(path)!r} is not what {options.checkpoint} is: {error}. It was made of another checkpoint, or "
            "altered; export it again"
        ) from error
    say(f"{path}: {name}, {reading.contract.part}: agrees with {options.checkpoint}")
    return differences


def _format_of(path: Path) -> str:
    """The format of a file, by its ending, or by its content where two formats share one."""
    if not path.is_file():
        raise CheckpointError(f"there is no file {str(path)!r}; check the path")
    fitting = [name for name in FORMATS if path.suffix in load_format(name).endings]
    if not fitting:
        raise ConfigError(f"--verify {path}: ends in none of the endings that exports have; say --format as well")
    return next((name for name in reversed(fitting[1:]) if load_format(name).is_own(path)), fitting[0])


def _table_of(differences: Sequence[Difference]) -> str:
    rows = [
        (f"{one.batch} × {one.height} × {one.width}", f"{one.absolute:.1e}", f"{one.relative:.1e}")
        for one in differences
    ]
    return text_table(("batch × height × width", "absolute", "relative"), rows)
