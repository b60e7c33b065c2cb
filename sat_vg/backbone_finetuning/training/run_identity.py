"""What makes two runs the same: their settings, images and course. Only then is a run resumed."""

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sat_vg.backbone_finetuning.configs.combinations import LP_FT_DEFAULTS
from sat_vg.backbone_finetuning.configs.finetune_config import FIELDS_FREE_ON_RESUME, FinetuneConfig
from sat_vg.backbone_finetuning.configs.retired import RETIRED
from sat_vg.backbone_finetuning.data.checks.readable import Readable
from sat_vg.backbone_finetuning.data.sources.class_names import same_form
from sat_vg.backbone_finetuning.data.sources.splits import Split, Splits
from sat_vg.backbone_finetuning.models.networks.table import find_backbone
from sat_vg.backbone_finetuning.training.phases import Phase
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, ConfigError
from sat_vg.backbone_finetuning.utils.terminal import say

# What means nothing beside another optimizer or schedule, which is told then.
_TOLD_BY_ANOTHER = frozenset({"momentum", "lr_step_size", "lr_gamma"})
TRANSFORM = "transform"  # stands beside the splits in the contents of images
PhasesOf = Callable[[FinetuneConfig], Sequence[Phase]]
# What they decide shows in the images themselves, their classes and splits, which are compared.
_SEEN_IN_THE_IMAGES = frozenset({"num_classes", "on_bad_image", "val_fraction", "train_split", "val_split"})
# What they decide shows in the phases, which are compared.
_SEEN_IN_THE_PHASES = frozenset({"num_epochs", "phase_epochs", "strategy", "last_layers", "probe_solver"})


@dataclass(frozen=True)
class RunIdentity:
    """What must agree for a run to be resumed.

    Attributes:
        config: the configuration as plain data.
        data_fingerprint: of the images' names, labels and splits.
        preprocessing: that the starting weights asked for; stored, not compared.
        image_contents: by split, of the images' pixels; under ``transform`` of what a user's own one does.
        resumed_from: where ``--resume PATH`` began; stored, see ``run_folder.find_run``.
    """

    config: dict[str, Any]
    data_fingerprint: str
    preprocessing: dict[str, Any]
    image_contents: dict[str, str] = field(default_factory=dict)
    resumed_from: dict[str, str] = field(default_factory=dict)


def fingerprint(names_and_labels: Sequence[tuple[str, int | str]], class_names: Sequence[str]) -> str:
    """A hash of which images there are, in which order, with which labels or contents."""
    digest = hashlib.sha256("\0".join(class_names).encode("utf-8", "surrogateescape"))
    for name, label in names_and_labels:
        digest.update(f"\0{name}\0{label}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def fingerprint_of(splits: Splits) -> str:
    """A hash of all images' names, labels and splits; moving the whole data set, to macOS too, does not change it."""
    root = os.path.commonpath([*splits.train.paths, *splits.val.paths])
    entries = [
        (same_form(f"{split.name}/{os.path.relpath(path, root)}"), _identity_of(split, label))
        for split in (splits.train, splits.val)
        for path, label in zip(split.paths, split.labels, strict=True)
    ]
    return fingerprint(entries, splits.class_names)


def contents_of(images: Readable) -> dict[str, str]:
    """By split, a hash of what its images show."""
    return {
        split.name: fingerprint([("", images.contents[path]) for path in split.paths], ())
        for split in (images.splits.train, images.splits.val)
    }


def _identity_of(split: Split, label: int) -> int | str:
    """What tells a label from others; where an image can have several classes its number alone does not."""
    return str(split.classes_of(label)) if split.is_multi_label else label


def check_identity(
    content: Mapping[str, Any], identity: RunIdentity, path: Path, phases_of: PhasesOf | None = None, way_on: str = ""
) -> None:
    """Refuse to go on with a run that would have come elsewhere with these settings, or that other data began.

    Args:
        content: of the state.
        identity: of what is to go on.
        path: of the state, for the message.
        phases_of: the phases that settings give; unset: settings are compared one by one.
        way_on: for the message, how to train on from the run's weights.

    Raises:
        CheckpointError: names every field that differs, with both values, and the ways out.
    """
    of_run, now = config_of_run(content, path), FinetuneConfig.from_dict(identity.config)
    differing = changed_course(of_run, now, content["state"], phases_of)
    differing += _changed_images(content, identity)
    if differing:
        raise CheckpointError(
            f"{str(path)!r} belongs to a run with other settings, which would change its course:\n  "
            + "\n  ".join(differing)
            + "\nGo on with the run's own settings, or begin another run with --checkpoint_dir DIR --log_dir DIR, "
            f"or begin anew here with --resume never (the old run is moved aside){way_on}"
        )


def _changed_images(content: Mapping[str, Any], identity: RunIdentity) -> list[str]:
    if content["data_fingerprint"] != identity.data_fingerprint:
        return ["the images: their names, classes or splits are not those that the run began with"]
    of_run = content.get("image_contents") or {}
    if identity.image_contents and not of_run:
        say("note: the run was begun by a version that kept no record of what the images show; whether any was "
            "replaced since is not known")  # fmt: skip
    changed = [
        f"the images of {split}: names and classes are the same, and what they show is not (or another version of "
        "Pillow or torchvision decodes them otherwise)"
        for split, digest in identity.image_contents.items()
        if of_run and split != TRANSFORM and of_run.get(split) != digest
    ]
    if identity.image_contents.get(TRANSFORM) != of_run.get(TRANSFORM):
        changed.append(
            "the transform given to finetune(): the run has another or none, or it draws from a random generator of "
            "its own; pass the same, and draw from torch's, NumPy's or Python's global one"
        )
    return changed


def config_of_run(content: Mapping[str, Any], path: object) -> FinetuneConfig:
    """The settings that a run was saved with; a field that came with a later version has its default's meaning.

    Raises:
        CheckpointError: they are not sound.
    """
    names = {*FinetuneConfig.field_names(), *RETIRED}
    known = {name: value for name, value in content["config"].items() if name in names}
    try:
        return FinetuneConfig.from_dict(known)
    except ConfigError as error:
        raise CheckpointError(f"{str(path)!r} holds settings that no run can have: {error}") from error


def as_begun(config: FinetuneConfig, of_run: FinetuneConfig) -> FinetuneConfig:
    """``config`` with the strategy of an earlier run, and what ``lp_ft`` set there, where nobody set them."""
    if not config.says_what_is_trained:
        config = config.replace(strategy=of_run.strategy)
    if config.strategy == of_run.strategy == "lp_ft":
        config = config.replace(**{n: getattr(of_run, n) for n in LP_FT_DEFAULTS if n not in config.given})
    return config


def changed_course(
    of_run: FinetuneConfig, now: FinetuneConfig, state: Mapping[str, Any], phases_of: PhasesOf | None = None
) -> list[str]:
    """The settings with which the run would not have come to where it stands, a line for each; none: it may go on.

    Args:
        of_run: settings that it was saved with.
        now: settings that it is to go on with.
        state: of the run, as plain data.
        phases_of: the phases that settings give; unset: all that they depend on is compared by itself.
    """
    free = FIELDS_FREE_ON_RESUME | _SEEN_IN_THE_IMAGES | (_SEEN_IN_THE_PHASES if phases_of else frozenset())
    then, values = _meaning(of_run), _meaning(now)
    if not (of_run.early_stopping_patience and now.early_stopping_patience):
        free |= {"early_stopping_min_delta"}
    changed = [name for name in values if name not in free and then[name] != values[name]]
    # By repr: True and 1 are equal, and freeze different numbers of stages.
    set_otherwise = [name for name in changed if repr(getattr(of_run, name)) != repr(getattr(now, name))]
    lines = [_difference(of_run, now, name) for name in set_otherwise]
    lines += [  # what fields that are left as they were mean beside others: weights beside pretrained
        f"{name}: the run has {then[name]!r}, now {values[name]!r}"
        for name in changed
        if name not in set_otherwise and name not in _TOLD_BY_ANOTHER
    ]
    if not _stopped_alike(of_run, now, state):
        lines.append(_difference(of_run, now, "early_stopping_patience"))
    if phases_of is not None:
        reason = _why_phases_differ(of_run, now, phases_of, state)
        differing = [name for name in _SEEN_IN_THE_PHASES if getattr(of_run, name) != getattr(now, name)]
        if reason is not None:
            lines += [f"{_difference(of_run, now, name)} ({reason})" for name in sorted(differing)]
    return lines


def reopened_place(then: Sequence[Phase], now: Sequence[Phase], state: Mapping[str, Any]) -> int | None:
    """The epochs of the last phase that a finished run has done, where more of them are asked for now.

    None where no more are given, or the run stopped early.
    """
    is_whole = _number(state, "epoch") == sum(phase.epochs for phase in then)
    return then[-1].epochs if is_whole and now[-1].epochs > then[-1].epochs else None


def _difference(of_run: FinetuneConfig, now: FinetuneConfig, name: str) -> str:
    before, after = of_run.to_dict()[name], now.to_dict()[name]
    return f"{name}: the run has {before!r}, now {after!r}"


def _meaning(config: FinetuneConfig) -> dict[str, Any]:
    """The settings, normalised: those that mean the same become equal, those without effect are left out."""
    values = config.to_dict()
    row = find_backbone(config.backbone)
    best = row.family.weights(row.name).get("DEFAULT")
    named = config.weights or "DEFAULT"
    values["backbone"] = row.name
    values["weights"] = (best.name if best else "none") if named == "DEFAULT" else named
    values["weights"] = values["weights"] if config.pretrained else "none"
    values["augmentation"] = config.augmentation if config.augments else "none"
    values["freeze_early_layers"] = str(config.freeze_early_layers)  # true and 1 are equal as values
    values["micro_batch_size"] = config.micro_batch_size or config.batch_size
    unused = ["pretrained", "use_augmentation", "early_stopping_patience"]
    if config.optimizer != "sgd":
        unused.append("momentum")
    if config.lr_scheduler == "cosine":
        unused += ["lr_step_size", "lr_gamma"]
    return values | dict.fromkeys(unused)


def _stopped_alike(of_run: FinetuneConfig, now: FinetuneConfig, state: Mapping[str, Any]) -> bool:
    """Whether another patience would not have ended the run, or a phase of it, sooner or later."""
    before, after = (config.early_stopping_patience or math.inf for config in (of_run, now))
    if before == after or _number(state, "epoch") < min(before, after):
        return True
    return after > before and not state.get("finished") and not _number(state, "phase")


def _why_phases_differ(
    of_run: FinetuneConfig, now: FinetuneConfig, phases_of: PhasesOf, state: Mapping[str, Any]
) -> str | None:
    """Why the phases behind the run, or the one that it is in, would have been others; None: they would not."""
    then, wanted = list(phases_of(of_run)), list(phases_of(now))
    if then == wanted:
        return None
    place, done = _number(state, "phase"), _number(state, "epoch_in_phase")
    if state.get("finished"):
        reopened = reopened_place(then, wanted, state)
        if reopened is None or len(wanted) != len(then):
            return "it has finished"
        if state.get("phase_best") is None:
            return "it has finished, and was saved by a version of sat_vg that kept too little to go on"
        place, done = len(then) - 1, reopened
    if then[:place] != wanted[:place] or len(wanted) <= place:
        return "phases that are behind it would be others"
    begun = done + (_number(state, "step_in_epoch") > 0)
    return _why_phase_differs(then[place], wanted[place], now, begun) if begun else None


def _why_phase_differs(running: Phase, other: Phase, now: FinetuneConfig, begun: int) -> str | None:
    """Why the first ``begun`` epochs of a phase would have been others in another one."""
    if running == other:
        return None
    if replace(running, epochs=other.epochs) != other or running.method != "gradient":
        return "the phase that it is in would be another"
    if other.epochs < begun:
        return f"epoch {begun} of this phase has begun"
    warmups = [min(now.warmup_epochs, phase.epochs / 2) for phase in (running, other)]
    if now.lr_scheduler == "cosine" or warmups[0] != warmups[1]:
        return "the learning rate of the epochs so far would be another"
    if now.train_image_size is not None and len(now.train_image_size) > 1:
        return "the image sizes of the epochs so far would be others"
    return None


def _number(state: Mapping[str, Any], name: str) -> int:
    value = state.get(name)
    return value if isinstance(value, int) else 0
