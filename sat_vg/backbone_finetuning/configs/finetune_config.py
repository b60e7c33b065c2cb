"""FinetuneConfig: every setting of a fine-tuning run, checked when it is made."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from sat_vg.backbone_finetuning.configs.validation import check_config, explain_unknown_fields
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.safe_files import write_text

# Fields that change where and how fast a run goes, but not where it arrives: they may differ on a resume.
# (A device changes rounding only; the data are compared by their content, not by their path.)
FIELDS_FREE_ON_RESUME = frozenset(
    {
        "dataset_path", "device", "num_workers", "log_dir", "checkpoint_dir", "save_frequency",
        "max_checkpoints", "log_every", "resume",
    }
)  # fmt: skip


class _Loader(yaml.SafeLoader):
    """The safe loader, with numbers such as 1e-4 read as numbers, which YAML 1.1 takes for text."""


class _Dumper(yaml.SafeDumper):
    """Writes what ``_Loader`` reads: text that looks like a number gets quotes."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Settings of one fine-tuning run.

    Immutable; invalid values are all reported at construction.

    Raises:
        ConfigError: one or more fields are invalid; the message lists field, value, allowed and remedy.
    """

    dataset_path: str | None = None
    """Folder with train/ and val/ class folders (test/ is optional), or one folder of class folders, which is
    then split by seed. Unset: the built-in scenes."""
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

    backbone: str = "resnet50"
    """A name that `sat-vg backbones` lists, such as resnet50, vit_b_16, swin_t; or timm:NAME."""
    pretrained: bool = True
    """Start from pre-trained weights (see weights) and not from random ones."""
    weights: str | None = None
    """Which weights: a torchvision name such as IMAGENET1K_V2, the path of a state dict or best_model.pt, or
    none. Unset: torchvision's best ones for the backbone if pretrained, else none."""
    image_size: int = 224
    """Height and width in pixels of the images that the backbone sees."""
    freeze_early_layers: bool = False
    """Freeze all stages but those in unfreeze_layers (unset: the first half of the stages is frozen)."""
    unfreeze_layers: tuple[str, ...] | None = None
    """Stages to train where freeze_early_layers is on, such as layer3,layer4; the head always is."""
    freeze_layers: int = 0
    """Freeze so many stages from the input on; --dry_run lists them. Not together with freeze_early_layers."""
    dropout: float = 0.0
    """Probability of dropping a pooled feature before the classifier."""

    batch_size: int = 32
    """Images per optimizer step."""
    micro_batch_size: int | None = None
    """Images that go through the model at once; gradients accumulate to batch_size. Unset: batch_size."""
    num_epochs: int = 20
    """Passes over the training images."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW (Loshchilov & Hutter, 2019), or SGD with Nesterov momentum."""
    learning_rate: float = 3e-4
    """Learning rate after the warm-up."""
    weight_decay: float = 1e-3
    """Decoupled weight decay (for sgd: L2); not applied to norms, biases and position embeddings."""
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
    """The learning rate never falls below this after the warm-up."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes (Szegedy et al., 2016)."""
    use_augmentation: bool = True
    """Flips, quarter turns, mild scale and colour changes: an overhead image has no "up"."""
    mixup_alpha: float = 0.0
    """Beta parameter of Mixup (Zhang et al., 2018); 0 switches it off."""
    cutmix_alpha: float = 0.0
    """Beta parameter of CutMix (Yun et al., 2019); 0 switches it off. With both on, each step draws one."""
    early_stopping_patience: int = 10
    """Stop after this many epochs without improvement; 0 switches it off."""
    early_stopping_min_delta: float = 0.0
    """What counts as an improvement, in units of early_stopping_metric."""
    early_stopping_metric: Literal["val_accuracy", "val_loss"] = "val_accuracy"
    """What early stopping, the plateau schedule and best_model.pt go by."""
    seed: int = 0
    """Seed of the split, the order, the augmentation, the head's start and dropout."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    mixed_precision: bool = True
    """bf16 where the device computes in it, fp16 with loss scaling on older GPUs, fp32 elsewhere."""
    num_workers: int | None = None
    """Processes that decode images; 0 decodes in the training process. Unset: chosen for the device."""
    log_dir: str = "logs/finetune"
    """Folder of the TensorBoard log and metrics.jsonl."""
    checkpoint_dir: str = "checkpoints/finetune"
    """Folder of best_model.pt and last.pt."""
    save_frequency: int = 1
    """Epochs between two writes of last.pt."""
    max_checkpoints: int = 2
    """Resumable checkpoints that are kept; last.pt is the newest."""
    log_every: int = 10
    """Optimizer steps between two entries in the log."""
    resume: str = "auto"
    """auto: go on with the run in checkpoint_dir if there is one. never: start anew; an earlier run is moved
    into a folder of its own. Or the path of a last.pt."""

    def __post_init__(self) -> None:
        if isinstance(self.unfreeze_layers, list):  # YAML and JSON know lists only
            object.__setattr__(self, "unfreeze_layers", tuple(self.unfreeze_layers))
        check_config(asdict(self))

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """The names of all fields, in order."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "FinetuneConfig":
        """A config from plain data; fields that are left out keep their defaults.

        Raises:
            ConfigError: a field is unknown (the nearest known one is named) or invalid.
        """
        explain_unknown_fields(values, cls.field_names())
        return cls(**values)

    @classmethod
    def from_yaml(cls, path: str | Path) -> "FinetuneConfig":
        """A config from a YAML file.

        Raises:
            ConfigError: there is no such file, it is no YAML mapping, or a field is unknown or invalid.
        """
        return cls.from_dict(read_yaml(path))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data (strings, numbers, booleans, lists)."""
        values = asdict(self)
        if self.unfreeze_layers is not None:
            values["unfreeze_layers"] = list(self.unfreeze_layers)
        return values

    def to_yaml(self, path: str | Path) -> None:
        """Write the config as YAML, atomically."""
        write_text(Path(path), self.as_yaml())

    def as_yaml(self) -> str:
        """The config as YAML text."""
        return yaml.dump(self.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)

    def replace(self, **changes: Any) -> "FinetuneConfig":
        """A new config with some fields changed."""
        return replace(self, **changes)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, read with the safe loader.

    Raises:
        ConfigError: there is no such file, or it holds something else than a mapping.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"the config file {str(path)!r} cannot be read: {reason}; check --config") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"the config file {str(path)!r} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"the config file {str(path)!r} must hold lines such as 'backbone: resnet50'")
    return content


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
