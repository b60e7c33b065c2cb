"""The options of ``sat-vg compare``."""

from dataclasses import dataclass

from sat_vg.backbone_finetuning.configs.ranges import PositiveFloat


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of ``sat-vg compare``; lists that are unset are taken from the recipe."""

    data: str | None = None
    """Images, as for the training: class folders, or a .csv table. Unset: those of the recipe or of the options
    behind --."""
    recipe: str | None = None
    """YAML file with backbones, strategies, seeds, dataset_path, settings, weights; options outrank it."""
    backbones: tuple[str, ...] | None = None
    """Names, such as resnet18,vit_b_16."""
    strategies: tuple[str, ...] | None = None
    """Names, such as linear_probe,full."""
    seeds: tuple[int, ...] | None = None
    """Whole numbers, such as 0,1."""
    weights: tuple[str, ...] | None = None
    """Files to start from, such as resnet18=resnet18.pth,resnet50=resnet50.pth. A backbone without one starts from
    torchvision's best weights."""
    out: str = "comparison"
    """Folder of the cells and of the results."""
    max_params: str | None = None
    """Maximum number of parameters of the recommended backbone, such as 5M, 500k or 2.5e6."""
    min_images_per_second: PositiveFloat | None = None
    """Minimum speed of the recommended backbone, as measured here."""
    anew: bool = False
    """Move cells that had other settings aside and train them again."""
    dry_run: bool = False
    """List the cells and which are done; train nothing."""
