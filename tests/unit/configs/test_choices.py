"""A name that settings choose among stands in configs/choices.py and in the table of what is behind it."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, get_args

import pytest

from sat_vg.backbone_finetuning.configs import choices
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.configs.option_parser import _texts_of
from sat_vg.backbone_finetuning.data.loading.augmentation import PRESETS
from sat_vg.backbone_finetuning.data.loading.sampling import SAMPLERS
from sat_vg.backbone_finetuning.data.reading.decoded_cache import CACHES
from sat_vg.backbone_finetuning.data.sources.torchvision_datasets import DATASETS
from sat_vg.backbone_finetuning.evaluation.tasks import TASKS
from sat_vg.backbone_finetuning.models.exports import FORMATS, PARTS
from sat_vg.backbone_finetuning.training.losses import CLASS_SIZES
from sat_vg.backbone_finetuning.training.optim import OPTIMIZERS, SCHEDULERS
from sat_vg.backbone_finetuning.training.phases import STRATEGIES
from sat_vg.backbone_finetuning.utils.precision import _DTYPES

DOCS = Path(__file__).parents[3] / "docs"
TABLES = [
    ("Strategy", STRATEGIES, "STRATEGIES in training/phases.py"),
    ("Optimizer", OPTIMIZERS, "OPTIMIZERS in training/optim.py"),
    ("Scheduler", SCHEDULERS, "SCHEDULERS in training/optim.py"),
    ("ClassWeights", CLASS_SIZES, "CLASS_SIZES in training/losses.py"),
    ("Augmentation", {"none", *PRESETS}, "PRESETS in data/loading/augmentation.py"),
    ("Augmentation", choices.VIEWS_OF_AUGMENTATION, "VIEWS_OF_AUGMENTATION in configs/choices.py"),
    ("Sampler", SAMPLERS, "SAMPLERS in data/loading/sampling.py"),
    ("Cache", CACHES, "CACHES in data/reading/decoded_cache.py"),
    ("Dataset", DATASETS, "DATASETS in data/sources/torchvision_datasets.py"),
    ("Metric", {name for task in TASKS.values() for name in task.metrics}, "TASKS in evaluation/tasks.py"),
    ("AutocastDtype", {"auto", *_DTYPES}, "_DTYPES in utils/precision.py"),
    ("ExportFormat", FORMATS, "FORMATS in models/exports/__init__.py"),
    ("ExportPart", PARTS, "PARTS in models/exports/__init__.py"),
]


def differences(kind: Any, names: Collection[str], place: str, title: str) -> list[str]:
    """What stands in one of the two places alone, and where it is to be added."""
    chosen = get_args(kind)
    return [
        *(f"{name!r} is in {place}; add it to {title} in configs/choices.py" for name in names if name not in chosen),
        *(f"{name!r} is in {title} of configs/choices.py; add it to {place}" for name in chosen if name not in names),
    ]


@pytest.mark.parametrize(
    ("title", "names", "place"), TABLES, ids=[f"{title}: {place.split()[0]}" for title, _, place in TABLES]
)
def test_each_choice_has_something_behind_it_and_can_be_chosen(title, names, place):
    kind = getattr(choices, title)
    assert not differences(kind, names, place, title)
    assert differences(kind, [*names, "new"], place, title) == [
        f"'new' is in {place}; add it to {title} in configs/choices.py"
    ]
    lost = next(iter(names))
    assert f"add it to {place}" in "".join(differences(kind, set(names) - {lost}, place, title))


@pytest.mark.parametrize(
    ("title", "field", "page"),
    [
        ("Strategy", "strategy", "concepts.md"),
        ("Augmentation", "augmentation", "runs.md"),
        ("ExportFormat", None, "exporting.md"),
    ],
)
def test_each_choice_is_in_the_help_and_in_a_table_of_its_page(title, field, page):
    rows = [line for line in (DOCS / page).read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    text = _texts_of(FinetuneConfig)[field] if field else ""
    for name in get_args(getattr(choices, title)):
        assert any(f"`{name}`" in row.split(" | ")[0] for row in rows), f"add a row for {name} to docs/{page}"
        assert field is None or name == "none" or f"{name}" in text, f"say in the docstring of {field} what {name} is"
