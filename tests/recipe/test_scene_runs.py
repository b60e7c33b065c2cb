"""Scenes end to end: the page's five commands, and trainings on windows and on written tiles."""

import json
import os
import re
import shlex
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, TINY
from forks import Forked
from scene_files import pixels, polygon, rasterio, write_labels, write_scene

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.cli import COMMANDS

pytestmark = pytest.mark.recipe


def test_windows_train_to_the_bits_of_written_tiles(train_here, command, tmp_path):
    write_scene(tmp_path / "scene.tif")
    write_labels(tmp_path / "labels.geojson", polygon("a", 0, 0, 96, 128), polygon("b", 96, 0, 192, 128))
    for more in (("--out", "tiles"), ("--virtual", "--out", "tiles.csv")):
        code, _, err = command("tile", "scene.tif", "--labels", "labels.geojson", "--size", 32, *more)
        assert code == 0, err
    runs = [
        train_here("--dataset_path", data, "--num_epochs", 1, "--num_workers", workers, folder=f"run{number}")
        for number, (data, workers) in enumerate((("tiles", 0), ("tiles.csv", 0), ("tiles.csv", 2)))
    ]
    assert [run.code for run in runs] == [0, 0, 0], runs[1].err
    weights = [torch.load(run.best_model, weights_only=True)["state_dict"] for run in runs]
    assert len(weights[0]) > 20
    for other in weights[1:]:
        assert all(torch.equal(value, other[name]) for name, value in weights[0].items())


@pytest.mark.parametrize("what", ["tile", "predict"])
def test_a_kill_and_the_same_command_give_the_same_files(command, tmp_path, what):
    write_scene(tmp_path / "scene.tif", pixels(256, 256))
    write_labels(tmp_path / "labels.geojson", polygon("a", 0, 0, 128, 256), polygon("b", 128, 0, 256, 256))
    FineTuneModel("squeezenet1_1", 2, pretrained=False, image_size=32).save_checkpoint(tmp_path / "best_model.pt")
    arguments = {
        "tile": ["scene.tif", "--labels", "labels.geojson", "--size", "32", "--stride", "8"],
        "predict": ["best_model.pt", "scene.tif", "--size", "32", "--stride", "16"],
    }[what]
    suffix = {"tile": "", "predict": ".tif"}[what]
    out, err = tmp_path / "out", tmp_path / "err"
    out.touch(), err.touch()
    killed = Forked("sat_vg", [what, *arguments, "--out", f"killed{suffix}"], tmp_path, dict(os.environ), out, err)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".killed*/*")) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert killed.poll() is None, err.read_text()
    killed.kill()
    killed.wait(60)
    assert list(tmp_path.glob(".killed*"))
    assert not list(tmp_path.glob("killed*"))
    for name in ("killed", "whole"):
        code, _, complaint = command(what, *arguments, "--out", f"{name}{suffix}")
        assert code == 0, complaint
    found = {}
    for name in ("killed", "whole"):
        paths = [path for path in (tmp_path / name).rglob("*") if path.is_file()] or tmp_path.glob(f"{name}*")
        found[name] = {str(path.relative_to(tmp_path)).replace(name, ""): path.read_bytes() for path in paths}
    assert found["killed"] == found["whole"]
    assert len(found["whole"]) > (700 if what == "tile" else 1)
    assert not list(tmp_path.glob(".killed*"))


def test_a_map_goes_on_after_a_kill_where_it_was(tmp_path, monkeypatch):
    """Killed while it predicts; the same bits, also where the end of what was kept is damaged."""
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
    write_scene(tmp_path / "scene.tif", pixels(256, 256))
    FineTuneModel("squeezenet1_1", 2, pretrained=False, image_size=32).save_checkpoint(tmp_path / "best_model.pt")
    # Two classes: a batch of 4 windows takes 36 bytes, behind 32 of the hash; there are 29 x 29 windows.
    arguments = ["best_model.pt", "scene.tif", "--size", "32", "--stride", "8", "--batch_size", "4"]
    kept = tmp_path / ".killed.tif.windows.tmp"
    out, err = tmp_path / "out", tmp_path / "err"

    def predict(*more):  # in a process of its own: what is kept is that of one set of libraries
        out.write_text(""), err.write_text("")
        return Forked("sat_vg", ["predict", *arguments, *more], tmp_path, dict(os.environ), out, err)

    probabilities = ("--probabilities", "true")
    assert predict(*probabilities, "--out", "whole.tif").wait(120) == 0, err.read_text()
    for batches in (20, 60):
        killed = predict(*probabilities, "--out", "killed.tif")
        deadline = time.monotonic() + 120
        while (
            not (kept.exists() and kept.stat().st_size >= 32 + 36 * batches)
            and killed.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.001)
        killed.kill()
        killed.wait(60)
        assert not list(tmp_path.glob("killed*")), err.read_text()
        assert ("going on after" in out.read_text()) == (batches == 60)
    content = bytearray(kept.read_bytes())
    content[32 + 36 * 50 + 5] ^= 1  # a bit of batch 50
    kept.write_bytes(content)
    assert predict(*probabilities, "--out", "killed.tif").wait(120) == 0, err.read_text()
    assert f"going on after {49 * 4} windows, which a call that was stopped had predicted" in out.read_text()
    for name in ("tif", "probabilities.tif", "preview.png"):
        assert (tmp_path / f"killed.{name}").read_bytes() == (tmp_path / f"whole.{name}").read_bytes(), name
    assert not list(tmp_path.glob(".killed*"))
    # With another model, scene, window or batch nothing of it is taken.
    (tmp_path / "killed.tif").unlink()
    kept.write_bytes(content)
    assert predict("--out", "killed.tif", "--views", "2").wait(120) == 0, err.read_text()
    assert "going on" not in out.read_text()


def shown(page: str) -> list[str]:
    body = "\n".join(re.findall(r"^```bash\n(.*?)^```", (REPOSITORY / page).read_text(), re.MULTILINE | re.DOTALL))
    return [line for line in body.replace("\\\n", " ").splitlines() if line and "tests/bench" not in line]


def run(line: str, *more: str) -> int:
    words = shlex.split(line.split("  #")[0])
    module = COMMANDS[words[1]].module if words[0] == "sat-vg" else words[2]
    return int(import_module(module).main([*words[2 if words[0] == "sat-vg" else 3 :], *more]))


def test_the_pages_commands_lead_from_a_scene_to_a_map(tmp_path, monkeypatch, capfd):
    """As shown, but for a smaller scene, network and training."""
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    commands = shown("docs/scenes.md")
    assert [line.split()[1] for line in commands[:5]] == ["-m", "tile", "check", "train", "predict"]
    smaller = {
        "-m": ("--size", "768"),
        "tile": ("--block_size", "400"),
        "train": ("--pretrained", "false", "--image_size", "32", "--num_epochs", "1", "--warmup_epochs", "0", *TINY),
    }
    for line in commands:
        kind = line.split()[1]
        virtual = "--virtual" in line or "dataset_path tiles.csv" in line
        more = smaller.get(kind, ()) if not (kind == "tile" and "--split" not in line) else ()
        if kind == "train" and virtual:
            more = (*more, "--name", "windows")
        assert run(line, *more) == 0, (line, capfd.readouterr().err)
    with rasterio.open("scene.truth.tif") as truth, rasterio.open("map.tif") as found:
        assert found.transform == truth.transform
        assert found.shape == truth.shape == (768, 768)
    assert json.loads(Path("map.geojson").read_text())["features"]
    assert Path("map.preview.png").stat().st_size > 10_000
    assert Path("hits.png").stat().st_size > 10_000
    (snippet,) = re.findall(r"^```python\n(.*?)^```", (REPOSITORY / "docs/scenes.md").read_text(), re.M | re.S)
    names: dict = {}
    exec(compile(snippet, "docs/scenes.md", "exec"), names)
    assert names["hits"][0].path == "scene.tif/000512_000256_64x64"
    assert names["path"].exists()


def test_the_drawn_scene_is_a_function_of_seed_and_place(tmp_path):
    from sat_vg.scenes import draw_scene

    for name, crs in (("a", "EPSG:32632"), ("b", "EPSG:32632"), ("c", "EPSG:4326")):
        draw_scene(tmp_path / f"{name}.tif", size=700, crs=crs)
    files = [tmp_path / f"{name}.tif" for name in "abc"]
    assert files[0].read_bytes() == files[1].read_bytes()
    for path in (files[0], files[2]):
        with rasterio.open(path.with_suffix(".truth.tif")) as source:
            truth, transform, crs = source.read(1), source.transform, source.crs
        assert {1, 2} < set(np.unique(truth)) <= {1, 2, 3, 4, 5}
        features = json.loads(path.with_suffix(".geojson").read_text())["features"]
        names = ["bare", "field", "forest", "town", "water"]
        shapes = [
            (
                rasterio.warp.transform_geom("EPSG:4326", crs, one["geometry"]),
                names.index(one["properties"]["class"]) + 1,
            )
            for one in features
        ]
        from rasterio.features import rasterize

        # The labels lie on the truth's own pixels: none of 700 x 700 differs.
        assert np.array_equal(rasterize(shapes, truth.shape, transform=transform), truth)


@pytest.mark.parametrize(
    ("out", "there", "message"),
    [
        ("scene.tif", "scene.tif", "'scene.tif' exists"),
        ("scene.tif", "scene.geojson", "'scene.geojson' exists"),
        ("scene.tif", "scene.truth.tif", "'scene.truth.tif' exists"),
        ("scene.geojson", None, "a GeoTIFF is written"),
    ],
)
def test_a_drawn_scene_is_written_over_nothing(tmp_path, monkeypatch, capfd, out, there, message):
    monkeypatch.chdir(tmp_path)
    if there is not None:
        (tmp_path / there).write_text("mine")
    before = {path: path.read_text() for path in tmp_path.iterdir()}
    code = import_module("sat_vg.scenes.drawn").main([out, "--size", "64"])
    err = capfd.readouterr().err
    assert (code, err.count("\n"), message in err) == (2, 1, True), err
    assert {path: path.read_text() for path in tmp_path.iterdir()} == before


def test_options_of_a_drawn_scene_are_checked(tmp_path):
    from sat_vg.backbone_finetuning.utils.errors import ConfigError
    from sat_vg.scenes import draw_scene

    for options, message in (({"size": 1}, "size = 1: must be"), ({"sise": 64}, "did you mean 'size'")):
        with pytest.raises(ConfigError, match=message):
            draw_scene(tmp_path / "scene.tif", **options)
