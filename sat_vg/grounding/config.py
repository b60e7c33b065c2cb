"""Settings of grounding: of a run, of ``evaluate`` and of ``predict``; checked when they are made, free of torch."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from sat_vg.backbone_finetuning.configs.choices import AutocastDtype
from sat_vg.backbone_finetuning.configs.plain_values import plain_value
from sat_vg.backbone_finetuning.configs.ranges import (
    ImageSize,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Probability,
    WholeNumber,
)
from sat_vg.backbone_finetuning.configs.validation import check_fields, refuse_problems

Split = Literal["train", "val", "test"]
BoxFormat = Literal["xyxy", "xywh", "cxcywh"]
SPLITS: tuple[Split, ...] = get_args(Split)
BOX_FORMATS: tuple[BoxFormat, ...] = get_args(BoxFormat)
OnBadRecord = Literal["error", "skip"]
Resume = Literal["auto", "never"]

# Fields that may differ when a run is resumed.
FREE_ON_RESUME = frozenset(
    {"data", "device", "num_threads", "log_dir", "checkpoint_dir", "save_every_minutes", "log_every", "resume"}
)


@dataclass(frozen=True, kw_only=True)
class GroundingConfig:
    """Settings of one grounding run.

    Raises:
        ConfigError: one or more fields are invalid; the message lists field, value, allowed and remedy.
    """

    data: str | None = None
    """A DIOR-RSVG folder (Annotations/, JPEGImages/, train.txt, …), a folder with train, val and test as .json,
    .jsonl, .csv, .txt or .pth, or one such file. Unset: built-in drawn tiles."""
    box_format: BoxFormat | None = None
    """What the four numbers of a box are, where a file does not say it. Unset: guessed from all boxes, and
    printed."""
    val_fraction: Probability = 0.1
    """Share of the training images that is held out for validation where the data have no val."""
    on_bad_record: OnBadRecord = "error"
    """What to do with a record that cannot be used (missing image, empty phrase, empty box): stop, or leave it
    out and list it in LOG_DIR/skipped_records.txt."""

    backbone: str | None = None
    """A best_model.pt of the fine-tuning, or a name that `sat-vg backbones` lists. Unset: resnet50; for the built-in
    tiles resnet18."""
    weights: str | None = None
    """Weights of a backbone that is given by name: a torchvision name, a file, or none. Unset: torchvision's best
    ones; for the built-in tiles none."""
    freeze_backbone: bool = False
    """Keep the backbone as it is, and train the rest."""
    backbone_lr_scale: PositiveFloat | None = None
    """Factor on the backbone's learning rate. Unset: 0.1; 1 where it starts from random weights."""

    image_size: ImageSize | None = None
    """Side in pixels of the square into which images are scaled. Unset: 512; for the built-in tiles 128."""
    max_words: PositiveInt = 40
    """Words of a phrase that are read; further ones are cut off."""
    width: PositiveInt = 192
    """Length of the vectors of words and places; a multiple of num_heads and of 8."""
    text_layers: WholeNumber = 1
    """Transformer layers over the words."""
    text_encoder: str | None = None
    """Folder of a BERT-like encoder (config.json, tokenizer.json, model.safetensors) that reads the phrases, at a
    tenth of the learning rate; max_words then counts its tokens, of which no more are read than it has positions.
    Needs sat_vg[text]. Unset: words of the training phrases and text_layers."""
    fusion_layers: PositiveInt = 3
    """Transformer layers over words and places together."""
    num_heads: PositiveInt = 6
    """Heads of attention."""
    dropout: Probability = 0.1
    """Probability of dropping a value in the transformer layers."""

    num_epochs: PositiveInt | None = None
    """Passes over the training phrases. Unset: 30; for the built-in tiles 3."""
    batch_size: PositiveInt = 64
    """Phrases per optimizer step."""
    learning_rate: PositiveFloat = 5e-4
    """Learning rate after the warm-up, in the first epoch; then it falls as a cosine."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay of matrices (AdamW)."""
    gradient_clip: NonNegativeFloat = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    use_augmentation: bool = True
    """Flip and turn each image at random, with its boxes and with the words left, right, top, north and so on."""
    seed: WholeNumber = 0
    """Seed of the start, the order, the augmentation and dropout."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    mixed_precision: bool = True
    """bf16 where the device computes in it, fp16 with loss scaling on older GPUs, fp32 elsewhere."""
    autocast_dtype: AutocastDtype = "auto"
    """The number format of mixed_precision."""
    num_threads: PositiveInt | None = None
    """Threads of the CPU. Unset: one for each core that the process may use."""
    log_dir: str | None = None
    """Folder of the TensorBoard log and metrics.jsonl. Unset: logs/grounding; for the built-in tiles
    logs/grounding_tiles."""
    checkpoint_dir: str | None = None
    """Folder of best_model.pt and last.pt. Unset: checkpoints/grounding; for the built-in tiles
    checkpoints/grounding_tiles."""
    save_every_minutes: NonNegativeFloat = 10.0
    """Write last.pt within an epoch once so many minutes have passed since the last time; 0 switches this off."""
    log_every: PositiveInt = 10
    """Optimizer steps between two entries in the log."""
    resume: Resume = "auto"
    """auto: continue the run in checkpoint_dir if there is one. never: start anew; files of the earlier run are moved
    into a folder earlier_run_1 beside it."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = plain_value(getattr(self, field.name))
            if value is None and field.name in _UNSET:
                value = _UNSET[field.name][self.data is None]
            object.__setattr__(self, field.name, value)
        check_fields(type(self), self.to_dict())
        if self.width % self.num_heads or self.width % 8:
            remedy = f"must be a multiple of 8 and of num_heads = {self.num_heads}; for example 192"
            refuse_problems([f"width = {self.width}: {remedy}"])

    def without_effect(self) -> list[str]:
        """A line for each setting that another one makes useless; files of earlier versions may have such."""
        pairs = (
            ("text_layers", "text_encoder", self.text_encoder is not None),
            ("backbone_lr_scale", "freeze_backbone", self.freeze_backbone),
            ("autocast_dtype", "mixed_precision", not self.mixed_precision),
        )
        values, defaults = self.to_dict(), {one.name: one.default for one in fields(self)}
        return [
            f"{name} = {values[name]!r}: has no effect with {by} = {values[by]!r}; leave one of the two out"
            for name, by, is_useless in pairs
            if is_useless and values[name] != defaults[name]
        ]

    @property
    def total_epochs(self) -> int:
        """``num_epochs`` with its default filled in."""
        assert self.num_epochs is not None, "chosen when the configuration is made"
        return self.num_epochs

    @property
    def canvas_size(self) -> int:
        """``image_size`` with its default filled in."""
        assert self.image_size is not None, "chosen when the configuration is made"
        return self.image_size

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data."""
        return asdict(self)


# What unset fields become: with data; on the built-in tiles, where a small backbone starts from random weights.
_UNSET: dict[str, tuple[Any, Any]] = {
    "backbone": ("resnet50", "resnet18"),
    "weights": (None, "none"),
    "image_size": (512, 128),
    "num_epochs": (30, 3),
    "log_dir": ("logs/grounding", "logs/grounding_tiles"),
    "checkpoint_dir": ("checkpoints/grounding", "checkpoints/grounding_tiles"),
}


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of ``sat-vg ground evaluate``."""

    checkpoint: str
    """A best_model.pt of the grounding."""
    data: str | None = None
    """The data set, as for the training. Unset: the built-in drawn tiles."""
    split: Split = "test"
    """Which part of it."""
    out: str = "grounding_evaluation"
    """Folder of metrics.json, predictions.json and report.html."""
    box_format: BoxFormat | None = None
    """What the four numbers of a box are, where a file does not say it."""
    on_bad_record: OnBadRecord = "error"
    """What to do with a record that cannot be used: stop, or leave it out and list it."""
    batch_size: PositiveInt = 64
    """Phrases at once."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Options of ``sat-vg ground predict``."""

    checkpoint: str
    """A best_model.pt of the grounding."""
    image: str
    """The image file."""
    phrase: str
    """What to look for, in quotes."""
    out: str | None = None
    """A .png file: the image with the box. Unset: none."""
    json: bool = False
    """Print one JSON object."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
