"""Every source of images stands in one table, by which all commands find it."""

import importlib
import json
import pkgutil
import unicodedata
from pathlib import Path

import pytest
from conftest import write_image

from sat_vg.backbone_finetuning.data import sources
from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.data.shards import source as shards_source
from sat_vg.backbone_finetuning.data.sources import table
from sat_vg.backbone_finetuning.data.sources.source import ImageQuery
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError


def test_every_source_stands_in_the_table():
    names = [f"{sources.__name__}.{module.name}" for module in pkgutil.iter_modules(sources.__path__)]
    modules = [shards_source, *map(importlib.import_module, names)]
    values = [value for module in modules for value in vars(module).values() if hasattr(value, "list_images")]
    classes = {value for value in values if isinstance(value, type) and value.__name__ != "Source"}
    assert len(classes) >= 5
    assert {type(source) for source in table.SOURCES} == classes, "add it to SOURCES in data/sources/table.py"
    assert table.SOURCES[-1] is table.FOLDERS, "it takes whatever is left, so what stands behind it is never asked"


@pytest.fixture
def shards(class_folders, shard_command, tmp_path) -> Path:
    pytest.importorskip("webdataset")
    code, _, err = shard_command(class_folders, "--output_dir", tmp_path / "shards", "--images_per_shard", 4)
    assert code == 0, err
    return tmp_path / "shards"


def test_a_model_is_run_over_shards_as_over_folders(class_folders, shards):
    folders, found = (table.list_images(ImageQuery(path=str(path))) for path in (class_folders, shards))
    assert len(found) == len(folders) == 36
    assert sorted(found.labels) == sorted(folders.labels)
    in_shards, in_folders = (
        {decode_rgb(path).numpy().tobytes() for path in images.paths} for images in (found, folders)
    )
    assert in_shards == in_folders
    assert table.list_images(ImageQuery(path=str(shards / "shards.json"))).paths == found.paths


def test_class_names_of_a_foreign_index_are_in_one_form(shards):
    path = shards / "shards.json"
    content = json.loads(path.read_text())
    content["class_names"][1] = "me\u0301r"
    path.write_text(json.dumps(content))
    names = table.load_splits(ImageQuery(path=str(shards))).class_names
    assert names[1] == unicodedata.normalize("NFC", "me\u0301r") == "m\u00e9r"


def test_train_and_val_of_one_name_are_refused(class_folders):
    with pytest.raises(ConfigError, match="train_split and val_split are both 'train'"):
        table.load_splits(ImageQuery(path=str(class_folders), val_split="train"))


def test_archives_beside_images_are_no_shards(tmp_path):
    write_image(tmp_path / "a.png", (1, 2, 3), 0, size=4)
    (tmp_path / "backup.tar").write_bytes(b"x")
    assert len(table.list_images(ImageQuery(path=str(tmp_path)))) == 1


def test_what_cannot_be_trained_on(tmp_path):
    (tmp_path / "list.txt").write_text("a.png\n")
    with pytest.raises(DataError, match="list of paths, without classes"):
        table.load_splits(ImageQuery(path=str(tmp_path / "list.txt")))
    with pytest.raises(ConfigError, match="holds no shards"):
        table.load_splits(ImageQuery(path=str(tmp_path), shard_window=2))
