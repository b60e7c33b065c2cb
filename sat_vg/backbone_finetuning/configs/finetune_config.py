"""FinetuneConfig: every setting of a fine-tuning run, checked when it is made."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from sat_vg.backbone_finetuning.configs.adapting import SHIPPED, adapt_defaults
from sat_vg.backbone_finetuning.configs.choices import Augmentation
from sat_vg.backbone_finetuning.configs.plain_values import as_argument, plain_value
from sat_vg.backbone_finetuning.configs.validation import (
    check_combinations,
    check_fields,
    explain_unknown_fields,
    require_all_fields,
)
from sat_vg.backbone_finetuning.configs.yaml_files import read_yaml, yaml_text
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.safe_files import write_text

# Fields that change where and how fast a run goes, but not where it arrives: they may differ on a resume.
# (A device changes rounding only; the data are compared by their content, not by their path.)
FIELDS_FREE_ON_RESUME = frozenset(
    {
        "dataset_path", "dataset", "allow_outside", "label_separator", "allow_missing", "max_bad_fraction",
        "on_duplicates", "device", "num_workers", "loader_timeout", "cache", "cache_gib", "channels_last", "tf32",
        "compile", "num_threads", "shard_weights", "keep_freed_memory", "profile", "log_dir", "checkpoint_dir",
        "save_frequency", "save_every_steps", "save_every_minutes", "max_checkpoints", "log_every", "resume",
    }
)  # fmt: skip


class _SettingsByName(type):
    """Makes objects that know which of their fields were set; an unknown one gets a ConfigError, not a TypeError."""

    def __call__(cls, *unnamed: Any, **given: Any) -> Any:
        if unnamed:
            raise ConfigError(f"{cls.__name__} takes its fields by name, such as {cls.__name__}(backbone='resnet50')")
        return cls.of(given)  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(metaclass=_SettingsByName):
    """Settings of one fine-tuning run.

    Immutable; invalid values are all reported at construction. A default that does not go with what was set makes
    room for it; ``notes`` says so. The defaults below may be edited, or a ``config = FinetuneConfig(...)`` be put at
    the end of this file: the training command takes both, below its flags and ``--config``.

    Raises:
        ConfigError: one or more fields are invalid; the message lists field, value, allowed and remedy.
    """

    given: ClassVar[frozenset[str]] = frozenset()  # of each object its own: names of the fields that somebody set
    notes: ClassVar[tuple[str, ...]] = ()  # likewise: where settings come from and what was adapted, in lines
    _asked: ClassVar[Mapping[str, Any]] = {}  # likewise: the values before any was adapted

    dataset_path: str | None = None
    """Folder with train/ and val/ class folders (test/ is optional), or one folder of class folders, which is
    then split by seed; or a .csv file with the columns path and label (or labels) and maybe split. Unset: the
    built-in scenes, unless dataset is set."""
    dataset: str | None = None
    """A data set that torchvision reads, by its name, such as eurosat or cifar10; dataset_path is then the folder of
    a copy. Unset: your own images."""
    allow_outside: bool = False
    """A .csv file in dataset_path may name images outside its own folder."""
    label_separator: str = "|"
    """What stands between the classes of an image in the column labels of a .csv file, such as "," or " "; brackets
    and quotes around them, as Python writes lists, are then taken off."""
    train_split: str = "train"
    """Name of the training folder in dataset_path."""
    val_split: str = "val"
    """Name of the validation folder in dataset_path."""
    val_fraction: float = 0.2
    """Share of each class that is held out for validation where dataset_path has no validation folder."""
    num_classes: int | None = None
    """Number of classes; read from the data unless given, and checked against them if given."""
    on_bad_image: Literal["error", "skip"] = "error"
    """What to do with an image that cannot be read: stop before training, or leave it out and list it."""
    max_bad_fraction: float = 0.01
    """Share of all images that on_bad_image = skip may leave out; more is an error."""
    on_duplicates: Literal["error", "warn", "ignore"] = "error"
    """What to do with the same image in two of train, val and test: stop before training, or tell. Where val is split
    off by seed, both keep copies on one side instead. ignore: look for none."""
    bands: tuple[int | str, ...] | None = None
    """Read GeoTIFFs, and these bands of them, by number from 1 or by description, in the order that the model sees
    them; with names where the files have none or others, such as red=4,green=3,blue=2,nir=8: bands named red, green
    and blue get their colours' pre-trained weights. Needs sat_vg[geo]. Unset: 8-bit RGB."""
    nodata: float | None = None
    """With bands: a value, as it stands in the files, that stands for no value, beside those that the files declare
    and NaN. It is stored with the model."""
    rescale: Literal["none", "percentile"] = "none"
    """How 16-bit RGB images become 8-bit ones. none: by their high byte. percentile: from the 2nd to the 98th
    percentile of each band over all training images, the same for every image, and stored with the model. Needs
    sat_vg[geo]."""

    backbone: str = "resnet50"
    """A name that `sat-vg backbones` lists, such as resnet50, vit_b_16, swin_t; or timm:NAME."""
    pretrained: bool = True
    """Start from pre-trained weights (see weights) and not from random ones."""
    weights: str | None = None
    """Which weights: a torchvision name such as IMAGENET1K_V2, the path of a state dict or best_model.pt, or
    none. Unset: torchvision's best ones for the backbone if pretrained, else none."""
    allow_missing: bool = False
    """The file in weights may lack a part of the backbone, or be that of a deeper one: what is missing starts at
    random."""
    image_size: int | None = None
    """Height and width in pixels of the images that the backbone sees. Unset: the size of the backbone's published
    weights; no more than 224 for a named data set of smaller images."""
    train_image_size: tuple[int, ...] | None = None
    """Train at these sizes, such as 96,128, smallest first and each for an equal share of the epochs (Howard, 2018);
    validation stays at image_size. Unset: image_size throughout."""
    freeze_early_layers: bool = False
    """Freeze all stages but those in unfreeze_layers (unset: the first half of the stages is frozen)."""
    unfreeze_layers: tuple[str, ...] | None = None
    """Stages to train where freeze_early_layers is on, such as layer3,layer4; the head always is."""
    strategy: Literal["full", "linear_probe", "last_layers", "progressive", "lp_ft"] | None = None
    """What is trained when. full: everything; linear_probe: the head alone; last_layers: the last stages;
    progressive: the head, then one more stage at a time (Howard & Ruder, 2018); lp_ft: the head, then everything
    (Kumar et al., 2022). Unset: as the three freezing fields say, or full."""
    probe_solver: Literal["exact", "sgd"] = "exact"
    """How linear_probe and lp_ft find the head. exact: the optimum on the features of the unchanged images, by
    L-BFGS, in one epoch and without a learning rate. sgd: trained like everything else, with augmentation."""
    last_layers: int = 1
    """Stages that the strategy last_layers trains besides the head."""
    phase_epochs: tuple[int, ...] | None = None
    """Epochs of each phase of progressive and lp_ft; they add up to num_epochs. Unset: progressive divides them
    evenly, lp_ft gives a fifth to the head."""
    freeze_layers: int = 0
    """Freeze so many stages from the input on; --dry_run lists them. Not together with freeze_early_layers."""
    dropout: float = 0.0
    """Probability of dropping a pooled feature before the classifier."""

    batch_size: int | Literal["auto"] = 32
    """Images per optimizer step, over all processes. auto: the largest power of two that fits well into memory, 256
    at most, with 20 steps an epoch at least."""
    micro_batch_size: int | None = None
    """Images that go through the model at once, in each process; gradients accumulate to batch_size. Unset: as many
    as there are, or fewer once the memory was too small for them."""
    num_epochs: int = 20
    """Passes over the training images."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW (Loshchilov & Hutter, 2019), or SGD with Nesterov momentum."""
    learning_rate: float = 3e-4
    """Learning rate after the warm-up."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each stage to the one before it (Clark et al., 2020); 1: none."""
    head_lr_scale: float = 1.0
    """Factor on the head's learning rate."""
    weight_decay: float = 1e-3
    """Decoupled weight decay (for sgd: L2); not applied to norms, biases, position embeddings (relative ones too),
    class tokens and scales such as ConvNeXt's layer_scale."""
    momentum: float = 0.9
    """Momentum of sgd."""
    warmup_epochs: float = 1.0
    """Epochs in which the learning rate rises linearly from near 0."""
    lr_scheduler: Literal["cosine", "step", "plateau"] = "cosine"
    """Course of the learning rate after the warm-up; plateau lowers it once validation stops improving."""
    lr_step_size: int = 7
    """step: epochs between two reductions. plateau: epochs without improvement before a reduction."""
    lr_gamma: float = 0.1
    """step and plateau: factor of each reduction."""
    min_lr: float = 1e-6
    """The learning rate never falls below this after the warm-up, whatever the factors of phases, layer_decay and
    head_lr_scale."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    ema_decay: float = 0.0
    """Moving average of the weights and of batch norm's statistics, with this share kept in each step; it is what is
    validated and saved. 0 switches it off; try 0.99 for hundreds of steps, 0.999 for thousands."""
    best_weights: Literal["auto", "average", "trained"] = "auto"
    """Which weights are validated and become best_model.pt. average: the moving average of ema_decay. trained: the
    weights themselves; the average then lies in last.pt alone. auto: the average where there is one."""
    wise_ft: bool = False
    """After the last phase, mix the weights that it began with and those that it ended with, in the shares that do
    best on the validation images (Wortsman et al., 2022). Made for lp_ft, which begins with a trained head."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes (Szegedy et al., 2016)."""
    class_weights: Literal["none", "balanced", "effective"] = "none"
    """Factors on the classes' losses. balanced: by the inverse of their number of images (King & Zeng, 2001);
    effective: by the inverse of the effective number (Cui et al., 2019), milder for large classes."""
    focal_gamma: float = 0.0
    """Exponent of focal loss, which lowers the part of images that are already right (Lin et al., 2017); 0: plain
    cross-entropy; try 2."""
    sampler: Literal["uniform", "weighted", "class_balanced"] = "uniform"
    """Which images an epoch takes. uniform: each once. weighted: as many, drawn with replacement, so that all classes
    come equally often on average. class_balanced: the classes take turns, so every batch holds as many of each."""
    use_augmentation: bool = True
    """Change the training images at random, as augmentation says."""
    augmentation: Augmentation | None = None
    """How. satellite: mild scale and colour changes, flips and quarter turns: an overhead image has no "up". turns:
    these flips and turns alone, where colours and scale tell the classes. basic: scale and horizontal flips. crops:
    scale alone, a little, where a mirrored image would be another class: digits, letters, signs. randaugment (Cubuk
    et al., 2020), trivialaugment (Müller & Hutter, 2021), autoaugment (Cubuk et al., 2019): theirs, after scale and
    turns. advanced: as satellite, and affine, elastic, blur, noise. Unset: as suits the data set that dataset names,
    else satellite."""
    shard_window: int = 0
    """Where dataset_path holds tar shards (sat-vg shard): so many at a time, in random order, have their images
    shuffled, so that few shards need to be on the disk. 0: the images of all are shuffled."""
    cached_views: int = 0
    """Where the first stages are frozen: so many augmented versions of each image take turns, and what the frozen
    stages make of them is computed once and kept. 0: every epoch augments anew. Without augmentation it is always
    kept."""
    mixup_alpha: float = 0.0
    """Beta parameter of Mixup (Zhang et al., 2018); 0 switches it off."""
    cutmix_alpha: float = 0.0
    """Beta parameter of CutMix (Yun et al., 2019); 0 switches it off. With both on, each step draws one."""
    early_stopping_patience: int = 10
    """End a phase after this many of its epochs without improvement; 0 switches it off."""
    early_stopping_min_delta: float = 0.0
    """Only a gain above this counts as an improvement for early_stopping_patience, in units of early_stopping_metric.
    best_model.pt and the plateau schedule go by any gain."""
    early_stopping_metric: Literal["val_accuracy", "val_loss", "val_macro_f1", "val_map"] | None = None
    """What early stopping, the plateau schedule and best_model.pt go by. Unset: val_accuracy; where an image can have
    several classes val_map, their mean average precision."""
    seed: int = 0
    """Seed of the split, the order, the augmentation, the head's start and dropout."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    mixed_precision: bool = True
    """bf16 where the device computes in it, fp16 with loss scaling on older GPUs, fp32 elsewhere."""
    autocast_dtype: Literal["auto", "bf16", "fp16"] = "auto"
    """The number format of mixed_precision."""
    channels_last: bool | None = None
    """Memory format of weights and images. Unset: on, but for grouped convolutions (ResNeXt, RegNet) on GPUs. Never
    on MPS."""
    tf32: bool = True
    """GPUs may round the inputs of fp32 products to TF32."""
    compile: bool = False
    """Train by torch.compile: worth trying on GPUs; on CPUs it cost more than it brought."""
    sync_batch_norm: bool = False
    """Of several processes with a GPU each (torchrun): batch norm normalises with the images of all of them, and not
    with those of each by itself."""
    shard_weights: bool = False
    """Of several processes (torchrun): each holds a part of the weights, gradients and optimizer state (FSDP), for
    backbones that do not fit a device whole."""
    num_threads: int | None = None
    """Threads of the CPU. Unset: as OMP_NUM_THREADS says, or one for each core that the process may use."""
    keep_freed_memory: bool | None = None
    """Keep freed memory for the next step and not give it back to the system (glibc). Unset: on for CPUs."""
    profile: bool = False
    """Tell where the time goes: a table, and profile_trace.json in log_dir for chrome://tracing or Perfetto."""
    num_workers: int | None = None
    """Processes that decode images; 0 decodes in the training process. Unset: chosen for the device."""
    loader_timeout: int = 300
    """Seconds to wait for a batch of these processes before stopping with a message; 0 waits for ever."""
    cache: Literal["auto", "ram", "disk", "off"] = "auto"
    """Where decoded images are kept, so that they are decoded once and not in every epoch. disk: in the cache folder,
    for later runs too. ram: in memory, for this run. auto: as disk, where that is quicker. off: nowhere."""
    cache_gib: float = 16.0
    """Largest size in GiB of what is kept in the cache folder, decoded images and features together; what was used
    least recently goes first."""
    log_dir: str = "logs/finetune"
    """Folder of the TensorBoard log and metrics.jsonl."""
    checkpoint_dir: str = "checkpoints/finetune"
    """Folder of best_model.pt and last.pt."""
    save_frequency: int = 1
    """Epochs between two writes of last.pt."""
    save_every_steps: int = 0
    """Optimizer steps between two writes of last.pt, also within an epoch; 0 switches this off."""
    save_every_minutes: float = 10.0
    """Write last.pt within an epoch once so many minutes have passed since the last time; 0 switches this off."""
    max_checkpoints: int = 2
    """Resumable checkpoints that are kept; last.pt is the newest."""
    log_every: int = 10
    """Optimizer steps between two entries in the log."""
    resume: str = "auto"
    """auto: go on with the run in checkpoint_dir if there is one. never: start anew; an earlier run is moved
    into a folder of its own. Or the path of a last.pt."""

    def __post_init__(self) -> None:
        values = {name: plain_value(name, getattr(self, name)) for name in self.field_names()}
        check_fields(values)
        object.__setattr__(self, "_asked", values)
        values, adapted = adapt_defaults(values, self.given)
        check_combinations(values)
        for name, value in values.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "notes", (*self.notes, *adapted))

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """The names of all fields, in order."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def edited_defaults(cls) -> dict[str, Any]:
        """Defaults of this class that are not the shipped ones, of those fields where that matters."""
        defaults = {
            field.name: field.default if field.default_factory is MISSING else field.default_factory()
            for field in fields(cls)
        }
        return {name: defaults[name] for name in SHIPPED if name in defaults and defaults[name] != SHIPPED[name]}

    @classmethod
    def of(
        cls, given: Mapping[str, Any], unset: Mapping[str, Any] | None = None, notes: Iterable[str] = ()
    ) -> "FinetuneConfig":
        """A config of what was set, over other defaults than those of this class.

        Args:
            given: what somebody set.
            unset: defaults of some fields. Like all defaults they make room for what was set.
            notes: where the settings come from, in lines.

        Raises:
            ConfigError: a field is unknown (the nearest known one is named) or invalid.
        """
        require_all_fields(cls.field_names())
        explain_unknown_fields(given, cls.field_names())
        config = cls.__new__(cls)
        object.__setattr__(config, "given", frozenset({*given, *cls.edited_defaults()}))
        object.__setattr__(config, "notes", tuple(notes))
        cls.__init__(config, **{**(unset or {}), **given})
        return config

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "FinetuneConfig":
        """A config from plain data; fields that are left out keep their defaults.

        Raises:
            ConfigError: a field is unknown (the nearest known one is named) or invalid.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"a configuration is made from a dict such as {{'backbone': 'resnet50'}}, not {values!r}"
            )
        return cls.of(values)

    @classmethod
    def from_yaml(cls, path: str | Path) -> "FinetuneConfig":
        """A config from a YAML file.

        Raises:
            ConfigError: there is no such file, it is no YAML mapping, or a field is unknown or invalid.
        """
        return cls.from_dict(read_yaml(path))

    @property
    def augments(self) -> bool:
        """Whether training images are changed at random."""
        return self.use_augmentation and self.augmentation != "none"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data (strings, numbers, booleans, lists)."""
        values = ((name, getattr(self, name)) for name in self.field_names())
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values}

    def to_yaml(self, path: str | Path) -> None:
        """Write the config as YAML, atomically."""
        write_text(Path(path), self.as_yaml())

    def as_yaml(self, names: Collection[str] | None = None) -> str:
        """The config as YAML text: all fields, or those named."""
        values = {name: value for name, value in self.to_dict().items() if names is None or name in names}
        return yaml_text(values)

    def as_flags(self, leave_out: Collection[str] = ()) -> list[str]:
        """What was set and is no default, as arguments of the training command."""
        has_images = self.dataset_path is not None or self.dataset is not None
        usual = {field.name: field.default for field in fields(type(self))} if has_images else {}
        flags: list[str] = []
        for name, value in self.to_dict().items():
            if name not in self.given or name in leave_out or (name in usual and usual[name] == getattr(self, name)):
                continue
            flags += [f"--{name}", as_argument(value)]
        return flags

    def replace(self, **changes: Any) -> "FinetuneConfig":
        """A new config with some fields changed; defaults that made room for others do so anew.

        Raises:
            ConfigError: as at construction.
        """
        explain_unknown_fields(changes, self.field_names())
        given = {name: self._asked[name] for name in self.given} | changes
        return self.of(given, {name: value for name, value in self._asked.items() if name not in given})


# What a run on the built-in scenes starts from: a small backbone from random weights, done within minutes on
# two CPU cores. Every value can be overridden on the command line.
SCENES_DEFAULTS: dict[str, Any] = {
    "backbone": "resnet18",
    "pretrained": False,
    "image_size": 64,
    "num_epochs": 14,
    "learning_rate": 1e-3,
    "weight_decay": 0.05,
    "warmup_epochs": 2.0,
    "log_dir": "logs/quickstart",
    "checkpoint_dir": "checkpoints/quickstart",
}
