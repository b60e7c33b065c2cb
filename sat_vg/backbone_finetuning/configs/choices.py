"""The names that settings choose among, each list once: field types, checks and the tables of functions follow these.

Free of torch. The functions behind the names stand in tables elsewhere (``training/phases.py`` for strategies, and so
on); ``tests/unit/configs/test_choices.py`` holds each table against its names here.
"""

from typing import Literal, get_args

# Those that torchvision reads; data/sources/torchvision_datasets.py says how.
Dataset = Literal[
    "eurosat", "mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "svhn", "stl10", "caltech101", "caltech256",
    "imagenet", "inaturalist", "flowers102", "food101", "oxford_iiit_pet", "dtd", "gtsrb",
]  # fmt: skip
OnDuplicates = Literal["error", "warn", "ignore"]
Split = Literal["random", "spatial"]
Rescale = Literal["none", "percentile"]
Cache = Literal["auto", "ram", "disk", "off"]

Strategy = Literal["full", "linear_probe", "last_layers", "progressive", "lp_ft"]
STRATEGIES_OF_SEVERAL_PHASES: tuple[Strategy, ...] = ("progressive", "lp_ft")
ProbeSolver = Literal["exact", "sgd"]
Optimizer = Literal["adamw", "adam", "sgd"]
Scheduler = Literal["cosine", "step", "plateau"]
ClassWeights = Literal["none", "balanced", "effective"]
Sampler = Literal["uniform", "weighted", "class_balanced"]
Metric = Literal["val_accuracy", "val_loss", "val_macro_f1", "val_map"]
AutocastDtype = Literal["auto", "bf16", "fp16"]

Augmentation = Literal[
    "satellite", "none", "turns", "basic", "randaugment", "trivialaugment", "autoaugment", "advanced", "crops"
]
# The other augmentations change colours in ways that are defined for 8-bit red, green and blue only.
AUGMENTATIONS_OF_ANY_BANDS = ("satellite", "turns", "crops", "basic")

# The flips and quarter turns of an image that predictions can be averaged over, by augmentation. What some were made
# for has an "up": they show images as they are, or these and flipped from left to right.
MOST_VIEWS = 8
VIEWS_OF_AUGMENTATION: dict[Augmentation, int] = {
    "satellite": 8, "none": 8, "turns": 8, "basic": 2, "randaugment": 8, "trivialaugment": 8, "autoaugment": 8,
    "advanced": 8, "crops": 1,
}  # fmt: skip

# What can be added to an augmentation; the strength that it has unless one is given, and the largest.
AugmentationStep = Literal[
    "rotation", "shift_scale_rotate", "elastic", "grid_distortion", "optical_distortion", "gaussian_blur",
    "motion_blur", "noise",
]  # fmt: skip
AUGMENTATION_STEPS: dict[str, tuple[float, float]] = {
    "rotation": (180.0, 180.0),  # degrees
    "shift_scale_rotate": (0.1, 0.9),  # shares of the side, of 1, and of half a turn
    "elastic": (0.025, 0.2),  # share of the side
    "grid_distortion": (0.3, 0.9),  # share of a cell
    "optical_distortion": (0.2, 0.9),  # share of a corner's distance from the centre
    "gaussian_blur": (1.5, 5.0),  # pixels
    "motion_blur": (7.0, 31.0),  # pixels
    "noise": (0.04, 0.5),  # share of the largest value; of other types than uint8: of a band's deviation
}

# What the classifier sees of a network that has a class token.
Pool = Literal["default", "avg"]

ExportFormat = Literal["torchvision", "detr", "safetensors", "onnx", "pt2"]
ExportPart = Literal["classifier", "extractor"]

DATASETS: tuple[Dataset, ...] = get_args(Dataset)
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
