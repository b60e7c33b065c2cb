"""The card beside an exported file: what it is, what it takes, what it was made of (Mitchell et al., 2019).

Class names, settings and metrics come from a checkpoint, which may be a stranger's: in Markdown every character that
could mean more than itself is written as an entity, and of paths only the last part is kept.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePath
from typing import Any

from sat_vg.backbone_finetuning.configs.yaml_files import yaml_text
from sat_vg.backbone_finetuning.models.artifact import current_versions
from sat_vg.backbone_finetuning.models.exports.contract import OUTPUT_KINDS, Contract, Difference, Format
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.preprocessing import RGB, Preprocessing
from sat_vg.backbone_finetuning.utils.printable import one_line

SCHEMA = 1
LIBRARY = "sat_vg"
HUB_HEAD = f"---\nlibrary_name: {LIBRARY}\n"  # what every card for readers begins with
NOT_SET = "not set (--license)"
# Settings that say where and how a run was kept, and nothing about its weights.
_HOUSEKEEPING = {
    *("checkpoint_dir", "log_dir", "resume", "device", "num_workers", "loader_timeout", "log_every"),
    *("save_frequency", "save_every_steps", "save_every_minutes", "max_checkpoints"),
}
# Characters that mean more than themselves in a cell of a table; _ within a word and : before a space do not.
_MEANINGFUL = re.compile(r"[\\`*\[\]{}<>&|~$@]|(?<![^\W_])_|_(?![^\W_])|:(?=\S)")
_LONGEST = 500  # characters of a text from the checkpoint
_LIMITS = (
    "The metrics are of the validation images by which the weights were chosen. Other sensors, resolutions, seasons "
    "and regions were not tested. Images of classes that are not listed are assigned to one that is."
)
# The names that hubs know licences by; any other one is "other" there, with its name beside it.
_HUB_LICENSES = {
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0"),
    *("cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-3.0", "cc-by-nc-4.0"),
    *("cc-by-nd-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "openrail", "odbl", "unlicense"),
}
_HUB_METRICS = {"val_accuracy": "accuracy", "macro_f1": "f1", "micro_f1": "f1", "val_map": "mean_average_precision"}


def build_card(
    model: FineTuneModel,
    contract: Contract,
    differences: Sequence[Difference],
    file: Mapping[str, Any],
    facts: Mapping[str, Any],
    made_by: Format,
) -> dict[str, Any]:
    """The card as plain data.

    Args:
        model: that was exported.
        contract: of the file.
        differences: from the model, as they were measured.
        file: ``name``, ``bytes`` and ``sha256`` of it.
        facts: ``license``, ``tolerance``, ``note`` and ``checkpoint`` (its name and hash).
        made_by: the format.
    """
    recorded = plain(model.provenance.get("config") or {})
    config = {name: _without_folder(name, value) for name, value in recorded.items() if name not in _HOUSEKEEPING}
    return {
        "card": "sat_vg.model_card",
        "schema": SCHEMA,
        "file": {**file, "format": contract.format},
        "backbone": model.backbone,
        "part": contract.part,
        "parameters": sum(model.parameter_counts().values()),
        "limits": _LIMITS,
        "license": facts["license"],
        "input": {
            "dtype": contract.dtype,
            "layout": "[batch, channels, height, width]",
            "channels": list(model.preprocessing.bands),
            "sizes": contract.sizes,
            "fixed_size": contract.fixed_size,
            "smallest": contract.smallest,
            "multiple": contract.multiple,
            "note": facts["note"],
            "steps": input_steps(model.preprocessing, contract),
        },
        "outputs": _outputs(model, contract),
        "preprocessing": model.preprocessing.to_dict(),
        "data": {
            "name": config.get("dataset") or config.get("dataset_path") or "not recorded (or the built-in scenes)",
            "classes": list(model.class_names),
            "images": recorded.get("num_images") or "not recorded",
        },
        "metrics": plain(model.provenance.get("metrics") or {}),
        "provenance": {
            "checkpoint": facts["checkpoint"],
            "config": config,
            "versions": plain(model.provenance.get("versions") or {}),
        },
        "versions": {**current_versions(), **{name: _version(name) for name in made_by.packages}},
        "differences": [asdict(one) for one in differences],
        "tolerance": facts["tolerance"],
        "usage": made_by.usage(model, contract, file["name"]),
    }


def _without_folder(name: str, value: Any) -> Any:
    """A path by its last name: a card tells nothing of the machine."""
    is_path = isinstance(value, str) and (
        name in ("dataset_path", "weights") or value.startswith("~") or PurePath(value).is_absolute()
    )
    return PurePath(value).name if is_path else value


def _outputs(model: FineTuneModel, contract: Contract) -> dict[str, Any]:
    outputs: dict[str, Any] = {"kind": OUTPUT_KINDS[contract.part], "names": list(contract.outputs)}
    outputs |= {"temperature": model.temperature, "task": model.task, "pool": model.row.pool}
    if contract.part == "extractor":
        extractor = model.get_feature_extractor(out_names=contract.outputs)
        outputs |= {"channels": list(extractor.channels), "strides": list(extractor.strides)}
    return outputs


def input_steps(preprocessing: Preprocessing, contract: Contract) -> str:
    """What an image has to go through before the file takes it, in words."""
    size, trained = contract.fixed_size or preprocessing.image_size, preprocessing.image_size
    steps = []
    if preprocessing.levels is not None:
        levels = zip(preprocessing.bands, preprocessing.levels.low, preprocessing.levels.high, strict=True)
        spread = ", ".join(f"{name} {low:.6g} to {high:.6g}" for name, low, high in levels)
        steps.append(f"spread 16-bit values, scale and offset applied, over 0 to 255 and clip them ({spread})")
    steps.append(
        f"resize the shorter side to {size} pixels ({preprocessing.interpolation}, antialiased) and cut the centre "
        f"of {size} × {size} out"
        + (", as in the training" if size == trained else f" (in the training it was {trained})")
        + (", or give whole images" if contract.part == "extractor" and contract.fixed_size is None else "")
    )
    if contract.dtype == "uint8":
        return "; ".join([*steps, "give the uint8 values 0 to 255 as they are: the file normalises"])
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (preprocessing.mean, preprocessing.std))
    has_tags = preprocessing.files is not None and preprocessing.files.scaling in ("tagged", "applied")
    values = "take the values as float32" + (", scale and offset tags applied" if has_tags else "")
    first = "divide by 255" if preprocessing.scale == Preprocessing.scale else values
    steps.append(f"{first}, subtract the mean ({mean}) and divide by the deviation ({std}) of each channel")
    return "; ".join(steps)


def prepare_lines(preprocessing: Preprocessing, contract: Contract) -> str:
    """Lines of Python that define ``prepare``: an image → ``[C, H, W]`` as the file takes it; they need torch.

    8-bit RGB images are PIL images or uint8 tensors; others are tensors ``[C, H, W]`` of the values in the files, or
    uint8 ones of 16-bit RGB, spread as ``input_steps`` says.
    """
    size = contract.fixed_size or preprocessing.image_size
    is_spread = preprocessing.levels is not None
    is_rgb = preprocessing.bands == RGB and preprocessing.files is None and not is_spread
    mode = preprocessing.interpolation.upper()
    steps = ["v2.RGB()", "v2.PILToTensor()"] if is_rgb else []
    steps += [
        f"v2.Resize({size}, interpolation=v2.InterpolationMode.{mode}, antialias=True)",
        f"v2.CenterCrop({size})",
    ]
    if contract.dtype != "uint8":
        scale = ", scale=True" if preprocessing.scale == Preprocessing.scale else ""
        steps.append(f"v2.ToDtype(torch.float32{scale})")
        steps.append(f"v2.Normalize(mean={list(preprocessing.mean)}, std={list(preprocessing.std)})")
    takes = "a PIL image" if is_rgb else f"a tensor [C, H, W] of {', '.join(preprocessing.bands)}"
    if is_spread:
        takes = "a uint8 tensor [C, H, W] of the 16-bit values, spread as said before"
    if not takes.isprintable() or "`" in takes:  # names of bands from a checkpoint must not end the comment
        takes = "the bands above"
    body = "".join(f"    {step},\n" for step in steps)
    return f"prepare = v2.Compose([  # of {takes}\n{body}])"


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


def _front_matter(card: Mapping[str, Any]) -> dict[str, Any]:
    """What a model hub reads off the head of a README.md: licence, library, tags, task and metrics.

    A licence that is not set is left out. Metrics are listed with their values where the file has the classifier.
    """
    is_classifier = card["part"] == "classifier"
    task = "image-classification" if is_classifier else "image-feature-extraction"
    metrics = {
        name: card["metrics"][name]
        for name in _HUB_METRICS
        if isinstance(card["metrics"].get(name), int | float)  # not what was no number in the checkpoint
    }
    license_name = card["license"]
    named: dict[str, Any] = {"license": license_name.lower()} if license_name else {}
    if license_name and license_name.lower() not in _HUB_LICENSES:
        named = {"license": "other", "license_name": license_name}
    tags = [
        task,
        "remote-sensing",
        "satellite",
        "aerial",
        card["backbone"].lower(),
        card["file"]["format"],
        "pytorch",
    ]
    matter = {"library_name": LIBRARY, **named, "pipeline_tag": task, "tags": list(dict.fromkeys(tags))}
    if metrics:
        matter["metrics"] = list(dict.fromkeys(_HUB_METRICS[name] for name in metrics))
    if metrics and is_classifier:
        result = {
            "task": {"type": task},
            "dataset": {"type": "image_folder", "name": card["data"]["name"], "split": "validation"},
            "metrics": [
                {"type": _HUB_METRICS[name], "name": name, "value": value} for name, value in metrics.items()
            ],
        }
        matter["model-index"] = [{"name": card["file"]["name"], "results": [result]}]
    return matter


def markdown(card: Mapping[str, Any]) -> str:
    """The card for a reader, and at its head, in YAML, for a model hub; the one for programs holds more."""
    file, inputs, outputs, data = card["file"], card["input"], card["outputs"], card["data"]
    worst = max(one["deviation"] for one in card["differences"])
    about = {
        "format": f"{file['format']}, {card['part']}",
        "backbone": f"{card['backbone']}, {card['parameters'] / 1e6:.2f} M parameters with the head",
        "limits": card["limits"],
        "licence": card["license"] or NOT_SET,
        "SHA-256": file["sha256"],
        "compared": f"differs from the checkpoint by {worst:.1e} at most, on random images",
        "more": f"settings, versions and hashes: {file['name']}.card.json",
    }
    takes = {
        "images": f"{inputs['dtype']} {inputs['layout']}, any number of them",
        "channels": ", ".join(inputs["channels"]),
        "sizes": inputs["sizes"] + (f" ({inputs['note']})" if inputs["note"] else ""),
        "before": inputs["steps"],
    }
    gives = {"what": outputs["kind"], "names": ", ".join(outputs["names"])}
    trained = {"data": data["name"], "images": data["images"]}
    if card["part"] == "classifier":
        kind = "sigmoid (each class for itself)" if outputs["task"] == "multi_label" else "softmax"
        divided = "" if outputs["temperature"] == 1 else f" divided by {outputs['temperature']:.6g}"
        gives["probabilities"] = f"the {kind} of the logits{divided}"
    else:
        trained["metrics below"] = "of the whole model; its classifier is not in this file"
    maps = zip(outputs["names"], outputs.get("channels", ()), outputs.get("strides", ()), strict=False)
    gives |= {name: f"{channels} channels at stride {stride}" for name, channels, stride in maps}
    sections = {
        "Takes": _table(takes.items()),
        "Gives": _table(gives.items()),
        "Training": _table([*trained.items(), *card["metrics"].items()]),
        "Classes, in the order of the outputs": _table(enumerate(data["classes"]), ("", "class")),
    }
    head = f"---\n{yaml_text(_front_matter(card))}---\n\n# {_text(file['name'])}\n\n{_table(about.items())}\n"
    use = f"\n## Use\n\n```python\n{card['usage']}\n```\n"
    return head + use + "".join(f"\n## {title}\n\n{table}\n" for title, table in sections.items())


def _table(rows: Iterable[Sequence[object]], header: Sequence[str] = ("", "")) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(_text(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _text(value: object) -> str:
    """Any text as Markdown that shows just this text."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return _MEANINGFUL.sub(lambda match: f"&#{ord(match[0])};", one_line(str(value)))
