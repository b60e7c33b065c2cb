"""``sat-vg extract``: the numbers are the model's, whole files or none, and a killed extraction goes on."""

import json
import os
import re
import resource
import shlex
import shutil
import signal
import sys
import threading
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COLOURS, REPOSITORY, environment, write_image
from lives import Life, none_left

from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.evaluation.nearest_neighbours import knn_accuracy
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.folder_lock import lock_folder

pytestmark = pytest.mark.recipe


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "best_model.pt"
    FineTuneModel("squeezenet1_1", 3, pretrained=False, image_size=32, class_names=sorted(COLOURS)).save_checkpoint(
        path
    )
    return path


@pytest.fixture
def images(tmp_path) -> Path:
    """13 images of three classes, and none else."""
    for number in range(13):
        name = list(COLOURS)[number % 3]
        write_image(tmp_path / "images" / name / f"{number:02d}.png", COLOURS[name], number)
    return tmp_path / "images"


@pytest.fixture
def run(command):
    return partial(command, "extract")


def expected(checkpoint: Path, paths, stages=None) -> np.ndarray:
    """What the model makes of each image by itself."""
    model = FineTuneModel.load_checkpoint(checkpoint)
    geometry = model.preprocessing.geometry()
    batches = [model.preprocessing.normalise(geometry(decode_rgb(path))[None]) for path in paths]
    compute = model.get_feature_extractor([stages]) if stages else model.forward_pooled
    with torch.no_grad():
        values = [compute(batch) for batch in batches]
    return torch.cat([value[stages] if stages else value for value in values]).numpy()


def shown_reading(out: str) -> dict:
    """What the two printed lines of Python give."""
    lines = out.split("to read it:\n")[1].splitlines()[:2]
    names: dict = {}
    exec("\n".join(line.strip() for line in lines), names)
    return names


@pytest.mark.parametrize("ending", ["npz", "safetensors", "parquet"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_are_the_models(run, images, checkpoint, ending, dtype):
    code, out, err = run(checkpoint, images, "--out", f"f.{ending}", "--dtype", dtype, "--batch_size", 4)
    assert code == 0, err
    names = shown_reading(out)
    paths = sorted(map(str, images.rglob("*.png")))
    assert list(names["paths"]) == paths
    assert len(paths) == 13
    assert names["vectors"].dtype == dtype
    assert names["vectors"].shape == (13, 512)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == "float32" else {"rtol": 2e-3, "atol": 1e-4}
    np.testing.assert_allclose(names["vectors"], expected(checkpoint, paths), **tolerance)
    wanted = [Path(path).parent.name for path in paths]
    if ending == "parquet":
        assert names["table"]["label"].to_pylist() == wanted
        about = json.loads(names["table"].schema.metadata[b"about"])
    elif ending == "npz":
        assert [names["data"]["class_names"][label] for label in names["data"]["labels"]] == wanted
        about = json.loads(str(names["data"]["about"]))
    else:
        with open(f"f.{ending}", "rb") as file:  # noqa: PTH123 - the format, by its description
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        about = json.loads(header["__metadata__"]["about"])
        assert [about["class_names"][label] for label in names["data"]["labels"]] == wanted
    assert about["model_classes"] == sorted(COLOURS)
    assert about["preprocessing"]["image_size"] == 32
    assert sorted(path.name for path in Path().iterdir()) == [f"f.{ending}", "images"]


@pytest.mark.parametrize("ending", ["npz", "safetensors", "parquet"])
def test_maps_of_stages(run, images, checkpoint, ending):
    code, out, err = run(checkpoint, images, "--out", f"f.{ending}", "--stages", "stage2, stage1")
    assert code == 0, err
    assert "stage1 float32 [13, 128, 7, 7], stage2 float32 [13, 256, 3, 3]" in out
    names = shown_reading(out)
    np.testing.assert_allclose(
        names["maps"], expected(checkpoint, names["paths"], "stage1"), rtol=1e-4, atol=1e-4
    )  # fmt: skip
    second = {
        "npz": lambda: names["data"]["stage2"],
        "safetensors": lambda: names["data"]["stage2"],
        "parquet": lambda: np.stack(names["table"]["stage2"].to_pylist()).reshape(13, 256, 3, 3),
    }[ending]()
    np.testing.assert_allclose(second, expected(checkpoint, names["paths"], "stage2"), rtol=1e-4, atol=1e-4)


def test_the_same_features_are_the_same_bytes(run, images, checkpoint):
    for ending in ("npz", "safetensors"):
        contents = []
        for name in ("a", "b"):
            assert run(checkpoint, images, "--out", f"{name}.{ending}")[0] == 0
            contents.append(Path(f"{name}.{ending}").read_bytes())
        assert contents[0] == contents[1]
    with zipfile.ZipFile("a.npz") as archive:  # whatever the time of day
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def wait_for_progress(folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not (folder / "features.npz.partial/progress.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def many(tmp_path) -> Path:
    """500 files of 30 different images: seconds of work, one image at a time."""
    for number in range(30):
        write_image(tmp_path / f"once/{number}.png", (8 * number, 100, 200), number, size=32)
    for number in range(500):
        folder = tmp_path / f"many/{'ab'[number % 2]}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / f"once/{number % 30}.png", folder / f"{number:04d}.png")
    return tmp_path / "many"


def test_a_killed_extraction_goes_on(tmp_path, run, many, checkpoint):
    command = [sys.executable, "-m", "sat_vg", "extract", str(checkpoint), str(many), "--batch_size", "1"]
    lives = [Life(command, tmp_path, environment(tmp_path), is_fresh=False)]
    with none_left(lives):
        wait_for_progress(tmp_path)
        lives[0].process.kill()
        assert lives[0].wait(60) == -signal.SIGKILL
    assert not (tmp_path / "features.npz").exists()
    done = json.loads((tmp_path / "features.npz.partial/progress.json").read_text())["done"]
    assert 1 <= done < 500
    raw = tmp_path / "features.npz.partial/0.raw"
    with raw.open("r+b") as file:  # a mark in the first row, and half a row behind the last
        file.write(np.float32(123).tobytes())
        file.seek(0, os.SEEK_END)
        file.write(b"x" * 1000)
    code, out, err = run(checkpoint, many, "--batch_size", 50)
    assert code == 0, err
    assert f"going on behind image {done} of 500" in out
    found = np.load("features.npz")
    assert found["pooled"][0, 0] == 123  # so the rows from before the kill were taken, and not made anew
    paths = sorted(map(str, many.rglob("*.png")))
    assert found["paths"].tolist() == paths
    once = expected(checkpoint, [tmp_path / f"once/{number}.png" for number in range(30)])
    wanted = once[[int(Path(path).stem) % 30 for path in paths]]
    wanted[0, 0] = 123
    np.testing.assert_allclose(found["pooled"], wanted, rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "features.npz.partial").exists()


def test_a_stopped_extraction_says_so_and_goes_on(tmp_path, run, many, checkpoint):
    def stop_it() -> None:
        wait_for_progress(tmp_path)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # for these tests' own sake, should it come too late
    sender = threading.Thread(target=stop_it)
    sender.start()
    code, _, err = run(checkpoint, many, "--batch_size", 1)
    sender.join()
    signal.signal(signal.SIGTERM, before)
    assert code == 75, err
    found = re.search(r"stopped by SIGTERM behind image (\d+) of 500; the same command goes on", err)
    assert found, err
    code, out, err = run(checkpoint, many, "--knn", "false")
    assert code == 0, err
    assert f"going on behind image {found.group(1)} of 500" in out


def stopped_at_a_bad_image(run, images, checkpoint) -> None:
    """Leaves 8 of 13 images done."""
    broken = sorted(images.rglob("*.png"))[9]
    content = broken.read_bytes()
    broken.write_bytes(content[:50])
    code, _, err = run(checkpoint, images, "--batch_size", 4)
    assert code == 2
    assert f"cannot read the image {str(broken)!r}" in err
    assert "--on_bad_image skip; the 8 of 13 before it are done and kept" in err
    broken.write_bytes(content)


def test_a_mended_image_lets_it_go_on(run, images, checkpoint):
    stopped_at_a_bad_image(run, images, checkpoint)
    code, out, err = run(checkpoint, images)
    assert code == 0, err
    assert "going on behind image 8 of 13" in out
    assert np.load("features.npz")["pooled"].shape == (13, 512)


@pytest.mark.parametrize("what", ["an image", "the weights", "the number format", "its own record"])
def test_what_was_made_of_other_things_is_made_anew(run, images, checkpoint, tmp_path, what):
    stopped_at_a_bad_image(run, images, checkpoint)
    arguments: list[object] = [checkpoint, images]
    if what == "an image":
        write_image(sorted(images.rglob("*.png"))[0], (255, 0, 0), 77)
    elif what == "the weights":
        arguments[0] = tmp_path / "other.pt"
        FineTuneModel("squeezenet1_1", 3, pretrained=False, image_size=32, seed=1).save_checkpoint(
            tmp_path / "other.pt"
        )
    elif what == "the number format":
        arguments += ["--dtype", "float16"]
    else:
        (tmp_path / "features.npz.partial/progress.json").write_text('{"done": 4, "left_out": 3}')
    code, out, err = run(*arguments)
    assert code == 0, err
    assert "going on" not in out
    found = np.load("features.npz")
    assert len(found["pooled"]) == 13
    np.testing.assert_allclose(found["pooled"], expected(arguments[0], found["paths"]), rtol=2e-3, atol=1e-3)


def test_bad_images_are_left_out(run, images, checkpoint):
    paths = sorted(images.rglob("*.png"))
    for number in (0, 7, 8, 12):
        paths[number].write_bytes(b"no image")
    code, out, err = run(checkpoint, images, "--on_bad_image", "skip", "--batch_size", 1)
    assert code == 0, err
    assert out.count("left out") == 4
    kept = [str(path) for number, path in enumerate(paths) if number not in (0, 7, 8, 12)]
    found = np.load("features.npz")
    assert found["paths"].tolist() == kept
    assert [found["class_names"][label] for label in found["labels"]] == [Path(path).parent.name for path in kept]
    np.testing.assert_allclose(found["pooled"], expected(checkpoint, kept), rtol=1e-4, atol=1e-5)
    left_out = json.loads(str(found["about"]))["left_out"]
    assert [path for path, _ in left_out] == [str(paths[number]) for number in (0, 7, 8, 12)]
    for path in paths:
        path.write_bytes(b"no image")
    code, _, err = run(checkpoint, images, "--on_bad_image", "skip", "--out", "none.npz")
    assert code == 2
    assert "none of the 13 images can be read" in err


def test_a_finished_file_is_not_made_again_nor_written_over(run, images, checkpoint):
    for ending in ("npz", "safetensors", "parquet"):
        target = Path(f"f.{ending}")
        assert run(checkpoint, images, "--out", target)[0] == 0
        before = target.stat().st_mtime_ns
        code, out, err = run(checkpoint, images, "--out", target)
        assert code == 0, err
        assert "holds these features already" in out
        code, _, err = run(checkpoint, images, "--out", target, "--stages", "stage3")
        assert code == 2
        assert "holds other features" in err
        assert target.stat().st_mtime_ns == before
        target.write_bytes(b"my own")
        code, _, err = run(checkpoint, images, "--out", target)
        assert code == 2
        assert "holds something else" in err
        assert target.read_bytes() == b"my own"


def test_one_extraction_at_a_time(run, images, checkpoint):
    with lock_folder(Path("features.npz.partial")):
        code, _, err = run(checkpoint, images)
    assert code == 2
    assert re.search(r"is being written by another extraction: .*process \d+ on .*--out\n", err)
    assert "checkpoint_dir" not in err
    assert run(checkpoint, images)[0] == 0


def test_a_full_disk(run, images, checkpoint):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # as a full disk: writing more than that fails
    try:
        code, _, err = run(checkpoint, images, "--batch_size", 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1
    assert "make room, and the same command goes on" in err
    assert not Path("features.npz").exists()
    code, out, err = run(checkpoint, images)
    assert code == 0, err
    assert "going on behind image 8 of 13" in out
    found = np.load("features.npz")
    np.testing.assert_allclose(found["pooled"], expected(checkpoint, found["paths"]), rtol=1e-4, atol=1e-5)


def test_names_of_strangers(run, tmp_path, checkpoint):
    folder = tmp_path / "images" / "<script>alert(1)</script>\x1b[31m\nnext"
    write_image(folder / "$x$,\n\x1b[1m.png", (1, 2, 3), 0)
    write_image(tmp_path / os.fsdecode(b"images/sea/\xff.png"), (1, 2, 3), 1)
    for ending in ("npz", "safetensors", "parquet"):
        code, out, err = run(checkpoint, "images", "--out", f"f.{ending}")
        assert code == 0, err
        assert "\x1b" not in out
        paths = list(shown_reading(out)["paths"])
        assert paths == ["images/<script>alert(1)</script>\x1b[31m\nnext/$x$,\n\x1b[1m.png", "images/sea/\\udcff.png"]


def test_when_the_neighbours_are_asked(run, images, checkpoint):
    _, out, _ = run(checkpoint, images, "--out", "a.npz")
    said = re.search(r"nearest neighbours: ([\d.]+) % of 13 images", out)
    assert said
    found = np.load("a.npz")
    accuracy = knn_accuracy(found["pooled"], torch.from_numpy(found["labels"]))
    assert said.group(1) == f"{100 * accuracy:.2f}"
    assert json.loads(str(found["about"]))["knn"]["accuracy"] == accuracy
    for number, arguments in enumerate((["--knn", "false"], ["--stages", "stage3"])):
        assert "nearest" not in run(checkpoint, images, "--out", f"b{number}.npz", *arguments)[1]
    assert "nearest" not in run(checkpoint, images / "sea", "--out", "c.npz")[1]


def test_half_precision_that_is_too_narrow(run, images, tmp_path):
    model = FineTuneModel("resnet18", 3, pretrained=False, image_size=32)
    model.network.layer4[1].bn2.weight.data.fill_(1e6)
    model.save_checkpoint(tmp_path / "large.pt")
    code, _, err = run(tmp_path / "large.pt", images, "--dtype", "float16")
    assert code == 1
    assert "is no number of float16: use --dtype float32" in err
    assert run(tmp_path / "large.pt", images)[0] == 0


def test_parquet_without_pyarrow(run, images, checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)  # importing it fails, as where it is not installed
    code, _, err = run(checkpoint, images, "--out", "f.parquet")
    assert code == 2
    assert "pip install 'sat_vg[parquet]'" in err


def test_what_cannot_be_extracted(run, images, checkpoint, tmp_path):
    several = FineTuneModel(
        "squeezenet1_1", 3, pretrained=False, image_size=32, bands=("red", "green", "blue", "nir")
    )
    several.save_checkpoint(tmp_path / "bands.pt")
    for arguments, message in (
        ((checkpoint, images, "--out", "f.txt"), "use .npz, .safetensors, .parquet"),
        ((checkpoint, images, "--out", images / "x.npz" / ".."), "its ending says the format"),
        ((checkpoint, images, "--stages", "stage9"), "--stages = 'stage9': no stage of this backbone; did you mean"),
        ((checkpoint, images, "--stages", "stage3", "--knn", "true"), "needs pooled vectors"),
        (
            (checkpoint, images, "--batch_size", 0),
            "--batch_size 0: must be a whole number of 1 or more; for example 64",
        ),
        ((checkpoint, images, "--device", "tpu"), "device = 'tpu'"),
        ((checkpoint, tmp_path / "none"), "there is no file or folder"),
        ((tmp_path / "none.pt", images), "there is no file"),
        ((tmp_path / "bands.pt", images), "takes images with the bands red, green, blue, nir"),
    ):
        code, out, err = run(*arguments)
        assert code == 2, (arguments, out, err)
        assert message in err
        assert "Traceback" not in err
    images.chmod(0o500)
    (tmp_path / "a_file").touch()
    code, _, err = run(checkpoint, images, "--out", tmp_path / "a_file" / "f.npz")
    images.chmod(0o700)
    assert code == 1
    assert "cannot be written to" in err
    assert "--out" in err


def test_the_shown_commands(run, class_folders, tmp_path):
    page = (REPOSITORY / "docs/extracting.md").read_text()
    shown = [line for body in re.findall(r"^```\n(sat-vg .*?)^```", page, re.M | re.S) for line in body.splitlines()]
    assert len(shown) >= 3
    (tmp_path / "CKPT").mkdir()
    model = FineTuneModel("resnet18", 3, pretrained=False, image_size=32)
    model.save_checkpoint(tmp_path / "CKPT/best_model.pt")
    shutil.copytree(class_folders / "val", tmp_path / "DIR")
    (tmp_path / "images.csv").write_text("path,label\nDIR/sea/val_0.jpg,sea\nDIR/town/val_1.png,town\n")
    for command in shown:
        assert command.startswith("sat-vg extract ")
        code, out, err = run(*shlex.split(command)[2:])
        assert code == 0, err
        assert "written: " in out
