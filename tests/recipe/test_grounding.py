"""Grounding end to end on a small set in DIOR-RSVG's layout: trains, goes on after a kill, evaluates, predicts."""

import json
import re
import shlex
import shutil
import signal
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, environment
from grounding_files import COLOURS, write_squares
from lives import Life, none_left
from PIL import Image
from run_outputs import same

from sat_vg.backbone_finetuning import FineTuneModel
from sat_vg.backbone_finetuning.commands.runs.run import list_runs
from sat_vg.backbone_finetuning.configs.option_parser import parse_options
from sat_vg.backbone_finetuning.utils.tensor_files import load_tensors
from sat_vg.cli import COMMANDS
from sat_vg.grounding import GroundingConfig, GroundingModel, train_grounding

pytestmark = [pytest.mark.recipe, pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")]

SMALL = (
    "--image_size", "64", "--width", "48", "--num_heads", "4", "--fusion_layers", "1", "--num_epochs", "2",
    "--batch_size", "2", "--num_threads", "1", "--log_every", "1", "--checkpoint_dir", "ckpt", "--log_dir", "logs",
)  # fmt: skip
RANDOM = ("--backbone", "resnet18", "--weights", "none")
OBJECT = (
    "<object><name>square</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
    "<description>{}</description></object>"
)


def write_dior(root: Path) -> Path:
    """12 images of 64 pixels with two squares each; 24 objects in the order of the files: 16 train, 4 val, 4 test."""
    (root / "Annotations").mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    generator = np.random.default_rng(0)
    for number in range(12):
        pixels = np.full((64, 64, 3), 110, dtype=np.uint8) + generator.integers(0, 20, (64, 64, 3), dtype=np.uint8)
        objects = ""
        for half, (name, colour) in enumerate(COLOURS.items()):
            x, y = 32 * half + int(generator.integers(2, 12)), int(generator.integers(2, 44))
            pixels[y : y + 16, x : x + 16] = colour
            phrase = f"a {name} square on the {('left', 'right')[half]}"
            objects += OBJECT.format(x, y, x + 16, y + 16, phrase)
        name = f"{number:05d}"
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
        xml = f"<annotation><filename>{name}.jpg</filename>{objects}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(xml)
    for split, first, last in (("train", 0, 16), ("val", 16, 20), ("test", 20, 24)):
        (root / f"{split}.txt").write_text("".join(f"{index}\n" for index in range(first, last)))
    return root


@pytest.fixture(scope="module")
def dior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dior(tmp_path_factory.mktemp("dior") / "data")


STARTED: list[Life] = []


def start(folder: Path, data: Path, *more: object) -> Life:
    command = [sys.executable, "-m", "sat_vg.grounding.train", "--data", str(data), *SMALL, *map(str, more)]
    STARTED.append(Life(command, folder, environment(folder.parent), is_fresh=False))
    return STARTED[-1]


@pytest.fixture(scope="module")
def whole(dior: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run that nothing happened to."""
    with none_left(STARTED):
        life = start(tmp_path_factory.mktemp("whole") / "run", dior, *RANDOM)
        assert life.wait() == 0, life.err
        assert "data: train 16 phrases about 8 images, val 4 phrases about 2 images, test 4 phrases" in life.out
        assert "done: validation Pr@0.5" in life.out
    return life.folder


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """``sat-vg ground COMMAND`` in this process, in a folder: exit code, standard output, standard error."""
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))

    def run(*arguments: object, folder: Path = tmp_path) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        capfd.readouterr()
        code = import_module(COMMANDS["ground"].module).main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


def lines_of(folder: Path) -> list[dict]:
    entries = map(json.loads, (folder / "logs/metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in entry.items() if k not in ("seconds", "phrases_per_second")} for entry in entries]


@pytest.mark.parametrize(
    ("number", "save_every_minutes", "code"),
    [(signal.SIGKILL, 0, -9), (signal.SIGKILL, 1e-6, -9), (signal.SIGTERM, 0, 75), (signal.SIGINT, 0, 130)],
    ids=["killed, saved by epoch", "killed, saved by step", "SIGTERM", "Ctrl-C"],
)
def test_a_stopped_run_goes_on_to_the_same_bits(number, save_every_minutes, code, whole, dior, tmp_path):
    flags = (*RANDOM, "--save_every_minutes", save_every_minutes)
    with none_left(STARTED):
        life = start(tmp_path / "run", dior, *flags)
        metrics = life.folder / "logs/metrics.jsonl"
        # Behind the second step of the second epoch, so that the state of its first one is saved: the first epoch has
        # 8 steps and a line at its end.
        assert life.until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 11)
        life.process.send_signal(number)
        assert life.process.wait(30) == code, life.err
        again = start(life.folder, dior, *flags)
        assert again.wait() == 0, again.err
    assert "warning" not in again.out and "has finished" not in again.out
    step = int(re.search(r"continuing ckpt/last.pt: 1 epoch done, step (\d+)", again.out)[1])
    assert step == 8 if code == -9 and not save_every_minutes else 8 < step < 16
    for name in ("best_model.pt", "last.pt"):
        one, two = (load_tensors(folder / "ckpt" / name) for folder in (whole, life.folder))
        for content in (one, two):
            del content["config"]["save_every_minutes"]
        assert same(one, two), name
    assert lines_of(life.folder) == lines_of(whole)
    assert len(lines_of(whole)) == 2 * 9


def test_data_that_are_not_there_are_told_before_the_backbone_is_loaded(ground):
    code, out, err = ground("train", "--data", "nowhere", "--backbone", "resnet18", "--weights", "none")
    assert code == 2
    assert "data = 'nowhere': there is no such folder or file" in err
    assert "backbone" not in out


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


def test_a_finished_run_says_so_and_other_settings_or_data_are_refused(whole, dior, ground, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    flags = ("train", *SMALL, *RANDOM, "--data")
    code, out, _ = ground(*flags, dior, folder=run)
    assert code == 0 and "has finished" in out and "done: validation Pr@0.5" in out
    code, _, err = ground(*flags, dior, "--learning_rate", "0.01", folder=run)
    assert code == 2 and "has other settings: learning_rate was 0.0005 and is 0.01" in err
    changed = shutil.copytree(dior, tmp_path / "changed")
    xml = changed / "Annotations/00003.xml"
    xml.write_text(xml.read_text().replace("a red square", "one red square"))
    code, _, err = ground(*flags, changed, folder=run)
    assert code == 2 and "the data have changed since the run" in err
    code, out, err = ground(*flags, changed, "--resume", "never", "--num_epochs", "1", folder=run)
    assert code == 0, err
    assert "epoch 1/1" in out and (run / "ckpt/earlier_run_1/last.pt").is_file()
    code, _, err = ground(*flags, changed, "--num_epochs", "1", folder=run)
    assert code == 0, err


def test_a_damaged_state_is_told_and_the_one_before_it_used(whole, dior, ground, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    last = run / "ckpt/last.pt"
    for path in (last, run / "ckpt/step_00000016.pt"):  # two names of one file, but for the copying
        path.write_bytes(path.read_bytes()[:-2000])
    code, out, err = ground("train", *SMALL, *RANDOM, "--data", dior, folder=run)
    assert code == 0, err
    assert "warning:" in out and "ckpt/step_00000008.pt" in out and "1 epoch done, step 8" in out
    assert same(load_tensors(last), load_tensors(whole / "ckpt/last.pt"))


def test_evaluate_writes_figures_that_agree(whole, dior, ground, tmp_path):
    code, out, err = ground("evaluate", whole / "ckpt/best_model.pt", dior, "--out", "found")
    assert code == 0, err
    figures = json.loads((tmp_path / "found/metrics.json").read_text())
    rows = json.loads((tmp_path / "found/predictions.json").read_text())
    page = (tmp_path / "found/report.html").read_text()
    assert figures["num_phrases"] == len(rows) == 4 and figures["num_images"] == 2 and figures["split"] == "test"
    ious, inner, outer = [], 0.0, 0.0
    for row in rows:
        a, b = row["box"], row["target"]
        shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
        ious, inner, outer = [*ious, shared / union], inner + shared, outer + union
        assert row["iou"] == pytest.approx(ious[-1], abs=2e-3)
    assert figures["mean_iou"] == pytest.approx(np.mean(ious), abs=2e-3)
    assert figures["cum_iou"] == pytest.approx(inner / outer, abs=2e-3)
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.9):
        assert figures[f"pr@{threshold}"] == np.mean([iou >= threshold for iou in ious])
    assert sum(group["count"] for group in figures["by_box_size"].values()) == 4
    assert set(figures["without_the_image"]) == {"blind", "position only", "constant box"}
    assert f"<b>{100 * figures['mean_iou']:.1f}<small>%" in page and page.count("<figure>") == 4
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert f"mean IoU {100 * figures['mean_iou']:.1f} %" in out


def test_predict_is_the_same_from_python_and_by_the_command(whole, dior, ground, tmp_path):
    image, checkpoint = dior / "JPEGImages/00011.jpg", whole / "ckpt/best_model.pt"
    code, out, err = ground("predict", checkpoint, image, "the red square", "--out", "found.png", "--json")
    assert code == 0, err
    printed = json.loads(out.splitlines()[0])
    model = GroundingModel.load_checkpoint(checkpoint)
    found = model.predict(image, "the red square")
    assert printed["box"] == [round(side, 1) for side in found.box]
    assert printed["score"] == round(found.score, 4)
    pixels = np.asarray(Image.open(image))
    several = model.predict(pixels, ["the red square", "a blue square on the right"])
    assert several[0].box == pytest.approx(found.box, abs=1e-3)
    with Image.open(tmp_path / "found.png") as picture:
        assert picture.format == "PNG" and picture.size == (64, 64)
        assert (np.asarray(picture) == (255, 0, 255)).all(-1).any()
    picture = tmp_path / "found.png"
    before = picture.read_bytes()
    again = f"../{tmp_path.name}/found.png"
    code, _, err = ground("predict", checkpoint, picture, "the red square", "--out", again)
    assert code == 2 and "this is the image itself" in err and picture.read_bytes() == before
    code, _, err = ground("predict", checkpoint, image, " ?! ")
    assert code == 2 and "has no words" in err


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


def test_runs_shows_a_run_of_grounding_and_how_it_goes_on(whole, tmp_path):
    """Its last.pt was taken for that of a fine-tuning, and the command began one."""
    shutil.copytree(whole / "ckpt", tmp_path / "run")
    (row,) = list_runs(tmp_path)
    assert (row.state, row.epochs, row.num_epochs, row.metric, row.go_on) == ("finished", 2, 2, "val_pr@0.5", None)
    content = load_tensors(tmp_path / "run/last.pt")
    content["state"].update(finished=False, epoch=1)
    torch.save(content, tmp_path / "run/last.pt")
    (row,) = list_runs(tmp_path)
    assert row.state == "stopped" and row.go_on is not None
    words = shlex.split(row.go_on)
    assert words[:3] == ["sat-vg", "ground", "train"]
    assert parse_options(GroundingConfig, words[3:], "", "", {}).to_dict() == content["config"] | {"resume": "auto"}
    content["config"]["width"] = 7
    torch.save(content, tmp_path / "run/last.pt")
    (row,) = list_runs(tmp_path)
    assert row.state == "damaged" and "width = 7" in str(row.error)


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


def test_a_fine_tuned_backbone_is_the_start_and_stays_if_frozen(dior, tmp_path, monkeypatch):
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
    source = FineTuneModel("resnet18", 3, pretrained=False, image_size=64, seed=7)
    source.save_checkpoint(tmp_path / "best_model.pt")
    start_of = source.get_feature_extractor().state_dict()
    settings = {
        "data": str(dior), "backbone": str(tmp_path / "best_model.pt"), "image_size": 64, "width": 48, "num_heads": 4,
        "fusion_layers": 1, "batch_size": 8, "num_epochs": 1, "num_threads": 1,
    }  # fmt: skip

    def backbone(name: str, **more: object) -> dict[str, torch.Tensor]:
        config = GroundingConfig(
            **settings, **more, checkpoint_dir=str(tmp_path / name), log_dir=str(tmp_path / name / "logs")
        )
        model = GroundingModel.load_checkpoint(train_grounding(config).best_model)
        return model.network.backbone.state_dict()

    frozen = backbone("frozen", freeze_backbone=True)
    assert same(dict(frozen), dict(start_of)) and len(frozen) > 100
    slow = backbone("slow", backbone_lr_scale=1e-6)  # what it starts with is what it nearly has after an epoch
    assert not same(dict(slow), dict(start_of))
    for name, tensor in slow.items():
        torch.testing.assert_close(tensor, start_of[name], atol=1e-6, rtol=0, msg=name)


def test_a_frozen_random_backbone_is_loaded_again(dior, tmp_path, monkeypatch):
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
    config = GroundingConfig(
        data=str(dior), backbone="resnet18", weights="none", freeze_backbone=True, image_size=64, width=48,
        num_heads=4, fusion_layers=1, num_epochs=1, num_threads=1,
        checkpoint_dir=str(tmp_path / "ckpt"), log_dir=str(tmp_path / "logs"),
    )  # fmt: skip
    model = GroundingModel.load_checkpoint(train_grounding(config).best_model)
    start_of = FineTuneModel("resnet18", 2, pretrained=False, image_size=64).get_feature_extractor().state_dict()
    assert same(dict(model.network.backbone.state_dict()), dict(start_of))


def test_a_cache_that_cannot_be_written_to_is_told(ground, tmp_path):
    (tmp_path / "cache").write_text("a file")
    code, _, err = ground("train", *SMALL)
    assert code == 2 and "the built-in tiles cannot be kept in" in err and "SAT_VG_CACHE" in err


def test_a_set_without_enough_images_is_refused(dior, ground, tmp_path):
    shutil.copy(dior / "JPEGImages/00000.jpg", tmp_path / "a.jpg")
    (tmp_path / "train.txt").write_text("a.jpg,1,1,20,20,the square\n")
    code, _, err = ground("train", *SMALL, *RANDOM, "--data", tmp_path / "train.txt")
    assert code == 2 and "has no records of val, only of train" in err


def test_the_shown_commands_and_the_shown_python(dior, ground, tmp_path):
    page = (REPOSITORY / "docs/grounding.md").read_text()
    FineTuneModel("resnet18", 3, pretrained=False, image_size=64).save_checkpoint(
        tmp_path / "checkpoints/finetune/best_model.pt"
    )
    shutil.copy(dior / "JPEGImages/00011.jpg", tmp_path / "image.jpg")
    commands = re.findall(r"^sat-vg ground (.*)$", page, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["train", "train", "evaluate", "predict"]
    quick = SMALL[: SMALL.index("--checkpoint_dir")]
    for command in commands:
        words = [str(dior) if word == "DIR" else word for word in shlex.split(command)]
        more = (*quick, "--num_epochs", "1", "--resume", "never") if words[0] == "train" else ()
        code, _, err = ground(*words, *more)
        assert code == 0, (command, err)
    assert {"metrics.json", "predictions.json", "report.html"} == {
        f.name for f in (tmp_path / "evaluation").iterdir()
    }
    assert (tmp_path / "found.png").is_file()
    names: dict[str, object] = {}
    for snippet in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(compile(snippet, "grounding.md", "exec"), names)
    assert len(names["found"].box) == 4


def test_usage_and_unknown_commands(ground):
    code, out, _ = ground("--help")
    assert code == 0 and "sat-vg ground evaluate CHECKPOINT" in out
    code, _, err = ground("dig")
    assert code == 2 and "has no command 'dig'" in err


def test_squares_are_learned_and_a_flipped_image_gives_the_flipped_box(tmp_path, monkeypatch):
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
    config = GroundingConfig(
        data=str(write_squares(tmp_path, {"train": 60, "val": 20})), backbone="resnet18", weights="none",
        image_size=64, width=48, num_heads=2, fusion_layers=1, num_epochs=3, batch_size=16, learning_rate=2e-3,
        num_threads=1, checkpoint_dir=str(tmp_path / "ckpt"), log_dir=str(tmp_path / "logs"),
    )  # fmt: skip
    result = train_grounding(config)
    assert result.metrics["pr@0.5"] >= 0.8
    model = GroundingModel.load_checkpoint(result.best_model)
    shifts = []
    for number, entry in enumerate(json.loads((tmp_path / "val.json").read_text())):
        pixels = np.asarray(Image.open(tmp_path / f"val_{number}.png"))
        x1, y1, x2, y2 = model.predict(pixels, entry["phrase"]).box
        flipped = model.predict(pixels[:, ::-1], entry["phrase"]).box
        shifts.append(np.abs(np.subtract(flipped, (64 - x2, y1, 64 - x1, y2))).mean())
    assert np.mean(shifts) < 6  # of 64 pixels


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_drawn_tiles_are_learned(tmp_path, monkeypatch, ground):
    """``python -m sat_vg.grounding.train`` as it is; then the test tiles, beside what sees no image."""
    folder = tmp_path / "tiles"
    folder.mkdir()
    code, out, err = ground("train", folder=folder)
    assert code == 0, err
    assert "no --data given: built-in drawn tiles" in out and "blind" in out and "position only" in out
    code, _, err = ground("evaluate", "checkpoints/grounding_tiles/best_model.pt", "--out", "found", folder=folder)
    assert code == 0, err
    figures = json.loads((folder / "found/metrics.json").read_text())
    assert figures["num_phrases"] == 1000 and figures["pr@0.5"] >= 0.6
    assert max(one["pr@0.5"] for one in figures["without_the_image"].values()) < 0.2
    assert figures["by_phrase_family"]["position"]["pr@0.5"] >= 0.6
