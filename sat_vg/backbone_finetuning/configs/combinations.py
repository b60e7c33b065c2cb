"""Settings that contradict one another, each rule once: a default makes room for what was set, or it is an error."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from sat_vg.backbone_finetuning.configs.band_choice import repeated_band
from sat_vg.backbone_finetuning.configs.choices import AUGMENTATIONS_OF_ANY_BANDS, STRATEGIES_OF_SEVERAL_PHASES

# Of lp_ft, whose second phase takes 0.3 of the learning rate. docs/adr/0034 has the measurements. In fewer epochs the
# network does not make up for what so high a rate does to the probe at first.
LP_FT_DEFAULTS = {"learning_rate": 1e-3, "label_smoothing": 0.1}
LP_FT_EPOCHS = 5


class Settings:
    """The values of a configuration while it is checked.

    Args:
        values: of all fields, each allowed by itself.
        given: names of the fields that somebody set.

    Attributes:
        values: of all fields, with those changed that made room.
        notes: a line for each field that was changed.
        problems: a line for each contradiction, with the remedy.
    """

    def __init__(self, values: Mapping[str, Any], given: Collection[str]) -> None:
        self.values, self.given = dict(values), given
        self.notes: list[str] = []
        self.problems: list[str] = []

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def show(self, name: str) -> str:
        """A field and its value, as messages name them."""
        value = self.values[name]
        return f"{name} = {list(value) if isinstance(value, tuple) else value!r}"

    def refuse(self, name: str, why: str) -> None:
        """Report that the value of a field does not go with others."""
        self.problems.append(f"{self.show(name)}: {why}")

    def adapt_or_refuse(self, name: str, why: str, *ways: tuple[str, Any, str]) -> None:
        """Change the first field of ``(field, value, cause)`` that nobody set, or report the contradiction."""
        for field, value, cause in ways:
            if field not in self.given or self.values[field] is None:
                self.values[field] = value
                self.notes.append(f"{field}: {value}, as {cause} = {self.values[cause]}")
                return
        self.refuse(name, why)


def resolve_combinations(values: Mapping[str, Any], given: Collection[str]) -> Settings:
    """Check fields against one another; what was set stays as it is, contradictions included."""
    settings = Settings(values, given)
    for check in (
        _freezing, _strategy, _exact_probe, _epochs, _schedule, _batches, _image_sizes, _augmentation, _sampling,
        _precision, _image_source, _separation, _rescale, _bands, _fsdp, _folders,
    ):  # fmt: skip
        check(settings)
    return settings


def _freezing(s: Settings) -> None:
    strategy, freezing = s["strategy"], s["freeze_early_layers"]
    named = [name for name in ("freeze_early_layers", "unfreeze_layers") if s[name]]
    if strategy is not None and named:
        s.refuse("strategy", f"says what is trained, and so does {s.show(named[0])}; leave one of the two out")
    if s["unfreeze_layers"] is not None and freezing is False:
        s.adapt_or_refuse(
            "unfreeze_layers",
            "has no effect while freeze_early_layers is false; set freeze_early_layers to true, or leave "
            "unfreeze_layers out",
            *([("freeze_early_layers", True, "unfreeze_layers")] if strategy is None else []),
        )
    elif s["unfreeze_layers"] is not None and freezing is not True:
        s.refuse(
            "unfreeze_layers", f"{s.show('freeze_early_layers')} also says what is trained; leave one of the two out"
        )
    if s["last_layers"] != 1 and strategy != "last_layers":
        s.adapt_or_refuse(
            "last_layers",
            f"has no effect with {s.show('strategy')}; set strategy to last_layers, or leave it out",
            *([("strategy", "last_layers", "last_layers")] if strategy is None and not named else []),
        )
    if not s["pretrained"] and s["weights"] not in (None, "none"):
        s.adapt_or_refuse(
            "weights", "contradicts pretrained = False; leave one of the two out", ("pretrained", True, "weights")
        )


def _strategy(s: Settings) -> None:
    for field, value in LP_FT_DEFAULTS.items():
        if s["strategy"] == "lp_ft" and s["num_epochs"] >= LP_FT_EPOCHS and field not in s.given:
            s.values[field] = value
            s.notes.append(f"{field}: {value}, as strategy = lp_ft")
    if s["phase_stages"] is not None and s["strategy"] != "progressive":
        is_free = s["strategy"] is None and not (s["freeze_early_layers"] or s["unfreeze_layers"])
        s.adapt_or_refuse(
            "phase_stages",
            f"has no effect with {s.show('strategy')}; set strategy to progressive, or leave it out",
            *([("strategy", "progressive", "phase_stages")] if is_free else []),
        )
    if s["probe_solver"] != "exact" and s["strategy"] not in ("linear_probe", "lp_ft"):
        s.refuse(
            "probe_solver",
            f"has no effect with {s.show('strategy')}; leave it out, or set strategy to linear_probe or lp_ft",
        )
    if s["phase_epochs"] is not None and s["strategy"] not in STRATEGIES_OF_SEVERAL_PHASES:
        s.refuse(
            "phase_epochs",
            f"has no effect with {s.show('strategy')}, which has one phase; leave it out, or set "
            f"strategy to {' or '.join(STRATEGIES_OF_SEVERAL_PHASES)}",
        )


def _exact_probe(s: Settings) -> None:
    """What an exact linear probe does not go with: the probe is then trained, unless somebody set its solver."""
    strategy = s["strategy"]
    for field, is_affected, why in (
        (
            "phase_epochs",
            strategy == "lp_ft",
            "an exact probe is solved for and takes one pass; set probe_solver to sgd, or leave phase_epochs out",
        ),
        (
            "wise_ft",
            strategy == "linear_probe",
            "probe_solver = 'exact' solves for the head, so there are no weights before it to mix with; set "
            "probe_solver to sgd, or leave wise_ft out, or take another strategy, such as lp_ft",
        ),
        (
            "train_image_size",
            strategy == "linear_probe",
            "an exact probe is solved for on images of image_size; set probe_solver to sgd, or leave it out",
        ),
        (
            "shard_weights",
            strategy in ("linear_probe", "lp_ft"),
            f"{s.show('strategy')} with probe_solver = 'exact' solves for the head on one process; set probe_solver "
            "to sgd, or leave shard_weights out",
        ),
    ):
        if is_affected and s[field] and s["probe_solver"] == "exact":
            s.adapt_or_refuse(field, why, ("probe_solver", "sgd", field))


def _epochs(s: Settings) -> None:
    phases, sizes = s["phase_epochs"], s["train_image_size"]
    if phases is not None and s["strategy"] in STRATEGIES_OF_SEVERAL_PHASES and sum(phases) != s["num_epochs"]:
        s.adapt_or_refuse(
            "phase_epochs",
            f"add up to {sum(phases)}, but {s.show('num_epochs')}; change one of the two",
            ("num_epochs", sum(phases), "phase_epochs"),
        )
    if sizes is not None and len(sizes) > s["num_epochs"]:
        s.adapt_or_refuse(
            "train_image_size",
            f"{len(sizes)} sizes need as many epochs, but {s.show('num_epochs')}; name fewer",
            ("num_epochs", len(sizes), "train_image_size"),
        )
    if 1 < s["num_epochs"] <= s["warmup_epochs"]:
        s.adapt_or_refuse(
            "warmup_epochs",
            f"must be below {s.show('num_epochs')}, or the learning rate never gets where it should; lower it or "
            "train longer",
            ("warmup_epochs", s["num_epochs"] / 2, "num_epochs"),
            ("num_epochs", math.floor(s["warmup_epochs"]) + 1, "warmup_epochs"),
        )


def _schedule(s: Settings) -> None:
    patience, step_size = s["early_stopping_patience"], s["lr_step_size"]
    if s["lr_scheduler"] == "plateau" and patience == 1:
        s.refuse(
            "early_stopping_patience",
            "with the plateau schedule the run stops before the rate is ever lowered; set it to 2 or more, or to 0",
        )
    elif s["lr_scheduler"] == "plateau" and 0 < patience <= step_size:
        s.adapt_or_refuse(
            "lr_step_size",
            f"with the plateau schedule it must be below {s.show('early_stopping_patience')}, or the run stops "
            "before the rate is ever lowered; for example 3",
            ("lr_step_size", patience // 2, "early_stopping_patience"),
            ("early_stopping_patience", 2 * step_size, "lr_step_size"),
        )
    if s["min_lr"] > s["learning_rate"]:
        s.adapt_or_refuse(
            "min_lr",
            f"must not exceed {s.show('learning_rate')}; lower it",
            ("min_lr", s["learning_rate"] / 100, "learning_rate"),
            ("learning_rate", s["min_lr"], "min_lr"),
        )


def _batches(s: Settings) -> None:
    micro = s["micro_batch_size"]
    if micro is not None and s["batch_size"] != "auto" and micro > s["batch_size"]:
        s.adapt_or_refuse(
            "micro_batch_size",
            f"must not exceed {s.show('batch_size')}; lower it or leave it out",
            ("batch_size", micro, "micro_batch_size"),
        )


def _image_sizes(s: Settings) -> None:
    sizes = s["train_image_size"]
    if sizes is None:
        return
    if s["image_size"] is not None and max(sizes) > s["image_size"]:
        s.adapt_or_refuse(
            "train_image_size",
            f"{max(sizes)} is above {s.show('image_size')}, at which images are loaded and validated; raise "
            "image_size, or leave that size out",
            ("image_size", max(sizes), "train_image_size"),
        )
    if s["cached_views"]:
        s.refuse(
            "train_image_size",
            f"{s.show('cached_views')} keeps what the frozen stages make of images of one "
            "size; leave one of the two out",
        )


def _augmentation(s: Settings) -> None:
    if not s["use_augmentation"] and s["augmentation"] not in (None, "none", "satellite"):
        s.refuse("augmentation", "has no effect while use_augmentation is false; leave one of the two out")
    _crop(s)
    if s["augmentation_steps"] and (not s["use_augmentation"] or s["augmentation"] == "none"):
        s.refuse("augmentation_steps", "has no effect without augmentation; set augmentation, or leave it out")
    if not s["cached_views"]:
        return
    if not s["use_augmentation"] or s["augmentation"] == "none":
        s.refuse("cached_views", "without augmentation there is one version of each image; leave it out")
    for name in ("mixup_alpha", "cutmix_alpha"):
        if s[name]:
            s.refuse(
                "cached_views",
                f"{s.show(name)} mixes the images of every step anew, so nothing can be kept; "
                "leave one of the two out",
            )
    if s["strategy"] == "full":
        s.refuse("cached_views", "strategy = 'full' freezes nothing; leave it out, or take another strategy")


def _crop(s: Settings) -> None:
    if s["crop_scale"] is None:
        return
    if not s["use_augmentation"]:
        s.refuse("crop_scale", "has no effect while use_augmentation is false; leave one of the two out")
    elif s["augmentation"] in ("none", "turns"):
        s.refuse("crop_scale", f"{s.show('augmentation')} crops nothing at random; leave one of the two out")


def _sampling(s: Settings) -> None:
    if s["class_weights"] != "none" and s["sampler"] != "uniform":
        s.refuse(
            "class_weights",
            f"{s.show('sampler')} already evens the classes out, and both would count rare classes twice; set one of "
            "them to its default, none or uniform",
        )
    if s["shard_window"] and s["sampler"] != "uniform":
        s.refuse(
            "shard_window",
            f"{s.show('sampler')} draws from all images at any time, and a window holds those of a few shards; leave "
            "one of the two out (class_weights balances the classes, too)",
        )


def _precision(s: Settings) -> None:
    if s["autocast_dtype"] != "auto" and not s["mixed_precision"]:
        s.refuse("autocast_dtype", "has no effect while mixed_precision is false; leave one of the two out")


def _image_source(s: Settings) -> None:
    dataset, path = s["dataset"], s["dataset_path"]
    if dataset is None:
        return
    if s["shard_window"]:
        s.refuse("shard_window", f"{s.show('dataset')} does not lie in shards; leave one of the two out")
    if path is not None and path.lower().endswith(".csv"):
        s.refuse(
            "dataset",
            f"{s.show('dataset_path')} is a table, but has to be the folder of a copy of that data set; "
            "leave one of the two out",
        )
    for name, usual in (("train_split", "train"), ("val_split", "val")):
        if s[name] != usual:
            s.refuse(name, f"has no effect with {s.show('dataset')}, which brings its own splits; leave it out")


def _separation(s: Settings) -> None:
    if s["split"] == "spatial" and s["block_size"] is None:
        s.refuse("split", "needs block_size, the side of a block of ground in metres; for example 1000")
    elif s["split"] != "spatial" and s["block_size"] is not None:
        s.adapt_or_refuse(
            "block_size",
            f"has no effect with {s.show('split')}; set split to spatial, or leave it out",
            ("split", "spatial", "block_size"),
        )
    if s["split"] == "spatial" and s["group_column"] is not None:
        s.refuse("group_column", f"{s.show('split')} also says what stays together; leave one of the two out")


def _rescale(s: Settings) -> None:
    if s["nodata"] is not None and s["bands"] is None:
        s.problems.append(f"nodata = {s['nodata']:g}: is for the bands of GeoTIFFs; set bands, or leave it out")
    if s["rescale"] == "none" or s["bands"] is not None:
        return
    if s["dataset_path"] is None or s["dataset"] is not None:
        what = "the built-in scenes are" if s["dataset"] is None else f"{s.show('dataset')} is"
        s.refuse("rescale", f"{what} 8-bit RGB already; leave it out, or set dataset_path alone")
    if s["cache"] in ("ram", "disk"):
        s.refuse("rescale", f"{s.show('cache')} keeps images as they are stored; use auto or off")


def _bands(s: Settings) -> None:
    if s["bands"] is None:
        return
    repeated = repeated_band(s["bands"])
    if repeated is not None:
        s.refuse("bands", f"{repeated!r} comes twice; name every band once")
    if s["dataset_path"] is None:
        s.refuse("bands", "without dataset_path there are RGB images only; leave it out, or set dataset_path")
    if s["dataset"] is not None:
        s.refuse("bands", f"{s.show('dataset')} is RGB; leave one of the two out")
    if s["rescale"] != "none":
        s.refuse("bands", f"{s.show('rescale')} is for RGB images; leave one of the two out")
    if s["cache"] in ("ram", "disk"):
        s.refuse("bands", f"{s.show('cache')} keeps 8-bit RGB images only; use auto or off")
    if s["use_augmentation"] and s["augmentation"] not in (None, "none", *AUGMENTATIONS_OF_ANY_BANDS):
        others = ", ".join(AUGMENTATIONS_OF_ANY_BANDS)
        s.refuse("bands", f"{s.show('augmentation')} is made for 8-bit red, green, blue; use {others} or none")


def _fsdp(s: Settings) -> None:
    if not s["shard_weights"]:
        return
    for name, value, why in (
        ("batch_size", "auto", "is measured on one device with all weights; give a number, for example 32"),
        ("compile", True, "was not made for weights in shards; leave one of the two out"),
        ("channels_last", True, "would give weights a format that cannot be divided; leave channels_last out"),
        ("autocast_dtype", "fp16", "scales the loss, which was not tried with weights in shards; use bf16"),
    ):
        if s[name] == value:
            s.refuse("shard_weights", f"{s.show(name)} {why}")


def _folders(s: Settings) -> None:
    if s["name"] is None:
        return
    for field, part in (("log_dir", "logs"), ("checkpoint_dir", "checkpoints")):
        folder = f"runs/{s['name']}/{part}"
        if field in s.given and s[field] != folder:
            s.refuse("name", f"{s.show(field)} also says where the run's files go; leave one of the two out")
        s.values[field] = folder
