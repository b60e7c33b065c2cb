"""What tests of tar shards share besides the fixtures."""

import shutil
from pathlib import Path

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.data.shards.cache import SOURCE
from sat_vg.backbone_finetuning.data.sources.splits import Splits
from sat_vg.backbone_finetuning.training.preparation import load_splits


def splits_of(path: Path, **settings: object) -> Splits:
    """The images of a folder of shards, or of any other data set."""
    return load_splits(FinetuneConfig(dataset_path=str(path), **settings))


def pipe(tmp_path: Path, monkeypatch, shards: Path) -> tuple[Path, Path]:
    """The shards moved away, to be fetched by a command: the index alone, and a file with a line for each fetch."""
    away, log = tmp_path / "far away", tmp_path / "fetched.txt"
    shards.rename(away)
    shards.mkdir()
    shutil.copy(away / "shards.json", shards)
    monkeypatch.setenv(SOURCE, f"pipe:echo {{name}} >> '{log}'; cat '{away}'/{{name}}")
    return away, log
