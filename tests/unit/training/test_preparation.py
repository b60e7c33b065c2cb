"""What is said of the images before they are trained on."""

import shutil
from dataclasses import replace

from conftest import COLOURS

from sat_vg.backbone_finetuning.data.sources.splits import load_class_folders
from sat_vg.backbone_finetuning.training.preparation import tell_data


def test_classes_without_images_are_told(class_folders, capsys):
    names = sorted(COLOURS)
    tell_data(load_class_folders(class_folders))
    assert "warning" not in capsys.readouterr().out
    for name in names[1:]:
        shutil.rmtree(class_folders / "val" / name)
    splits = load_class_folders(class_folders)
    tell_data(splits)
    found = capsys.readouterr().out
    assert f"warning: val has no image of {names[1]!r}, {names[2]!r}: the result says nothing of them\n" in found
    first = [index for index, label in enumerate(splits.train.labels) if label]
    tell_data(replace(splits, train=splits.train.take(first)))
    assert f"warning: train has no image of {names[0]!r}: nothing is learned of it\n" in capsys.readouterr().out
