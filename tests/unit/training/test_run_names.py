"""Under which name a run lies: its own while it is unfinished, or the next that is free."""

import shlex

import pytest

from sat_vg.backbone_finetuning.configs.command_line import parse_command_line
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.training import run_folder
from sat_vg.backbone_finetuning.training.resumption import way_to_train_on

CONFIG = FinetuneConfig(dataset_path="x", name="a", num_epochs=3)


@pytest.mark.parametrize(
    ("of_run", "now", "name"),
    [
        ({}, {}, "a"),
        ({}, {"dropout": 0.5}, "a_2"),
        ({"dropout": None}, {}, "a"),
        ({"dropout": None}, {"dropout": 0.5}, "a_2"),
    ],
)
def test_an_unfinished_run_keeps_its_name_also_where_a_field_came_with_a_later_version(
    of_run, now, name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    begun = tmp_path / CONFIG.checkpoint_dir
    begun.mkdir(parents=True)
    (begun / "last.pt").touch()
    saved = {
        key: value for key, value in (CONFIG.to_dict() | of_run).items() if key != "dropout" or value is not None
    }
    content = {"config": saved, "state": {"finished": False}}
    monkeypatch.setattr(run_folder, "read_newest_sound", lambda folder: (folder / "last.pt", content))
    assert run_folder.free_name(CONFIG.replace(**now)).name == name


def test_the_command_that_trains_on_from_a_named_run_can_be_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    earlier = run_folder.EarlierRun(tmp_path / CONFIG.checkpoint_dir / "last.pt", {})
    line = way_to_train_on(FinetuneConfig.from_dict(CONFIG.to_dict()), earlier)
    config = parse_command_line(shlex.split(line.partition("sat-vg train ")[2])).config
    assert config.checkpoint_dir == f"{CONFIG.checkpoint_dir}_2"


@pytest.mark.parametrize("folder", [".", "..", "runs/..", "/"])
def test_there_is_a_name_beside_any_folder(folder, tmp_path, monkeypatch):
    (tmp_path / "here/runs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    config = FinetuneConfig(dataset_path="x", checkpoint_dir=folder, log_dir="logs")
    line = way_to_train_on(config, run_folder.EarlierRun(tmp_path / "last.pt", {}))
    found = parse_command_line(shlex.split(line.partition("sat-vg train ")[2])).config
    beside = {".": tmp_path / "here_2", "..": f"{tmp_path}_2", "runs/..": tmp_path / "here_2", "/": "/run_2"}
    assert (found.checkpoint_dir, found.log_dir) == (str(beside[folder]), "logs_2")
