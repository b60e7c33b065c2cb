"""The record of a finished cell: what one holds where an image has one class, and where it can have several."""

import json

import pytest

from sat_vg.backbone_finetuning.commands.compare.cell_files import (
    CELL,
    CellResult,
    gpu_peak,
    read_result,
    write_result,
)
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.training.checkpoint import RunState
from sat_vg.backbone_finetuning.training.epoch_curves import GPU_PEAK
from sat_vg.backbone_finetuning.training.tracking import FileTracker

ONE = CellResult(0.5, 0.4, 3, 5, 10.0, 12.0, None, 9, "hash")
MANY = CellResult(0.5, 0.4, 3, 5, 10.0, 12.0, None, 9, "hash", top_5=0.9, gpu_gib=1.5)
SEVERAL = CellResult(0.5, 0.4, 3, 5, 10.0, 12.0, 0.7, 9, "hash", map=0.8)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/best_model.pt").touch()
    return tmp_path


@pytest.mark.parametrize(("result", "score"), [(ONE, 0.5), (MANY, 0.5), (SEVERAL, 0.8)])
def test_a_record_is_read_back(folder, result, score):
    write_result(folder, FinetuneConfig(), result, {})
    assert read_result(folder) == result
    assert result.score == score


def test_records_of_one_class_an_image_are_what_they_were(folder):
    write_result(folder, FinetuneConfig(), ONE, {})
    names = [
        "accuracy",
        "macro_f1",
        "epoch",
        "epochs",
        "training_seconds",
        "seconds",
        "peak_gib",
        "val_images",
        "data",
    ]
    assert list(json.loads((folder / CELL).read_text())["result"]) == names


def test_the_memory_of_a_gpu_is_read_from_the_log(tmp_path):
    assert gpu_peak(tmp_path) is None
    with FileTracker(tmp_path / "logs", RunState()) as tracker:
        tracker.curves({"memory/peak_resident_gib": 3.0}, 4)
    assert gpu_peak(tmp_path) is None
    with FileTracker(tmp_path / "logs", RunState(epoch=1, step=4)) as tracker:
        tracker.curves({GPU_PEAK: 1.5}, 8)
        tracker.curves({GPU_PEAK: 1.25}, 12)
    assert gpu_peak(tmp_path) == 1.5


@pytest.mark.parametrize("change", [{"map": "0.8"}, {"map": None}, {"other": 1}, {"accuracy": None}])
def test_a_record_that_is_not_sound_counts_for_nothing(folder, change):
    write_result(folder, FinetuneConfig(), SEVERAL, {})
    record = json.loads((folder / CELL).read_text())
    record["result"] |= change
    (folder / CELL).write_text(json.dumps(record))
    assert read_result(folder) is None
