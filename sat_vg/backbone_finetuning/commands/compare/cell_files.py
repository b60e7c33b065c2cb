"""The folder of one cell of a comparison: its settings, whether it is finished, and its results.

``config.yaml`` holds the settings, ``output.txt`` the end of the training's output, ``usage.json`` time and memory of
its processes so far, and ``cell.json`` the results; it is written when the cell is finished.
"""

import json
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sat_vg.backbone_finetuning.configs.finetune_config import FIELDS_FREE_ON_RESUME, FinetuneConfig
from sat_vg.backbone_finetuning.configs.ranges import rules_of
from sat_vg.backbone_finetuning.data.sources.splits import Splits
from sat_vg.backbone_finetuning.models.artifact import BEST_MODEL
from sat_vg.backbone_finetuning.training.epoch_curves import GPU_PEAK
from sat_vg.backbone_finetuning.training.event_files import EVENT_FILES
from sat_vg.backbone_finetuning.training.metric_lines import METRICS, read_metric_lines
from sat_vg.backbone_finetuning.training.preparation import check_images, decoder_of_config, find_images
from sat_vg.backbone_finetuning.training.run_identity import contents_of, fingerprint_of
from sat_vg.backbone_finetuning.utils import json_reading
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError
from sat_vg.backbone_finetuning.utils.file_locks import is_alive
from sat_vg.backbone_finetuning.utils.folder_lock import LOCK, lock_folder
from sat_vg.backbone_finetuning.utils.safe_files import write_text
from sat_vg.backbone_finetuning.utils.terminal import say

CONFIG, CELL, USAGE, OUTPUT = "config.yaml", "cell.json", "usage.json", "output.txt"
SCHEMA = 1
_MAX_JSON_BYTES = 2**20


_CAME_LATER = ("map", "train_loss", "val_loss", "top_5", "gpu_gib")


@dataclass(frozen=True)
class CellResult:
    """Results of a finished cell."""

    accuracy: float  # of best_model.pt on the validation images, a share of 1
    macro_f1: float  # mean of the classes' F1 there, a share of 1
    epoch: int  # of the weights in best_model.pt
    epochs: int  # number of epochs trained
    training_seconds: float  # of all epochs, without validation, start and end
    seconds: float  # total run time of the processes
    peak_gib: float | None  # peak memory of a training process, in GiB; None where it is unknown
    val_images: int  # number of validation images
    data: str  # hash of all images' names, labels and splits
    # mean average precision there, a share of 1, where an image can have several classes; else None
    map: float | None = None
    # mean loss over the training images in the epoch of best_model.pt; None: nothing was trained by then, or the
    # record is of an earlier version
    train_loss: float | None = None
    # loss of best_model.pt on the validation images; None in records of earlier versions
    val_loss: float | None = None
    # share of the images whose class is among the five most likely ones; None where that says nothing, with 5 classes
    # or fewer, or is not known
    top_5: float | None = None
    # peak memory of the tensors on the GPU, in GiB; None where none was used, or it is not known
    gpu_gib: float | None = None

    @property
    def score(self) -> float:
        """The measure of the comparison: accuracy, or mAP where an image can have several classes."""
        return self.accuracy if self.map is None else self.map

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what came with later versions is left out where it is None."""
        return {name: value for name, value in asdict(self).items() if value is not None or name not in _CAME_LATER}


@dataclass
class Usage:
    """Time and memory of a cell's processes, over all calls of the command."""

    peak_bytes: int | None = None  # the largest peak of all processes
    seconds: float = 0.0  # their total run time
    is_whole: bool = True  # whether the end of each was observed; otherwise the peak is unknown
    is_running: bool = False  # whether a process was started whose end was not observed yet

    def begin(self) -> None:
        """Record the start of a process."""
        self.is_whole = self.is_whole and not self.is_running
        self.is_running = True

    def end(self, peak_bytes: int | None, seconds: float) -> None:
        """Record its end."""
        self.is_running = False
        self.is_whole = self.is_whole and peak_bytes is not None
        self.peak_bytes = max(self.peak_bytes or 0, peak_bytes or 0)
        self.seconds += seconds

    @property
    def peak_gib(self) -> float | None:
        """The peak in GiB; None where it is unknown."""
        return self.peak_bytes / 2**30 if self.is_whole and self.peak_bytes else None


def checked_images(config: FinetuneConfig) -> tuple[Splits, str]:
    """The images as a training splits them, and a hash of names, labels, splits, and of what each split shows."""
    found = find_images(config)
    checked = check_images(config, found, decoder_of_config(config, found))
    return checked.splits, ":".join((fingerprint_of(checked.splits), *contents_of(checked).values()))


def read_usage(folder: Path) -> Usage:
    """The stored usage; zero where there is no valid file."""
    rules = rules_of(Usage)
    known = {name: value for name, value in read_json(folder / USAGE).items() if name in rules}
    is_sound = all(rules[name].holds(value) for name, value in known.items())
    return Usage(**known) if is_sound else Usage(is_whole=False)


def write_usage(folder: Path, usage: Usage) -> None:
    """Store the usage, atomically."""
    write_text(folder / USAGE, json.dumps(asdict(usage)) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small JSON file; empty where there is none or it is damaged."""
    try:
        content = json_reading.read_json(path, _MAX_JSON_BYTES)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_result(folder: Path) -> CellResult | None:
    """The results of a finished cell; None where the record is missing or invalid, or its best model is missing."""
    content = read_json(folder / CELL)
    result = content.get("result")
    if content.get("schema") != SCHEMA or not isinstance(result, dict):
        return None
    if not (folder / "checkpoints" / BEST_MODEL).is_file():
        return None
    rules = rules_of(CellResult)
    if {*result, *_CAME_LATER} != {*rules} or not all(rules[name].holds(value) for name, value in result.items()):
        return None
    found = CellResult(**result)
    return found if found.to_dict() == result else None  # where it says None of what would be left out


def write_result(folder: Path, config: FinetuneConfig, result: CellResult, versions: Mapping[str, str]) -> None:
    """Write cell.json, which marks the cell as finished, atomically."""
    content = {"schema": SCHEMA, "settings": config.to_dict(), "result": result.to_dict(), "versions": dict(versions)}
    write_text(folder / CELL, json.dumps(content, indent=1) + "\n")


def changed_fields(folder: Path, wanted: FinetuneConfig) -> dict[str, tuple[Any, Any]]:
    """The stored and the wanted value of each setting that matters and differs.

    Raises ConfigError where the stored ones cannot be used any more.
    """
    path = folder / CONFIG
    if not path.exists():
        return {}
    earlier, now = FinetuneConfig.from_yaml(path).to_dict(), wanted.to_dict()
    if now["early_stopping_metric"] is None and earlier["early_stopping_metric"] == "val_accuracy":
        now["early_stopping_metric"] = "val_accuracy"  # the default of earlier versions
    names = [name for name in now if name not in FIELDS_FREE_ON_RESUME]
    return {name: (earlier[name], now[name]) for name in names if earlier[name] != now[name]}


def changed_settings(folder: Path, wanted: FinetuneConfig) -> list[str]:
    """The differences between the stored and the wanted settings, a line for each setting that matters."""
    try:
        changed = changed_fields(folder, wanted)
    except ConfigError as error:
        return [f"{folder / CONFIG} cannot be used any more: {str(error).splitlines()[0]}"]
    return [f"{name}: was {earlier!r}, now {now!r}" for name, (earlier, now) in changed.items()]


def put_aside(folder: Path, earlier: Path) -> None:
    """Move a cell into the folder of earlier ones."""
    earlier.mkdir(parents=True, exist_ok=True)
    number = 1
    while (target := earlier / f"{folder.name}-{number}").exists():
        number += 1
    folder.rename(target)
    say(f"moved aside: {target}")


def ended_epochs(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that end epochs. Raises DataError where the file is gone or damaged."""
    path = folder / "logs" / METRICS
    try:
        found = read_metric_lines(path)
        if found.dropped:
            raise ValueError(f"line {found.dropped[0]} is damaged")
        return found.ended_epochs
    except (OSError, ValueError) as error:
        raise DataError(
            f"{str(path)!r} cannot be read ({error}); move {str(folder)!r} away and start again"
        ) from error


def gpu_peak(folder: Path) -> float | None:
    """The most memory that tensors of a training had on its GPU, in GiB, as its log says; None without a GPU."""
    if not any((folder / "logs").glob(EVENT_FILES)):
        return None
    events = EventAccumulator(str(folder / "logs"), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
    events.Reload()
    if GPU_PEAK not in events.Tags()["scalars"]:
        return None
    return max(float(event.value) for event in events.Scalars(GPU_PEAK))


def wait_for_orphan(checkpoints: Path) -> None:
    """Wait for a training in this folder that an earlier call, which was killed, has left running."""
    said = False
    while True:
        holder = read_json(checkpoints / LOCK)
        if holder.get("host") != platform.node() or not is_alive(holder.get("pid")):
            return
        try:
            with lock_folder(checkpoints):
                return  # a stale lock: its process number was reused
        except ConfigError:
            if not said:
                say(
                    f"  process {holder['pid']}, which an earlier call has left behind, still runs this training; "
                    f"waiting for it (kill {holder['pid']} lets it save and end)"
                )
                said = True
            time.sleep(1)
