"""The built-in scenes: the same tiles every time, too hard for colour alone, kept whole in the cache."""

import multiprocessing
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sat_vg.backbone_finetuning.data.sources.scenes import SCENE_CLASSES, draw_scene, scenes_folder, write_scenes
from sat_vg.backbone_finetuning.utils.errors import DataError

FEW = {"train_per_class": 2, "val_per_class": 1, "size": 32}


def relative_files(folder):
    return {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def expected_files(train, val):
    return {
        Path(split) / name / f"{name}_{number:04d}.jpg"
        for split, count in (("train", train), ("val", val))
        for name in SCENE_CLASSES
        for number in range(count)
    }


def ask_for_folder(cache, barrier, answers):
    barrier.wait(timeout=60)
    folder = scenes_folder(cache, **FEW)
    answers.put((str(folder), len(relative_files(folder))))


def test_there_are_ten_classes_in_sorted_order():
    assert len(SCENE_CLASSES) == 10
    assert list(SCENE_CLASSES) == sorted(set(SCENE_CLASSES))


@pytest.mark.parametrize("class_name", SCENE_CLASSES)
def test_a_tile_is_a_function_of_its_class_and_seed(class_name):
    first = draw_scene(class_name, 5)
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    assert first.std() > 0.5
    assert first.tobytes() == draw_scene(class_name, 5).tobytes()
    assert first.tobytes() != draw_scene(class_name, 6).tobytes()


def test_drawing_leaves_the_global_generators_alone_and_ignores_them():
    np.random.seed(1)  # noqa: NPY002
    first = draw_scene("harbor", 0)
    after = np.random.get_state()[1].copy()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert (np.random.get_state()[1] == after).all()  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    assert first.tobytes() == draw_scene("harbor", 0).tobytes()


@pytest.mark.parametrize("class_name", SCENE_CLASSES)
@pytest.mark.parametrize("size", [16, 33, 128])
def test_every_class_can_be_drawn_in_other_sizes(class_name, size):
    for seed in range(4):
        assert draw_scene(class_name, seed, size).shape == (size, size, 3)


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match=r"'volcano'.*bare_soil"):
        draw_scene("volcano", 0)
    with pytest.raises(ValueError, match="15 pixels"):
        draw_scene("water", 0, size=15)


def test_write_scenes_makes_exactly_the_folders_and_counts(tmp_path):
    write_scenes(tmp_path, train_per_class=3, val_per_class=2, size=32)
    files = relative_files(tmp_path)
    assert set(files) == expected_files(3, 2)
    for path in files.values():
        with Image.open(path) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (32, 32), "RGB")
    assert len({path.read_bytes() for path in files.values()}) == len(files), "a tile occurs twice"


def test_the_seed_decides_the_data_set_and_a_smaller_set_is_part_of_it(tmp_path):
    write_scenes(tmp_path / "a", train_per_class=2, val_per_class=1, size=32, seed=3)
    write_scenes(tmp_path / "b", train_per_class=1, val_per_class=1, size=32, seed=3)
    write_scenes(tmp_path / "c", train_per_class=1, val_per_class=1, size=32, seed=4)
    large, small, other = (relative_files(tmp_path / name) for name in "abc")
    assert all(large[name].read_bytes() == path.read_bytes() for name, path in small.items())
    assert all(other[name].read_bytes() != path.read_bytes() for name, path in small.items())


def test_mean_colour_does_not_tell_the_classes_apart(tmp_path):
    write_scenes(tmp_path, train_per_class=40, val_per_class=20)
    features, labels = {}, {}
    for split in ("train", "val"):
        paths = sorted((tmp_path / split).rglob("*.jpg"))
        features[split] = np.stack([np.asarray(Image.open(path)).mean(axis=(0, 1)) for path in paths])
        labels[split] = [path.parent.name for path in paths]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    classifier.fit(features["train"], labels["train"])
    accuracy = classifier.score(features["val"], labels["val"])
    assert 0.15 < accuracy < 0.70


def test_a_second_call_rewrites_nothing(tmp_path):
    folder = scenes_folder(tmp_path / "cache", **FEW)
    assert set(relative_files(folder)) == expected_files(2, 1)
    before = {name: path.stat().st_mtime_ns for name, path in relative_files(folder).items()}
    # A temporary folder that comes and goes would show in the cache folder's own time.
    times = [path.stat().st_mtime_ns for path in (folder, folder.parent)]
    assert scenes_folder(tmp_path / "cache", **FEW) == folder
    assert {name: path.stat().st_mtime_ns for name, path in relative_files(folder).items()} == before
    assert [path.stat().st_mtime_ns for path in (folder, folder.parent)] == times
    assert names_in(tmp_path / "cache") == [folder.name], "something temporary was left behind"


def test_every_setting_has_a_folder_of_its_own(tmp_path):
    settings = [FEW, {**FEW, "seed": 1}, {**FEW, "size": 16}, {**FEW, "val_per_class": 2}]
    settings.append({**FEW, "train_per_class": 1})
    assert len({scenes_folder(tmp_path, **setting) for setting in settings}) == len(settings)


def test_the_cache_is_private(tmp_path):
    folder = scenes_folder(tmp_path / "cache", **FEW)
    for path in (folder, folder.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_an_interrupted_run_does_no_harm(tmp_path):
    name = scenes_folder(tmp_path / "elsewhere", **FEW).name
    cache = tmp_path / "cache"
    (cache / f".{name}-left.tmp" / "train" / "river").mkdir(parents=True)
    (cache / name).mkdir()  # such as an empty folder that someone made by hand
    folder = scenes_folder(cache, **FEW)
    assert set(relative_files(folder)) == expected_files(2, 1)
    assert not relative_files(cache / f".{name}-left.tmp"), "the folder of another process was written to"


def test_two_processes_at_once_both_get_a_whole_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.Queue()
    cache = tmp_path / "cache"
    workers = [context.Process(target=ask_for_folder, args=(cache, barrier, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    results = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    assert results[0] == results[1]
    assert results[0][1] == 30
    assert names_in(cache) == [Path(results[0][0]).name]


@pytest.mark.parametrize("cache_is", ["given", "from the environment"])
def test_an_unusable_cache_folder_is_named_with_the_remedy(tmp_path, monkeypatch, cache_is):
    (tmp_path / "file").write_text("in the way")
    cache = tmp_path / "file" / "x"
    monkeypatch.setenv("SAT_VG_CACHE", str(cache))
    with pytest.raises(DataError, match="SAT_VG_CACHE") as error:
        scenes_folder(cache if cache_is == "given" else None, **FEW)
    assert str(cache) in str(error.value)


def test_a_foreign_folder_in_the_way_is_reported_and_kept(tmp_path):
    name = scenes_folder(tmp_path / "elsewhere", **FEW).name
    (tmp_path / "cache" / name).mkdir(parents=True)
    (tmp_path / "cache" / name / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="cache"):
        scenes_folder(tmp_path / "cache", **FEW)
    assert (tmp_path / "cache" / name / "notes.txt").read_text() == "mine"
    assert names_in(tmp_path / "cache") == [name]


def test_the_default_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "own"))
    assert scenes_folder(**FEW).parent == tmp_path / "own"
    monkeypatch.delenv("SAT_VG_CACHE")
    assert scenes_folder(**FEW).parent == tmp_path / "xdg" / "sat_vg"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert scenes_folder(**FEW).parent == tmp_path / "home" / ".cache" / "sat_vg"
