"""What grounding says of data and places that it cannot use."""

import json
import re
import shutil
import sys

import pytest
from grounding_files import write_squares
from grounding_here import RANDOM, SMALL

pytest_plugins = ("grounding_here",)  # its fixtures
pytestmark = [pytest.mark.recipe, pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")]


def test_data_that_are_not_there_are_told_before_the_backbone_is_loaded(ground):
    code, out, err = ground("train", "--data", "nowhere", "--backbone", "resnet18", "--weights", "none")
    assert code == 2
    assert "data = 'nowhere': there is no such folder or file" in err
    assert "backbone" not in out


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--text_encoder", "bert", "--text_layers", 3), "text_layers = 3: has no effect with text_encoder = 'bert'"),
        (("--freeze_backbone", "true", "--backbone_lr_scale", 0.5), "has no effect with freeze_backbone = True"),
        (("--mixed_precision", "false", "--autocast_dtype", "bf16"), "has no effect with mixed_precision = False"),
    ],
)
def test_settings_without_effect_are_refused(flags, told, ground):
    code, out, err = ground("train", "--data", "nowhere", *flags)
    assert code == 2 and told in err and "leave one of the two out" in err, err
    assert not out


def test_what_a_training_says_of_its_phrases_and_settings(ground, tmp_path):
    """A turned phrase can be longer, and was cut without a word; so were settings that the data make useless."""
    data = write_squares(tmp_path, {"train": 4, "val": 2})
    entries = json.loads((data / "train.json").read_text())
    entries[0]["phrase"] = "the red square above the blue"
    rows = [entry | {"box_format": "xyxy"} for entry in entries]
    (data / "train.json").write_text(json.dumps(rows))
    (data / "val.json").write_text(json.dumps(rows[1:2]))
    flags = ("--box_format", "xywh", "--val_fraction", 0.3, "--max_words", 6, "--num_epochs", 1)
    code, out, err = ground("train", "--data", data, *SMALL, *RANDOM, *flags)
    assert code == 0, err
    longer = "1 phrase of train is longer than 6 words when turned with the image"
    assert f"data: {longer}; what is beyond is not read: --max_words 9\n" in out
    assert "data: box_format = 'xywh' has no effect: all boxes say their own\n" in out
    assert "data: val_fraction = 0.3 has no effect: there is a val\n" in out


def test_phrases_that_are_cut_are_counted(ground, dior, whole):
    code, out, err = ground(
        "train", "--data", dior, *SMALL, *RANDOM, "--num_epochs", 1, "--max_words", 4, "--text_layers", 0
    )
    assert code == 0, err
    told = "phrases of {} are longer than 4 words; what is beyond is not read: --max_words 6"
    assert f"data: 16 {told.format('train')}\n" in out
    assert f"data: 4 {told.format('val')}\n" in out
    code, out, err = ground("evaluate", "ckpt/best_model.pt", dior)
    assert code == 0, err
    assert "data: 4 phrases of test are longer than 4 words; what is beyond is not read\n" in out
    code, out, err = ground("evaluate", whole / "ckpt/best_model.pt", dior)
    assert code == 0 and "longer than" not in out, err


def test_a_place_that_cannot_be_written_to_is_told(whole, dior, ground, tmp_path):
    checkpoint, taken = whole / "ckpt/best_model.pt", tmp_path / "taken"
    taken.write_text("a file")
    for words in (
        ("evaluate", checkpoint, dior, "--out", taken),
        ("predict", checkpoint, dior / "JPEGImages/00011.jpg", "the red square", "--out", taken / "found.png"),
    ):
        code, _, err = ground(*words)
        assert code == 1 and err.startswith("error: ") and "taken" in err, err
    (tmp_path / "held/report.html").mkdir(parents=True)
    code, _, err = ground("evaluate", checkpoint, dior, "--out", "held")
    assert code == 1 and "'held' cannot be written to" in err and "choose another" in err, err


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("image", "00003.xml, object 1: "),
        ("phrase", "00003.xml, object 1: the phrase is empty"),
        ("box", "00003.xml, object 1: the box 900, 900, 990, 990 lies outside the image, which is 64 x 64 pixels"),
    ],
)
def test_bad_records_end_with_file_and_place_or_are_left_out(damage, problem, dior, ground, tmp_path):
    data = shutil.copytree(dior, tmp_path / "data")
    xml = data / "Annotations/00003.xml"
    if damage == "image":
        (data / "JPEGImages/00003.jpg").write_bytes(b"\xff\xd8 no more")
    elif damage == "phrase":
        xml.write_text(xml.read_text().replace("a red square on the left", " "))
    else:
        box = "<bndbox><xmin>900</xmin><ymin>900</ymin><xmax>990</xmax><ymax>990</ymax></bndbox>"
        xml.write_text(re.sub(r"<bndbox>.*?</bndbox>", box, xml.read_text(), count=1))
    flags = ("train", *SMALL, *RANDOM, "--data", data, "--num_epochs", "1")
    code, _, err = ground(*flags)
    count = 2 if damage == "image" else 1
    assert code == 2 and f"{count} record{'s' * (count > 1)} cannot be used" in err
    assert problem in err and "--on_bad_record skip" in err
    assert not (tmp_path / "ckpt/last.pt").exists()
    code, out, err = ground(*flags, "--on_bad_record", "skip")
    assert code == 0, err
    listed = (tmp_path / "logs/skipped_records.txt").read_text().splitlines()
    assert len(listed) == count and problem in listed[0]
    assert f"train {16 - count} phrases" in out


def test_a_bad_record_matters_in_its_own_split_alone(whole, dior, ground, tmp_path):
    """That of train is told in a line where test is evaluated, and not listed among those left out."""
    data = shutil.copytree(dior, tmp_path / "data")
    xml = data / "Annotations/00003.xml"
    xml.write_text(xml.read_text().replace("a red square on the left", " "))
    (data / "val.txt").write_text("16\n17\n18\n99\n")
    checkpoint = whole / "ckpt/best_model.pt"
    for policy in ("error", "skip"):
        code, out, err = ground("evaluate", checkpoint, data, "--out", "found", "--on_bad_record", policy)
        assert code == 0, err
        assert (
            "data: not used here: 1 record of train cannot be used, such as 00003.xml, object 1: the phrase is empty"
            in out
        )
        assert (
            "data: not used here: 1 record of val cannot be used, such as val.txt, entry 4: '99' is no index of the"
            in out
        )
        assert not (tmp_path / "found/skipped_records.txt").exists()
    code, _, err = ground("evaluate", checkpoint, data, "--split", "val", "--out", "found")
    assert code == 2 and "1 record cannot be used:\n  val.txt, entry 4: '99' is no index" in err


def test_the_format_of_boxes_that_the_training_was_told_counts_for_its_data(ground, tmp_path):
    (tmp_path / "data").mkdir()
    data = write_squares(tmp_path / "data", {"train": 4, "val": 2, "test": 2})
    for split in ("train", "val", "test"):
        entries = json.loads((data / f"{split}.json").read_text())
        for entry in entries:
            x1, y1, x2, y2 = entry["box"]
            entry["box"] = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
        (data / f"{split}.json").write_text(json.dumps(entries))
    code, _, err = ground("train", *SMALL, *RANDOM, "--data", data, "--box_format", "cxcywh", "--num_epochs", 1)
    assert code == 0, err
    code, out, err = ground("evaluate", "ckpt/best_model.pt", f"{data}/../data", "--out", "found")
    assert code == 0, err
    assert "nothing says their format" not in out
    rows = json.loads((tmp_path / "found/predictions.json").read_text())
    assert {(row["target"][2] - row["target"][0], row["target"][3] - row["target"][1]) for row in rows} == {(24, 24)}
    shutil.copytree(data, tmp_path / "other")
    code, out, err = ground("evaluate", "ckpt/best_model.pt", "other", "--out", "found")
    assert code == 0 and "nothing says their format" in out, err


@pytest.mark.parametrize(
    ("damaged", "split", "told"),
    [
        ("Annotations/00007.xml", "train", "is not valid XML"),
        ("train.txt", "train", "is not UTF-8 text"),
        ("val.txt", "val", "is not UTF-8 text"),
    ],
)
def test_a_bad_file_matters_in_its_own_split_alone(whole, dior, ground, tmp_path, damaged, split, told):
    """Told in a line where test is evaluated; objects behind an XML file that cannot be read have no number."""
    data = shutil.copytree(dior, tmp_path / "data")
    (data / "test.txt").write_text("0\n1\n2\n")
    with (data / damaged).open("ab") as file:
        file.write(b"\xff\xfe" if damaged.endswith(".txt") else b"<")
    checkpoint = whole / "ckpt/best_model.pt"
    code, out, err = ground("evaluate", checkpoint, data, "--split", "test", "--out", "found")
    assert code == 0, err
    assert f"data: not used here: {split}: " in out and told in out
    assert "test 3 phrases" in out and "drawn by seed" not in out
    code, _, err = ground("evaluate", checkpoint, data, "--split", split, "--out", "found")
    assert code == 2 and told in err and err.count("\n") == 1, err
    if damaged == "val.txt":  # nothing is drawn of train in its place
        code, out, err = ground("evaluate", checkpoint, data, "--split", "train", "--out", "found")
        assert code == 0 and "drawn by seed" not in out, err


def test_one_image_at_a_time_is_too_few_for_a_batch_norm_of_one_place(dior, ground, tmp_path):
    """Statistics of one value are none: torch has no sentence for it. Maps of several places can be trained on."""
    for number in range(2):
        shutil.copy(dior / f"JPEGImages/0000{number}.jpg", tmp_path / f"{number}.jpg")
    for split, number in (("train", 0), ("val", 1)):
        (tmp_path / f"{split}.txt").write_text(f"{number}.jpg,1,1,20,20,the square\n")
    flags = ("train", *SMALL, "--data", tmp_path, "--num_epochs", 1, "--resume", "never")
    for size in (32, 16):
        code, _, err = ground(*flags, *RANDOM, "--image_size", size)
        assert code == 2 and f"image_size = {size}: a batch may hold one image" in err and err.count("\n") <= 2, err
        assert not (tmp_path / "ckpt/last.pt").exists()
    for more in ((*RANDOM, "--image_size", 32, "--freeze_backbone", "true"), (*RANDOM, "--image_size", 64)):
        code, _, err = ground(*flags, *more)
        assert code == 0, err
    (tmp_path / "train.txt").write_text("".join(f"{n}.jpg,1,1,20,20,the square\n" for n in range(2)))
    code, _, err = ground(*flags, *RANDOM, "--image_size", 32)  # two images in the only batch
    assert code == 0, err


def test_a_cache_that_cannot_be_written_to_is_told(ground, tmp_path):
    (tmp_path / "cache").write_text("a file")
    code, _, err = ground("train", *SMALL)
    assert code == 2 and "the built-in tiles cannot be kept in" in err and "SAT_VG_CACHE" in err


def test_a_set_without_enough_images_is_refused(dior, ground, tmp_path):
    shutil.copy(dior / "JPEGImages/00000.jpg", tmp_path / "a.jpg")
    (tmp_path / "train.txt").write_text("a.jpg,1,1,20,20,the square\n")
    code, _, err = ground("train", *SMALL, *RANDOM, "--data", tmp_path / "train.txt")
    assert code == 2 and "has no records of val, only of train" in err
