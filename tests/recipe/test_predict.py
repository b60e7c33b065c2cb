"""``sat-vg predict``: the model's own probabilities, as a table or JSON lines, of whatever images come."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COLOURS, REPOSITORY, environment, write_image
from PIL import Image

from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel

pytestmark = pytest.mark.recipe
NAMES = ("field", "sea\n\x1b[31m<script>", "town")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "best_model.pt"
    FineTuneModel("squeezenet1_1", 3, pretrained=False, image_size=32, class_names=NAMES).save_checkpoint(path)
    return path


@pytest.fixture
def images(tmp_path) -> Path:
    for number in range(7):
        folder = tmp_path / "images" / ("deep" if number % 2 else ".")
        write_image(folder / f"{number}.png", list(COLOURS.values())[number % 3], number)
    return tmp_path / "images"


@pytest.fixture
def run(command):
    return partial(command, "predict")


def objects(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def probabilities(checkpoint: Path, path) -> list[tuple[str, float]]:
    """What the model says of an image by itself, the likeliest class first."""
    model = FineTuneModel.load_checkpoint(checkpoint)
    with torch.no_grad():
        logits = model(model.preprocessing.normalise(model.preprocessing.geometry()(decode_rgb(path))[None]))
    shares = (logits / getattr(model, "temperature", 1.0)).softmax(1)[0].tolist()
    return sorted(zip(model.class_names, shares, strict=True), key=lambda pair: -pair[1])


def assert_right(answer: dict, checkpoint: Path, top: int = 3) -> None:
    wanted = probabilities(checkpoint, answer["path"])[:top]
    assert [each["class"] for each in answer["predictions"]] == [name for name, _ in wanted]
    found = [each["probability"] for each in answer["predictions"]]
    assert found == pytest.approx([share for _, share in wanted], abs=2e-5)


def test_probabilities_are_the_models(run, images, checkpoint):
    code, out, err = run(checkpoint, images, "--json", "--batch_size", 3)
    assert code == 0, err
    answers = objects(out)
    assert [answer["path"] for answer in answers] == sorted(map(str, images.rglob("*.png")))
    assert len(answers) == 7
    for answer in answers:
        assert_right(answer, checkpoint)


def test_a_temperature_is_heeded(run, images, checkpoint, tmp_path):
    model = FineTuneModel.load_checkpoint(checkpoint)
    model.temperature = 3.0
    model.save_checkpoint(tmp_path / "soft.pt")
    _, sharp, _ = run(checkpoint, images / "0.png", "--json")
    _, soft, _ = run(tmp_path / "soft.pt", images / "0.png", "--json")
    assert objects(soft)[0]["predictions"][0]["probability"] < objects(sharp)[0]["predictions"][0]["probability"]
    assert_right(objects(soft)[0], tmp_path / "soft.pt")


def test_views_and_checkpoints_are_averaged(run, images, checkpoint, tmp_path):
    """The other checkpoint takes images of another size."""
    other = FineTuneModel("squeezenet1_1", 3, pretrained=False, image_size=64, class_names=NAMES, seed=1)
    other.save_checkpoint(tmp_path / "other.pt", config={"augmentation": "satellite"})
    code, out, err = run(checkpoint, images, "--json", "--views", 8, "--ensemble", tmp_path / "other.pt")
    assert code == 0, err
    assert "probabilities averaged over 8 views and 2 checkpoints: 16 passes an image in place of 1" in err
    models = [FineTuneModel.load_checkpoint(path) for path in (checkpoint, tmp_path / "other.pt")]
    answers = objects(out)
    assert len(answers) == 7
    for answer in answers:
        pixels = decode_rgb(answer["path"])[None]
        both = [
            model.predict_probabilities(
                model.preprocessing.normalise(model.preprocessing.geometry()(pixels)), views=8
            )
            for model in models
        ]
        shares = torch.stack(both).mean(0)[0]
        found = {each["class"]: each["probability"] for each in answer["predictions"]}
        assert [found[name] for name in NAMES] == pytest.approx(shares.tolist(), abs=2e-5)
    # Of images with an "up" the quarter turns are no images that the model knows.
    other.save_checkpoint(tmp_path / "other.pt", config={"augmentation": "basic"})
    _, _, err = run(checkpoint, images, "--views", 8, "--ensemble", tmp_path / "other.pt")
    assert "views: 2, not 8, as the model was trained with augmentation = basic" in err
    assert "averaged over 2 views and 2 checkpoints: 4 passes" in err
    other = FineTuneModel("squeezenet1_1", 2, pretrained=False, image_size=32, class_names=NAMES[:2])
    other.save_checkpoint(tmp_path / "other.pt")
    code, _, err = run(checkpoint, images, "--ensemble", tmp_path / "other.pt")
    assert code == 2
    assert "other.pt' has 2 classes and the first model 3" in err


def test_the_table(run, images, checkpoint):
    code, out, err = run(checkpoint, images / "0.png", images / "2.png", "--top", 2)
    assert code == 0, err
    assert "\x1b" not in out
    rows = out.splitlines()
    assert rows[0].split() == ["%", "class", "image"]
    assert len(rows) == 5
    for first, name in ((1, "0.png"), (3, "2.png")):
        wanted = probabilities(checkpoint, images / name)
        for row, (label, share) in zip(rows[first : first + 2], wanted, strict=False):
            assert row.startswith(f"{100 * share:5.1f}  {label.encode('unicode_escape').decode()}")
        assert rows[first].endswith(f"  {images / name}")
        assert str(images) not in rows[first + 1]


def test_arguments_of_all_kinds(run, images, checkpoint):
    code, out, err = run(checkpoint, images / "2.png", images / "deep", f"{images}/*.png", "--json", "--top", 1)
    assert code == 0, err
    names = [Path(answer["path"]).name for answer in objects(out)]
    assert names == ["2.png", "1.png", "3.png", "5.png", "0.png", "2.png", "4.png", "6.png"]
    assert all(len(answer["predictions"]) == 1 for answer in objects(out))


def test_unreadable_images_stop_nothing(run, images, checkpoint, tmp_path):
    (images / "2.png").write_bytes(b"junk")
    (tmp_path / "empty").mkdir()
    given = (images, "none.png", "empty", "x*y", images / "0.png")
    code, out, err = run(checkpoint, *given, "--json", "--batch_size", 2)
    assert code == 2
    assert "error: 4 of 11 images cannot be read; the others were answered" in err
    answers = objects(out)
    failed = {Path(answer["path"]).name: answer["error"] for answer in answers if "error" in answer}
    assert list(failed) == ["2.png", "none.png", "empty", "x*y"]
    assert "no JPEG, PNG" in failed["2.png"]
    assert "no file" in failed["none.png"]
    assert "holds no images" in failed["empty"]
    assert "matches nothing" in failed["x*y"]
    sound = [answer for answer in answers if "error" not in answer]
    assert len(sound) == 7
    for answer in sound:
        assert_right(answer, checkpoint)
    code, out, err = run(checkpoint, *given)
    assert code == 2
    assert out.count("\n") == 1 + 3 * 7
    assert err.count("cannot read ") == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["none.png"], "error: the image cannot be read\n"),
        (["none.png", "x*y"], "error: none of the 2 images can be read\n"),
        (["none.png", "images/0.png"], "error: 1 of 2 images cannot be read; the other was answered\n"),
    ],
)
def test_how_many_images_were_not_answered(run, images, checkpoint, given, message):
    code, _, err = run(checkpoint, *given)
    assert code == 2
    assert message in err


def test_what_was_decided_about_images_is_said(run, checkpoint, tmp_path):
    """Frames that are left out and alpha that darkens; on standard error, as standard output holds answers."""
    grey = Image.new("L", (40, 40), 90)
    grey.save(tmp_path / "pages.tif", save_all=True, append_images=[Image.new("L", (40, 40), 30)])
    soft = Image.new("RGBA", (40, 40), (200, 100, 50, 120))
    soft.save(tmp_path / "soft.png")
    code, out, err = run(checkpoint, tmp_path / "pages.tif", tmp_path / "soft.png", "--json", "true")
    assert code == 0
    assert len(objects(out)) == 2
    assert "warning: 1 image has several frames or pages" in err
    assert "warning: 1 image has an alpha channel with values other than 0 and full" in err
    code, out, err = run(checkpoint, "--json", "true", tmp_path / "pages.tif")
    assert "alpha" not in err
    with pytest.warns(UserWarning, match="several frames or pages .*pages.tif"):
        FineTuneModel.load_checkpoint(checkpoint).predict(tmp_path / "pages.tif")


@pytest.mark.timeout(120)  # without the answer that it waits for it would hang
def test_standard_input_is_answered_as_it_comes(images, checkpoint, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "sat_vg", "predict", checkpoint, "-", "--json"],
        cwd=tmp_path, env=environment(tmp_path), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    for given in ("images/0.png", "none.png", "images/deep/1.png"):
        process.stdin.write(f"{given}\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())  # while standard input stays open
        assert answer["path"] == given
        assert ("error" in answer) == (given == "none.png")
    process.stdout.close()  # as ``head`` does once it has seen enough
    process.stdin.write("images/0.png\n" * 100)
    process.stdin.close()
    assert process.wait(timeout=120) == 0, process.stderr.read()
    assert process.stderr.read() == ""


def test_lines_of_standard_input(run, images, checkpoint, tmp_path, monkeypatch):
    (tmp_path / "paths").write_bytes(b"images/2.png\r\n\n \nimages/\xff.png\nimages/4.png")
    with (tmp_path / "paths").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        code, out, err = run(checkpoint, images / "0.png", "-", images / "6.png", "--json")
    assert code == 2
    assert "1 of 5 images cannot be read" in err
    names = [Path(answer["path"]).name for answer in objects(out)]
    assert names == ["0.png", "2.png", "\udcff.png", "4.png", "6.png"]
    with Path("/dev/null").open() as file:
        for stream in (file, None):  # None: the process was started without standard input
            monkeypatch.setattr(sys, "stdin", stream)
            code, _, err = run(checkpoint, "-")
            assert code == 2
            assert "standard input holds no path" in err
    with Path("/dev/null").open("w") as file:
        monkeypatch.setattr(sys, "stdin", file)
        code, _, err = run(checkpoint, "-")
    assert code == 2
    assert "standard input cannot be read" in err


def test_overlays(run, images, checkpoint, tmp_path):
    shutil.copytree(images, tmp_path / "again")
    long = images / ("x" * 200 + ".png")
    write_image(long, (1, 2, 3), 5, size=64)
    (images / "1.png").write_bytes(b"junk")
    code, out, err = run(checkpoint, images, "again", "--json", "--overlays", "looked/at", "--batch_size", 4)
    assert code == 2, err
    assert "overlays: 15 pictures in 'looked/at'" in err
    answers = [answer for answer in objects(out) if "error" not in answer]
    assert len({answer["overlay"] for answer in answers}) == 7 + 7 + 1
    assert {str(path) for path in Path("looked/at").iterdir()} == {answer["overlay"] for answer in answers}
    for answer in answers:
        with Image.open(answer["overlay"]) as picture:
            assert picture.format == "PNG"
            pixels = np.asarray(picture.convert("RGB"))
        assert pixels.shape[1] > 600
        assert pixels.std() > 10
    before = {path: path.read_bytes() for path in Path("looked/at").iterdir()}
    code, out, err = run(checkpoint, "again", "--overlays", "looked/at")
    assert code == 2 and not out
    assert "--overlays 'looked/at' holds pictures of an earlier call, such as 0000" in err
    assert "; choose another, or remove them" in err
    assert {path: path.read_bytes() for path in Path("looked/at").iterdir()} == before
    (tmp_path / "a_file").touch()
    code, _, err = run(checkpoint, images / "0.png", "--overlays", "a_file/here")
    assert code == 1
    assert "choose other --overlays" in err


@pytest.mark.parametrize("flags", [("--probabilities",), ("--preview", "false"), ("--size", 9)])
def test_what_is_for_scenes_is_refused_without_a_map(run, images, checkpoint, flags):
    code, out, err = run(checkpoint, images, *flags)
    assert code == 2 and not out
    assert "are for scenes: name the map to write with --out map.tif" in err


def test_what_cannot_be_predicted(run, images, checkpoint, tmp_path):
    several = FineTuneModel(
        "squeezenet1_1", 3, pretrained=False, image_size=32, bands=("red", "green", "blue", "nir")
    )
    several.save_checkpoint(tmp_path / "bands.pt")
    for arguments, message in (
        ((checkpoint, images, "--top", 0), "--top 0: must be a whole number of 1 or more"),
        (
            (checkpoint, images, "--batch_size", -1),
            "--batch_size -1: must be a whole number of 1 or more; for example 16",
        ),
        ((checkpoint, images, "--device", "tpu"), "device = 'tpu'"),
        ((tmp_path / "none.pt", images), "there is no file"),
        ((checkpoint, ""), "cannot read '': the path of the images is empty"),
        ((tmp_path / "bands.pt", images), "takes images with the bands red, green, blue, nir"),
    ):
        code, out, err = run(*arguments)
        assert code == 2, (arguments, out, err)
        assert message in err
        assert "Traceback" not in err
    model = FineTuneModel.load_checkpoint(checkpoint)
    next(iter(model.network.classifier.parameters())).data.fill_(float("nan"))
    model.save_checkpoint(tmp_path / "broken.pt")
    code, out, err = run(tmp_path / "broken.pt", images, "--json")
    assert (code, out) == (1, "")
    assert "its weights are broken" in err


def test_the_shown_commands(run, class_folders, checkpoint, tmp_path):
    page = (REPOSITORY / "docs/predicting.md").read_text()
    shown = [line for body in re.findall(r"^```\n(.*?)^```", page, re.M | re.S) for line in body.splitlines()]
    assert len(shown) >= 3
    (tmp_path / "CKPT").mkdir()
    shutil.copy(checkpoint, tmp_path / "CKPT/best_model.pt")
    shutil.copytree(class_folders / "val", tmp_path / "DIR")
    *alone, piped = shown
    for command in alone:
        code, out, err = run(*shlex.split(command)[2:])
        assert code == 0, err
        assert out.count("DIR/") == 9
    assert len(list((tmp_path / "looked_at").iterdir())) == 9
    beside_python = shlex.quote(str(Path(sys.executable).with_name("sat-vg")))
    done = subprocess.run(
        piped.replace("sat-vg", beside_python),
        shell=True, cwd=tmp_path, capture_output=True, text=True, env=environment(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(objects(done.stdout)) == 3  # of each class one of three is a PNG
