"""The card beside an exported file: what it is, what it takes, what it was made of (Mitchell et al., 2019).

Class names, settings and metrics come from a checkpoint, which may be a stranger's: in Markdown every character that
could mean more than itself is written as an entity, and of paths only the last part is told.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePath
from typing import Any

from sat_vg.backbone_finetuning.models.artifact import current_versions
from sat_vg.backbone_finetuning.models.exports.comparing import Difference
from sat_vg.backbone_finetuning.models.exports.contract import PARTS_GIVEN, Contract, Format
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.preprocessing import Preprocessing
from sat_vg.backbone_finetuning.utils.printable import one_line

SCHEMA = 1
NOT_SET = "not set: whoever passes the file on has to say it (--license)"
_PATHS = ("dataset_path", "weights")
# Settings that say where and how a run was kept, and nothing about its weights.
_HOUSEKEEPING = {
    *("checkpoint_dir", "log_dir", "resume", "device", "num_workers", "loader_timeout", "log_every"),
    *("save_frequency", "save_every_steps", "save_every_minutes", "max_checkpoints"),
}
# Characters that mean more than themselves in a cell of a table; _ within a word and : before a space do not.
_MEANINGFUL = re.compile(r"[\\`*\[\]{}<>&|~$@]|(?<![^\W_])_|_(?![^\W_])|:(?=\S)")
_LONGEST = 500  # characters of a text from the checkpoint
_INTENDED = {
    "classifier": "telling the classes below apart, on images like those it was trained on",
    "extractor": "a backbone for detection, visual grounding or segmentation on aerial and satellite images",
    "vector": "a backbone to fine-tune further, or vectors for retrieval and linear classifiers",
}
_LIMITS = (
    "The metrics are of the validation images that the weights were chosen by, so they flatter. Other sensors, "
    "resolutions, seasons and regions were not looked at. A class that is not listed is told as one that is."
)


def build_card(
    model: FineTuneModel,
    contract: Contract,
    differences: Sequence[Difference],
    file: Mapping[str, Any],
    told: Mapping[str, Any],
    made_by: Format,
) -> dict[str, Any]:
    """The card as plain data.

    Args:
        model: that was exported.
        contract: of the file.
        differences: from the model, as they were measured.
        file: ``name``, ``bytes`` and ``sha256`` of it.
        told: ``license``, ``tolerance``, ``note`` and ``checkpoint`` (its name and hash).
        made_by: the format.
    """
    recorded = plain(model.provenance.get("config") or {})
    config = _without_folders({name: value for name, value in recorded.items() if name not in _HOUSEKEEPING})
    return {
        "card": "sat_vg.model_card",
        "schema": SCHEMA,
        "file": {**file, "format": contract.format},
        "backbone": model.backbone,
        "part": contract.part,
        "parameters": sum(model.parameter_counts().values()),
        "intended_use": _INTENDED[contract.part],
        "limits": _LIMITS,
        "license": told["license"],
        "input": _input_of(model.preprocessing, contract, told["note"]),
        "outputs": {
            "kind": PARTS_GIVEN[contract.part],
            "names": list(contract.outputs),
            "temperature": model.temperature,
            "task": model.task,
            **_maps(model, contract),
        },
        "preprocessing": model.preprocessing.to_dict(),
        "data": {
            "name": config.get("dataset") or config.get("dataset_path") or "not recorded (or the built-in scenes)",
            "classes": list(model.class_names),
            "images": recorded.get("num_images") or "not recorded",
        },
        "metrics": plain(model.provenance.get("metrics") or {}),
        "provenance": {
            "checkpoint": told["checkpoint"],
            "config": config,
            "versions": plain(model.provenance.get("versions") or {}),
        },
        "versions": {**current_versions(), **{name: _version(name) for name in made_by.packages}},
        "differences": [asdict(one) for one in differences],
        "tolerance": told["tolerance"],
        "usage": made_by.usage(model, contract, file["name"]),
    }


def _without_folders(config: dict[str, Any]) -> dict[str, Any]:
    """Paths by their last names: a card tells nothing of the machine."""

    def is_path(name: str, value: str) -> bool:
        return name in _PATHS or value.startswith("~") or PurePath(value).is_absolute()

    return {
        name: PurePath(value).name if isinstance(value, str) and is_path(name, value) else value
        for name, value in config.items()
    }


def _input_of(preprocessing: Preprocessing, contract: Contract, note: object) -> dict[str, Any]:
    """What the file takes."""
    return {
        "dtype": contract.dtype,
        "layout": "[batch, channels, height, width]",
        "channels": list(preprocessing.bands),
        "batch": "any number of images",
        "sizes": contract.sizes,
        "fixed_size": contract.fixed_size,
        "smallest": contract.smallest,
        "multiple": contract.multiple,
        "note": note,
        "steps": input_steps(preprocessing, contract),
    }


def input_steps(preprocessing: Preprocessing, contract: Contract) -> str:
    """What an image has to go through before the file takes it, in words."""
    trained = preprocessing.image_size
    size = contract.fixed_size or trained
    geometry = (
        f"resize the shorter side to {size} pixels ({preprocessing.interpolation}, antialiased) and cut the centre "
        f"of {size} × {size} out"
    )
    if preprocessing.levels is not None:
        levels = zip(preprocessing.bands, preprocessing.levels.low, preprocessing.levels.high, strict=True)
        spread = ", ".join(f"{name} {low:.6g} to {high:.6g}" for name, low, high in levels)
        geometry = (
            f"spread 16-bit values, scale and offset applied, over 0 to 255 and clip them ({spread}); {geometry}"
        )
    geometry += ", as in the training" if size == trained else f" (in the training it was {trained})"
    if contract.part == "extractor" and contract.fixed_size is None:
        geometry += ", or give whole images"
    if contract.dtype == "uint8":
        return f"{geometry}; give the uint8 values 0 to 255 as they are: the file normalises"
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (preprocessing.mean, preprocessing.std))
    first = "divide by 255" if preprocessing.scale == Preprocessing.scale else _values_of(preprocessing)
    return f"{geometry}; {first}, subtract the mean ({mean}) and divide by the deviation ({std}) of each channel"


def _values_of(preprocessing: Preprocessing) -> str:
    files = preprocessing.files
    is_scaled = files is not None and files.scaling in ("tagged", "applied")
    return "take the values as float32" + (", scale and offset tags applied" if is_scaled else "")


def _maps(model: FineTuneModel, contract: Contract) -> dict[str, Any]:
    if contract.part != "extractor":
        return {}
    extractor = model.get_feature_extractor(out_names=contract.outputs)
    return {"channels": list(extractor.channels), "strides": list(extractor.strides)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def plain(value: Any, depth: int = 0) -> Any:
    """Values of a checkpoint as JSON takes them: what is no plain data becomes text, what is endless is cut off."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth < 4 and isinstance(value, Mapping):
        return {str(key)[:_LONGEST]: plain(item, depth + 1) for key, item in list(value.items())[:_LONGEST]}
    if depth < 4 and isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value[:_LONGEST]]
    return str(value)[:_LONGEST]


def markdown(card: Mapping[str, Any]) -> str:
    """The card for a reader."""
    file, inputs, outputs, data = card["file"], card["input"], card["outputs"], card["data"]
    facts = [
        ("format", f"{file['format']}, {card['part']}"),
        ("backbone", f"{card['backbone']}, {card['parameters'] / 1e6:.2f} M parameters with the head"),
        ("intended use", card["intended_use"]),
        ("limits", card["limits"]),
        ("licence", card["license"] or NOT_SET),
        ("SHA-256", file["sha256"]),
    ]
    takes = [
        ("images", f"{inputs['dtype']} {inputs['layout']}"),
        ("channels", ", ".join(inputs["channels"])),
        ("sizes", inputs["sizes"] + (f" ({inputs['note']})" if inputs["note"] else "")),
        ("batch", inputs["batch"]),
        ("before", inputs["steps"]),
    ]
    maps = zip(outputs["names"], outputs.get("channels", ()), outputs.get("strides", ()), strict=False)
    gives = [("what", outputs["kind"]), ("names", ", ".join(outputs["names"]))]
    if card["part"] == "classifier":
        calibrated = "" if outputs["temperature"] == 1 else f" divided by {outputs['temperature']:.6g}"
        several = outputs["task"] == "multi_label"
        kind = "sigmoid (each class for itself)" if several else "softmax"
        gives += [("probabilities", f"the {kind} of the logits{calibrated}")]
    gives += [(name, f"{channels} channels at stride {stride}") for name, channels, stride in maps]
    trained = [("data", data["name"]), ("images", data["images"])]
    if card["part"] != "classifier":
        trained.append(("metrics below", "of the whole model; its classifier is not in this file"))
    trained += _items(card["metrics"])
    measured = [
        (f"{one['batch']} × {one['height']} × {one['width']}", f"{one['absolute']:.1e}", f"{one['relative']:.1e}")
        for one in card["differences"]
    ]
    parts = [
        f"# {_text(file['name'])}",
        _table(("", ""), facts),
        f"## Use\n\n```python\n{card['usage']}\n```",
        f"## Takes\n\n{_table(('', ''), takes)}",
        f"## Gives\n\n{_table(('', ''), gives)}",
        f"## Training\n\n{_table(('', ''), trained)}",
        f"## Classes\n\nIn the order of the outputs.\n\n{_table(('', 'class'), list(enumerate(data['classes'])))}",
        "## Differences from the checkpoint\n\nOn random images; tolerance "
        f"{card['tolerance']:.0e}, of an output's largest number where that is above 1.\n\n"
        + _table(("batch × height × width", "absolute", "relative"), measured),
        f"## Made with\n\n{_table(('', ''), _items(card['versions']))}",
        f"## Checkpoint\n\n{_table(('', ''), _items(card['provenance']['checkpoint']))}",
        f"## Settings of the training\n\n{_table(('', ''), _items(card['provenance']['config']))}",
    ]
    return "\n\n".join(parts) + "\n"


def _items(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return list(values.items()) or [("not recorded", "")]


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(_text(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _text(value: object) -> str:
    """Any text as Markdown that shows just this text."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return _MEANINGFUL.sub(lambda match: f"&#{ord(match[0])};", one_line(str(value)))
