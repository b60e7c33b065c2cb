"""FinetuneConfig: every setting of a fine-tuning run, checked when it is made.

A new setting is one field here: its type says what is allowed (``ranges.py``, ``choices.py``), and its docstring is
the help of its flag. ``make defaults`` then records its default.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path  # noqa: F401 - for a config = FinetuneConfig(dataset_path=Path(...)) at the end
from typing import Annotated, Any, Literal

from sat_vg.backbone_finetuning.configs import choices
from sat_vg.backbone_finetuning.configs.band_choice import Bands
from sat_vg.backbone_finetuning.configs.combinations import LP_FT_DEFAULTS
from sat_vg.backbone_finetuning.configs.plain_values import as_flags
from sat_vg.backbone_finetuning.configs.ranges import (
    AreaShare,
    AugmentationStepText,
    BadImagePolicy,
    DifferentSizes,
    FolderName,
    Fraction,
    ImageSize,
    LearningRateFactor,
    NonNegativeFloat,
    PhaseStages,
    PositiveFloat,
    PositiveInt,
    Probability,
    Range,
    Remedy,
    RunName,
    Separator,
    WholeNumber,
)
from sat_vg.backbone_finetuning.configs.settings import SHIPPED_DEFAULTS, Settings
from sat_vg.backbone_finetuning.configs.yaml_files import yaml_text
from sat_vg.backbone_finetuning.utils.safe_files import write_text

# Fields that change where and how fast a run goes, but not its results: they may differ when a run is resumed.
# (A device changes rounding only; the images are compared by their content, not by their path.)
FIELDS_FREE_ON_RESUME = frozenset(
    {
        "dataset_path", "dataset", "allow_outside", "label_separator", "allow_missing", "on_duplicates", "device",
        "num_workers", "loader_timeout", "cache", "cache_gib", "channels_last", "tf32", "compile", "num_threads",
        "shard_weights", "keep_freed_memory", "profile", "name", "log_dir", "checkpoint_dir", "save_frequency",
        "save_every_steps", "save_every_minutes", "max_checkpoints", "log_every", "resume",
    }
)  # fmt: skip
# The headings of --help, by the first field below each.
TOPICS = {
    "dataset_path": "Images",
    "backbone": "Model",
    "strategy": "Which layers are trained",
    "num_epochs": "Training",
    "label_smoothing": "Loss and sampling",
    "use_augmentation": "Augmentation",
    "device": "Hardware and speed",
    "name": "Files",
}
ImagesPath = Annotated[str, Remedy("the folder of your images, or leave it out for the built-in scenes")]
DatasetName = Annotated[
    choices.Dataset, Remedy("for example eurosat; any other data set by its folder or table in dataset_path")
]
CacheMode = Annotated[
    choices.Cache, Remedy('for example auto; in a YAML file "off" needs its quotes, or it means false')
]


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Settings):
    """Settings of one fine-tuning run.

    Immutable; all invalid values are reported together at construction. A default that does not go with what was set
    is adapted, and ``notes`` says so. The defaults below may be edited, or a ``config = FinetuneConfig(...)`` added
    at the end of this file: the training command uses both, below its flags and ``--config``.

    Raises:
        ConfigError: one or more fields are invalid; the message lists field, value, what is allowed, and the remedy.
    """

    dataset_path: ImagesPath | None = None
    """Folder with train/ and val/ (and maybe test/), each with one folder per class; or one folder of class folders,
    which is split by seed; or a .csv file with the columns path and label (or labels) and maybe split. Unset: the
    built-in scenes, unless dataset is set."""
    dataset: DatasetName | None = None
    """A data set that torchvision reads, such as eurosat or cifar10; dataset_path is then the folder of a copy.
    Unset: your own images."""
    allow_outside: bool = False
    """Let a .csv file in dataset_path name images outside its own folder."""
    label_separator: Separator = "|"
    """Text between the classes of an image in the column labels of a .csv file, such as "," or " "; brackets and
    quotes around them, as Python writes lists, are removed."""
    train_split: FolderName = "train"
    """Name of the training folder in dataset_path."""
    val_split: FolderName = "val"
    """Name of the validation folder in dataset_path."""
    val_fraction: Fraction = 0.2
    """Share of each class that is held out for validation where dataset_path has no validation folder."""
    split: choices.Split = "random"
    """How val is drawn where dataset_path has none. random: image by image. spatial: of GeoTIFFs or scenes' windows,
    by blocks of ground, with train at least a block away; needs block_size."""
    block_size: PositiveFloat | None = None
    """With split spatial: side of a block in metres, larger than what makes neighbouring images alike."""
    group_column: str | None = None
    """Of a table: the column whose images (of one scene, flight or region) stay on one side where val is drawn."""
    num_classes: Annotated[int, Range(lowest=2, example=10)] | None = None
    """Number of classes. Unset: read from the images; if set, it is checked against them."""
    on_bad_image: BadImagePolicy = "error"
    """What to do with images that cannot be read. error: stop before training. skip: leave them out and list them, up
    to 1 % of all images; skip:0.05: up to 5 %."""
    on_duplicates: choices.OnDuplicates = "error"
    """What to do when the same image is in two of train, val and test. error: stop before training. warn: print a
    line. ignore: do not look for copies. Where val is split off by seed, copies stay on one side of the split."""
    bands: Bands | None = None
    """Read GeoTIFFs, and these bands of them, by number (from 1) or description, in the order that the model gets
    them; names can be given, as in red=4,green=3,blue=2,nir=8: bands named red, green and blue get the pre-trained
    weights of their colours. Needs sat_vg[geo]. Unset: 8-bit RGB."""
    nodata: Annotated[float, Range(example=-9999)] | None = None
    """With bands: a value in the files that means "no value", in addition to those that the files declare and NaN. It
    is stored with the model."""
    rescale: choices.Rescale = "none"
    """How 16-bit RGB images become 8-bit. none: by their high byte. percentile: from the 2nd to the 98th percentile
    of each band over all training images, the same for every image; stored with the model. Needs sat_vg[geo]."""
    shard_window: Annotated[WholeNumber, Range(lowest=0, example=8)] = 0
    """For tar shards in dataset_path (sat-vg shard): number of shards that are read at a time, in random order, with
    their images shuffled together, so that few shards need to be on the disk. 0: all images are shuffled together."""

    backbone: str = "resnet50"
    """A name that `sat-vg backbones` lists, such as resnet50, vit_b_16, swin_t; or timm:NAME."""
    pretrained: bool = True
    """Start from pre-trained weights (see weights), not from random ones."""
    weights: Annotated[str, Remedy("a torchvision name, a path, none, or null")] | None = None
    """Weights to start from: a torchvision name such as IMAGENET1K_V2, the path of a state dict or best_model.pt, or
    none. Unset: torchvision's best ones for the backbone if pretrained, else none."""
    allow_missing: bool = False
    """Let the file in weights lack a part of the backbone, or come from a deeper one: what is missing starts at
    random."""
    image_size: ImageSize | None = None
    """Height and width in pixels of the images that the backbone gets. Unset: the size of the backbone's published
    weights; at most 224 for a named data set of smaller images."""
    dropout: Probability = 0.0
    """Probability of dropping a pooled feature before the classifier."""
    attention_dropout: Probability = 0.0
    """Probability of dropping a weight of attention in training (Vaswani et al., 2017): ViT, Swin, and timm's of that
    kind."""
    pool: choices.Pool = "default"
    """What the classifier sees. default: what the backbone was made for: the class token of a ViT, the average over
    all places elsewhere. avg: the average of a ViT's patch tokens, torchvision's or timm's (Zhai et al., 2022)."""

    strategy: choices.Strategy | None = None
    """Which layers are trained when. full: all of them. linear_probe: the head alone. last_layers: the last stages.
    progressive: the head, then one more stage at a time (Howard & Ruder, 2018). lp_ft: the head, then everything
    (Kumar et al., 2022). Unset: as the two freezing fields say; else lp_ft where pre-trained weights are trained for
    500 steps or fewer, and full in longer runs."""
    freeze_early_layers: bool | PositiveInt = False
    """Freeze stages from the input on. true: all but those in unfreeze_layers (unset: the first half of the stages is
    frozen). A number: that many stages; --dry_run lists them."""
    unfreeze_layers: Annotated[tuple[str, ...], Remedy("for example [layer3, layer4]")] | None = None
    """Stages to train with freeze_early_layers = true, such as layer3,layer4; the head is always trained."""
    last_layers: PositiveInt = 1
    """Number of stages that the strategy last_layers trains besides the head."""
    phase_epochs: Annotated[tuple[PositiveInt, ...], Remedy("for example [4, 16]")] | None = None
    """Epochs of each phase of progressive and lp_ft; they add up to num_epochs. Unset: progressive divides them
    evenly, lp_ft gives a fifth to the head."""
    phase_stages: PhaseStages | None = None
    """Stages that each phase of progressive adds to those before, from first to last, as in "head; layer4; all": head
    alone, then layer4 too, then everything; several stages of a phase stand as in "head; layer3, layer4". Unset: one
    more stage from the end in each phase."""
    probe_solver: choices.ProbeSolver = "exact"
    """How linear_probe and lp_ft train the head. exact: the optimum on the features of the unchanged images, by
    L-BFGS, in one epoch and without a learning rate. sgd: with the optimizer and augmentation, like everything
    else."""
    wise_ft: bool = False
    """After the last phase, interpolate between the weights at its start and at its end, with the share that does
    best on the validation images (Wortsman et al., 2022). Made for lp_ft, which starts from a trained head."""

    num_epochs: PositiveInt = 20
    """Passes over the training images."""
    batch_size: PositiveInt | Literal["auto"] = 32
    """Images per optimizer step, over all processes. auto: the largest power of two that fits well into memory, at
    most 256, with at least 20 steps an epoch."""
    micro_batch_size: PositiveInt | None = None
    """Images that go through the model at once, in each process; gradients accumulate to batch_size. Unset: the whole
    batch, or fewer images after the memory was too small for it."""
    optimizer: choices.Optimizer = "adamw"
    """AdamW (Loshchilov & Hutter, 2019), Adam with L2 (Kingma & Ba, 2015), or SGD with Nesterov momentum."""
    learning_rate: PositiveFloat = 3e-4
    """Learning rate after the warm-up; 1e-3 with lp_ft in 5 epochs or more, whose second phase takes 0.3 of it."""
    layer_decay: LearningRateFactor = 1.0
    """Factor on the learning rate from each stage to the one before it (Clark et al., 2020); 1: none."""
    head_lr_scale: PositiveFloat = 1.0
    """Factor on the head's learning rate."""
    weight_decay: NonNegativeFloat = 1e-3
    """Decoupled weight decay (for adam and sgd: L2); not applied to norms, biases, position embeddings (relative ones
    too), class tokens and scales such as ConvNeXt's layer_scale."""
    momentum: Probability = 0.9
    """Momentum of sgd."""
    warmup_epochs: NonNegativeFloat = 1.0
    """Epochs in which the learning rate rises linearly from near 0."""
    lr_scheduler: choices.Scheduler = "cosine"
    """Learning rate after the warm-up. cosine: falls to min_lr along half a cosine. step: is reduced at regular
    intervals. plateau: is reduced when validation stops improving."""
    lr_step_size: PositiveInt = 7
    """step: epochs between two reductions. plateau: epochs without improvement before a reduction."""
    lr_gamma: Fraction = 0.1
    """step and plateau: factor of each reduction."""
    min_lr: NonNegativeFloat = 1e-6
    """Lower bound of the learning rate after the warm-up, also after the factors of phases, layer_decay and
    head_lr_scale."""
    gradient_clip: NonNegativeFloat = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    ema_decay: Probability = 0.0
    """Share that an exponential moving average of the weights and of batch norm's statistics keeps in each step; the
    average is validated and saved. 0: no average; try 0.99 for hundreds of steps, 0.999 for thousands."""
    early_stopping_patience: WholeNumber = 10
    """End a phase after this many of its epochs without improvement; 0 switches it off."""
    early_stopping_min_delta: NonNegativeFloat = 0.0
    """Smallest gain that counts as an improvement for early_stopping_patience, in units of early_stopping_metric. For
    best_model.pt and the plateau schedule any gain counts."""
    early_stopping_metric: choices.Metric | None = None
    """Metric of early stopping, the plateau schedule and best_model.pt. Unset: val_accuracy; val_map, the mean
    average precision over the classes, where an image can have several classes."""
    seed: WholeNumber = 0
    """Seed of the split, the order of images, augmentation, the head's initial weights and dropout."""

    label_smoothing: Probability = 0.0
    """Share of the target that is spread over all classes (Szegedy et al., 2016); 0.1 with lp_ft in 5 epochs
    or more."""
    class_weights: choices.ClassWeights = "none"
    """Factors on the classes' losses. balanced: the inverse of their number of images (King & Zeng, 2001). effective:
    the inverse of the effective number (Cui et al., 2019), milder for large classes."""
    focal_gamma: NonNegativeFloat = 0.0
    """Exponent of focal loss, which reduces the loss of images that are already right (Lin et al., 2017); 0: plain
    cross-entropy; try 2."""
    sampler: choices.Sampler = "uniform"
    """Images of an epoch. uniform: each once. weighted: as many, drawn with replacement, so that all classes are
    equally frequent on average. class_balanced: the classes take turns, so every batch holds as many of each."""

    use_augmentation: bool = True
    """Change the training images at random, as augmentation says."""
    augmentation: choices.Augmentation | None = None
    """Kind of random changes. satellite: mild scale and colour changes, flips and quarter turns: an overhead image
    has no "up". turns: these flips and turns alone, where colours and scale tell the classes. basic: scale and
    horizontal flips. crops: a little scale alone, where a mirrored image would be another class: digits, letters,
    signs. randaugment (Cubuk et al., 2020), trivialaugment (Müller & Hutter, 2021), autoaugment (Cubuk et al., 2019):
    as published, after scale and turns. advanced: satellite with affine and elastic changes, blur and noise. Unset:
    as suits the data set in dataset, else satellite."""
    crop_scale: AreaShare | None = None
    """Smallest share of an image's area that its random crop keeps; the largest is all of it. Below 0.3, objects may
    lie outside. Unset: 0.8 for the augmentation crops, 0.5 for the others."""
    augmentation_steps: tuple[AugmentationStepText, ...] | None = None
    """Changes after those of augmentation, each for half of the images, with the largest strength behind =, as in
    rotation=30,gaussian_blur=2,noise: rotation (degrees), shift_scale_rotate, elastic, grid_distortion,
    optical_distortion, noise (shares), gaussian_blur, motion_blur (pixels)."""
    train_image_size: DifferentSizes | None = None
    """Train at these image sizes, such as 96,128, smallest first and each for an equal share of the epochs (Howard,
    2018); validation stays at image_size. Unset: image_size throughout."""
    cached_views: WholeNumber = 0
    """With frozen first stages: number of augmented versions of each image that take turns, so that the output of the
    frozen stages is computed once for each and kept. 0: every epoch augments anew. Without augmentation this output
    is always kept."""
    mixup_alpha: NonNegativeFloat = 0.0
    """Beta parameter of Mixup (Zhang et al., 2018); 0 switches it off."""
    cutmix_alpha: NonNegativeFloat = 0.0
    """Beta parameter of CutMix (Yun et al., 2019); 0 switches it off. With both on, each step draws one."""

    device: Annotated[str, Remedy("auto, cpu, cuda, cuda:0 or mps")] = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    mixed_precision: bool = True
    """Compute in bf16 where the device has it, in fp16 with loss scaling on older GPUs, in fp32 elsewhere."""
    autocast_dtype: choices.AutocastDtype = "auto"
    """Number format of mixed_precision."""
    channels_last: bool | None = None
    """Store weights and images in the channels-last memory format. Unset: on, except for grouped convolutions
    (ResNeXt, RegNet) on GPUs. Always off on MPS."""
    tf32: bool = True
    """Let GPUs round the inputs of fp32 products to TF32."""
    compile: bool = False
    """Train with torch.compile: measure whether it pays; on CPUs and for ResNet-50 on an H200 it was slower."""
    sync_batch_norm: bool = False
    """With several processes that have a GPU each (torchrun): batch norm normalises over the images of all processes,
    not over those of each by itself."""
    shard_weights: bool = False
    """With several processes (torchrun): each holds a part of the weights, gradients and optimizer state (FSDP), for
    backbones that do not fit into the memory of one device."""
    num_threads: Annotated[int, Range(lowest=1, highest=1024, example=2)] | None = None
    """Number of CPU threads. Unset: as OMP_NUM_THREADS says, or one for each core that the process may use."""
    keep_freed_memory: bool | None = None
    """Keep freed memory for the next step instead of returning it to the system (glibc). Unset: on for CPUs."""
    num_workers: Annotated[int, Range(lowest=0, highest=1024, example=4)] | None = None
    """Number of processes that decode images; 0 decodes in the training process. Unset: chosen for the device."""
    loader_timeout: Annotated[int, Range(lowest=0, highest=1_000_000, example=300)] = 300
    """Seconds to wait for a batch of these processes before stopping with a message; 0 waits for ever."""
    cache: CacheMode = "auto"
    """Where decoded images are kept, so that they are decoded once and not in every epoch. disk: in the cache folder,
    for later runs too. ram: in memory, for this run. auto: as disk, where that is faster. off: nowhere."""
    cache_gib: PositiveFloat = 16.0
    """Largest size of the cache folder in GiB, decoded images and features together; the entry that was used longest
    ago is removed first."""
    profile: bool = False
    """Show where the time is spent: a table, and profile_trace.json in log_dir for chrome://tracing or Perfetto."""

    name: RunName | None = None
    """Name of the run: log_dir is then runs/NAME/logs and checkpoint_dir runs/NAME/checkpoints. An unfinished run of
    that name with these settings goes on; beside any other one the run is called NAME_2, NAME_3 and so on."""
    log_dir: str = "logs/finetune"
    """Folder of the TensorBoard log and metrics.jsonl."""
    checkpoint_dir: str = "checkpoints/finetune"
    """Folder of best_model.pt and last.pt."""
    save_frequency: PositiveInt = 1
    """Epochs between two writes of last.pt."""
    save_every_steps: Annotated[int, Range(lowest=0, example=500)] = 0
    """Optimizer steps between two writes of last.pt, also within an epoch; 0 switches this off."""
    save_every_minutes: NonNegativeFloat = 10.0
    """Minutes between two writes of last.pt within an epoch; 0 switches this off."""
    max_checkpoints: PositiveInt = 2
    """Number of resumable checkpoints that are kept; last.pt is the newest."""
    log_every: PositiveInt = 10
    """Optimizer steps between two entries in the log."""
    resume: Annotated[str, Remedy("auto, never, or the path of a last.pt")] = "auto"
    """auto: resume the run in checkpoint_dir if there is one. never: start anew; an earlier run is moved to a folder
    of its own. Or the path of a last.pt."""

    @property
    def augments(self) -> bool:
        """Whether training images are changed at random."""
        return self.use_augmentation and self.augmentation != "none"

    @property
    def says_what_is_trained(self) -> bool:
        """Whether a strategy or a freezing field was set."""
        return bool(self.strategy or self.freeze_early_layers or self.unfreeze_layers)

    @property
    def num_frozen_stages(self) -> int:
        """Stages from the input on that are frozen by their number."""
        return 0 if isinstance(self.freeze_early_layers, bool) else self.freeze_early_layers

    def as_flags(self, leave_out: Collection[str] = ()) -> list[str]:
        """What was set and is no default, as arguments of the training command."""
        has_images = self.dataset_path is not None or self.dataset is not None
        usual = self.defaults() if has_images else {}
        # Left out, these would be what lp_ft sets, also where the training chooses it by itself.
        usual = {name: value for name, value in usual.items() if name not in LP_FT_DEFAULTS}
        return as_flags(
            {
                name: value
                for name, value in self.to_dict().items()
                if name in self.given
                and name not in leave_out
                and not (name in usual and usual[name] == getattr(self, name))
            }
        )


def record_defaults() -> None:
    """Write the defaults of ``FinetuneConfig`` as the shipped ones; run by ``make defaults``."""
    heading = "# Written by `make defaults`. A default that differs in finetune_config.py was edited by the user.\n"
    write_text(SHIPPED_DEFAULTS, heading + yaml_text(FinetuneConfig.defaults()))


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
