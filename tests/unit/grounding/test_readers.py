"""Every layout of grounding data gives the same records; what is wrong is named with its file and place."""

import json

import pytest
import torch

from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, DataError
from sat_vg.grounding.images import ImageStore
from sat_vg.grounding.readers import read_listing, split_records

XML = """<annotation><filename>{name}.jpg</filename>{objects}</annotation>"""
OBJECT = """<object><name>ship</name><bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox>
<description>{4}</description></object>"""
ROWS = [("a.png", (1, 2, 11, 12), "the ship, on the left"), ("b.png", (3, 4, 30, 40), "the tank")]


def plain(listing, split):
    return [(record.image.rpartition("/")[2], record.box, record.phrase) for record in listing.splits[split]]


def as_json(folder):
    entries = [{"image": image, "phrase": phrase, "box": list(box)} for image, box, phrase in ROWS]
    (folder / "train.json").write_text(json.dumps(entries))


def as_jsonl(folder):
    lines = [json.dumps({"image": image, "phrase": phrase, "box": list(box)}) for image, box, phrase in ROWS]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n\n")


def as_csv(folder):
    lines = [f'{image},"{phrase}",{",".join(map(str, box))}' for image, box, phrase in ROWS]
    (folder / "train.csv").write_text("\ufeffimage,phrase,x1,y1,x2,y2\r\n" + "\r\n".join(lines), encoding="utf-8")


def as_lines(folder):
    (folder / "train.txt").write_text(
        "\n".join(f"{image},{','.join(map(str, box))},{phrase}" for image, box, phrase in ROWS)
    )


def as_pth(folder):
    torch.save([(image, "", list(box), phrase, []) for image, box, phrase in ROWS], folder / "train.pth")


@pytest.mark.parametrize("write", [as_json, as_jsonl, as_csv, as_lines, as_pth])
def test_every_layout_gives_the_same_records(write, tmp_path):
    write(tmp_path)
    assert plain(read_listing(tmp_path), "train") == [
        (image, tuple(map(float, box)), phrase) for image, box, phrase in ROWS
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [("train.txt", "a.png,1,2,3,4,p\n"), ("train.csv", "image,phrase,x1,y1,x2,y2\na.png,p,1,2,3,4\n")],
)
def test_a_layout_that_says_corners_is_not_guessed(name, text, tmp_path):
    """One with swapped corners was taken for x, y, width, height, where there were no others."""
    (tmp_path / name).write_text(text)
    assert read_listing(tmp_path).splits["train"][0].box_format == "xyxy"
    assert read_listing(tmp_path, "xywh").splits["train"][0].box_format == "xywh"


def test_a_folder_may_hold_val_alone(tmp_path):
    (tmp_path / "val.txt").write_text("a.png,1,2,3,4,p\n")
    assert list(read_listing(tmp_path).splits) == ["val"]


def dior(root, files):
    """A data set in DIOR-RSVG's layout: files by name, each with its objects."""
    (root / "Annotations").mkdir()
    (root / "JPEGImages").mkdir()
    for name, objects in files.items():
        text = XML.format(name=name, objects="".join(OBJECT.format(*box, phrase) for box, phrase in objects))
        (root / "Annotations" / f"{name}.xml").write_text(text)


def test_dior_rsvg_counts_objects_over_sorted_names(tmp_path):
    files = {"00010": [((1, 1, 9, 9), "third")], "00002": [((1, 1, 9, 9), "first"), ((2, 2, 8, 8), "second")]}
    dior(tmp_path, files)
    (tmp_path / "train.txt").write_text("0\n2\n")
    (tmp_path / "test.txt").write_text("1\n7\nx\n" + "9" * 5000)
    listing = read_listing(tmp_path)
    assert [record.phrase for record in listing.splits["train"]] == ["first", "third"]
    assert [record.phrase for record in listing.splits["test"]] == ["second"]
    assert list(listing.problems) == ["test"]
    assert listing.problems["test"].pop().startswith("test.txt, entry 4: '9999")
    assert listing.problems["test"] == [
        "test.txt, entry 2: '7' is no index of the 3 objects",
        "test.txt, entry 3: 'x' is no index of the 3 objects",
    ]
    assert listing.splits["train"][1].image.endswith("00010.jpg")


def test_every_xml_file_counts_whatever_its_ending_and_none_of_macos(tmp_path):
    """One that ends in .XML was left out in silence, and all objects behind it had other numbers."""
    dior(tmp_path, {"1": [((1, 1, 9, 9), "first")], "2": [((1, 1, 9, 9), "second")]})
    (tmp_path / "Annotations/1.xml").rename(tmp_path / "Annotations/1.XML")
    (tmp_path / "Annotations/._1.XML").write_bytes(b"\0\5\x16\7\xff")
    (tmp_path / "train.txt").write_text("0 1")
    assert [record.phrase for record in read_listing(tmp_path).splits["train"]] == ["first", "second"]


def test_names_of_images_as_windows_writes_them(tmp_path):
    dior(tmp_path, {"1": [((1, 1, 9, 9), "first")]})
    xml = tmp_path / "Annotations/1.xml"
    xml.write_text(xml.read_text().replace("1.jpg", r"C:\data\1.jpg"))
    (record,) = read_listing(tmp_path).splits[""]
    assert record.image == str(tmp_path / "1.jpg")


def test_an_object_with_two_descriptions_is_told(tmp_path):
    """The second one was left out in silence."""
    dior(tmp_path, {"1": [((1, 1, 9, 9), "first</description><description>another"), ((1, 1, 9, 9), "second")]})
    listing = read_listing(tmp_path)
    assert listing.problems == {"": ["1.xml, object 1: has 2 descriptions; keep the one that is its phrase"]} and [
        record.phrase for record in listing.splits[""]
    ] == ["second"]


def test_an_object_that_is_listed_twice_is_told(tmp_path):
    """In one split it is no second record; in two it is a record of both, and a line says so."""
    dior(tmp_path, {"1": [((1, 1, 9, 9), "first"), ((2, 2, 8, 8), "second"), ((3, 3, 7, 7), "third")]})
    (tmp_path / "train.txt").write_text("0 1 0\n00")
    (tmp_path / "val.txt").write_text("2")
    (tmp_path / "test.txt").write_text("2 1")
    listing = read_listing(tmp_path)
    assert [record.phrase for record in listing.splits["train"]] == ["first", "second"]
    assert listing.problems == {
        "train": [
            "train.txt, entry 3: object 0 is that of entry 1 already",
            "train.txt, entry 4: object 00 is that of entry 1 already",
        ]
    }
    splits, notes = split_records(listing, 0.1, 0)
    assert {name: len(records) for name, records in splits.items()} == {"train": 2, "val": 1, "test": 2}
    assert notes == [
        "1 id is in train and in test, such as '1/2'",
        "1 id is in val and in test, such as '1/3'",
    ]


def test_an_object_without_a_phrase_keeps_its_number(tmp_path):
    dior(tmp_path, {"1": [((1, 1, 9, 9), " "), ((2, 2, 8, 8), "second")]})
    (tmp_path / "train.txt").write_text("0 1")
    listing = read_listing(tmp_path)
    assert [record.phrase for record in listing.splits["train"]] == ["second"]
    assert listing.problems == {"train": ["1.xml, object 1: the phrase is empty"]}


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE a [<!ENTITY x "y">]><annotation/>',
        '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>',
    ],
)
def test_xml_that_declares_entities_is_refused(text, tmp_path):
    dior(tmp_path, {})
    (tmp_path / "Annotations/bomb.xml").write_text(text)
    with pytest.raises(DataError, match="declares XML entities"):
        read_listing(tmp_path)


class Command:
    def __reduce__(self):
        import os

        return os.system, ("touch ran",)


def test_code_in_a_pth_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save([Command()], tmp_path / "train.pth")
    with pytest.raises(CheckpointError, match="no file of plain tensors"):
        read_listing(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"phrase": "a", "box": [1, 2, 3, 4]}, "has no image"),
        ({"image": "a.png", "phrase": "", "box": [1, 2, 3, 4]}, "the phrase is empty"),
        ({"image": "a.png", "phrase": 7, "box": [1, 2, 3, 4]}, "the phrase is 7, no text"),
        ({"image": "a.png", "phrase": "\ud800", "box": [1, 2, 3, 4]}, r"the phrase is '\ud800', no text"),
        ({"image": "a.png", "phrase": "?!", "box": [1, 2, 3, 4]}, "the phrase '?!' has no words"),
        ({"image": "\ud800.png", "phrase": "a", "box": [1, 2, 3, 4]}, "has to be a file name"),
        ({"image": "a.png", "phrase": "a", "box": [1, 2, 3]}, "has to be four numbers"),
        ({"image": "a.png", "phrase": "a", "box": [1, 2, 3, "x"]}, "has to be four numbers"),
        ({"image": "../a.png", "phrase": "a", "box": [1, 2, 3, 4]}, "leads out of"),
        ({"image": "/etc/passwd", "phrase": "a", "box": [1, 2, 3, 4]}, "leads out of"),
        ({"image": "a.png", "phrase": "a", "box": [1, 2, 3, 4], "split": "vall"}, "split is 'vall'"),
        ({"image": "a.png", "phrase": "a", "box": [1, 2, 3, 4], "split": 0}, "split is '0'"),
        ({"image": "a.png", "phrase": "a", "box": [1, 2, 3, 4], "box_format": 0}, "box_format is 0"),
        ({"image": "a.png", "phrase": "a", "box": [1, 2, 3, 4], "box_format": "xyx"}, "box_format is 'xyx'"),
        (7, "is no object"),
    ],
)
def test_what_is_wrong_with_a_record_is_named_with_its_place(entry, problem, tmp_path):
    (tmp_path / "all.json").write_text(json.dumps([{"image": "b.png", "phrase": "b", "box": [1, 2, 3, 4]}, entry]))
    listing = read_listing(tmp_path / "all.json")
    ((line,),) = listing.problems.values()
    assert line.startswith("all.json, entry 2:") and problem in line
    assert len(listing.splits[""]) == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[", "not valid JSON"),
        ("a.json", '{"image": 1}', "list of objects"),
        ("a.jsonl", '\n{"image": "a.png"}\n{"image": ', r"a.jsonl' is not valid JSONL: line 3: "),
        ("a.csv", "image,text\n", "it needs image, phrase"),
        ("a.csv", "image,phrase,box,box\na.png,p,1 2 3 4,5 6 7 8\n", "names the column 'box' twice"),
        ("a.xyz", "", "a file that ends in"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
    ],
)
def test_files_that_cannot_be_read(name, text, message, tmp_path):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        read_listing(tmp_path / name)


@pytest.mark.parametrize("third", ['"the tank', "the tank"], ids=["closed by another cell", "never closed"])
def test_a_quote_that_is_not_closed_swallows_no_rows(third, tmp_path):
    rows = ('a.png,"the ship,1,2,11,12', "b.png,the car,1,2,3,4", f"c.png,{third},3,4,30,40")
    (tmp_path / "train.csv").write_text("\n".join(["image,phrase,x1,y1,x2,y2", *rows]))
    with pytest.raises(DataError, match=r"train.csv', line 2, cannot be read .*close or remove them"):
        read_listing(tmp_path)
    # A cell in quotes may stand behind a space.
    (tmp_path / "train.csv").write_text('image,phrase,x1,y1,x2,y2\na.png, "the ""big"" ship, there",1,2,11,12\n')
    assert plain(read_listing(tmp_path), "train") == [("a.png", (1, 2, 11, 12), 'the "big" ship, there')]


def test_a_cell_with_commas_and_no_quotes_is_told_and_not_cut(tmp_path):
    (tmp_path / "a.csv").write_text("image,x1,y1,x2,y2,phrase\na.png,1,2,3,4,the ship, on the left\n")
    listing = read_listing(tmp_path / "a.csv")
    (line,) = listing.problems[""]
    assert line.startswith("a.csv, line 2: has more than 6 cells") and not listing.splits


@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_lines_may_end_as_on_any_system(end, tmp_path):
    (tmp_path / "a.csv").write_bytes(f"image,phrase,box{end}a.png,p,1 2 3 4{end}".encode())
    assert plain(read_listing(tmp_path / "a.csv"), "") == [("a.png", (1, 2, 3, 4), "p")]


def test_a_line_of_json_may_hold_what_unicode_calls_a_line_end(tmp_path):
    entry = {"image": "a.png", "phrase": "the ship\u2028on the left", "box": [1, 2, 3, 4]}
    (tmp_path / "a.jsonl").write_text(json.dumps(entry, ensure_ascii=False), encoding="utf-8")
    assert plain(read_listing(tmp_path / "a.jsonl"), "") == [("a.png", (1, 2, 3, 4), "the ship on the left")]


def test_names_that_are_too_long_are_told_like_missing_ones(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"image": "a" * 300, "phrase": "p", "box": [1, 2, 3, 4]}]))
    (record,) = read_listing(tmp_path / "a.json").splits[""]
    store = ImageStore([record.image], 32, decode_rgb, tmp_path)
    assert list(store.problems) == [record.image]
    with pytest.raises(DataError, match="there is no such folder or file"):
        read_listing(tmp_path / ("a" * 300))


@pytest.mark.parametrize("part", [[7], 7, "text"])
def test_splits_in_one_json_file_that_hold_no_objects(part, tmp_path):
    (tmp_path / "all.json").write_text(json.dumps({"train": part}))
    (line,) = read_listing(tmp_path / "all.json").problems["train"]
    assert "is no object with image, phrase and box" in line


def test_val_is_drawn_by_image(tmp_path):
    entries = [{"image": f"{number // 3}.png", "phrase": f"p{number}", "box": [1, 2, 3, 4]} for number in range(60)]
    (tmp_path / "all.json").write_text(json.dumps(entries))
    splits, notes = split_records(read_listing(tmp_path / "all.json"), 0.25, seed=3)
    train, val = ({record.image for record in splits[name]} for name in ("train", "val"))
    assert len(val) == 5 and not train & val
    assert len(splits["val"]) == 15
    assert notes == ["val: 5 of 20 training images, drawn by seed 3"]
