"""Training on images that were decoded once: the same bits as without, and a word on what was done."""

import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY, TINY, environment

pytestmark = pytest.mark.recipe


def courses(run):
    """What the log says, but for how long it took."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in run.lines]


def test_the_same_course_with_any_cache(class_folders, train_here, tmp_path):
    said = {}
    runs = {}
    for name, arguments in {
        "off": ("--cache", "off"),
        "auto": (),
        "again": ("--cache", "disk", "--num_workers", 2),
        "ram": ("--cache", "ram"),
    }.items():
        run = train_here(*TINY, "--dataset_path", class_folders, *arguments, folder=name)
        assert run.code == 0, run.err
        runs[name] = courses(run)
        said[name] = re.findall(r"^decoded images: (.*)$", run.out, re.MULTILINE)
        assert len(runs[name]) > 2
        assert runs[name] == runs["off"]
    where = re.escape(str(tmp_path / "cache/computed"))
    assert said["off"] == []
    assert re.fullmatch(rf"169 KiB in {where}, made in \d+\.\d s", *said["auto"])
    assert re.fullmatch(rf"169 KiB in {where}, found", *said["again"])
    assert re.fullmatch(r"169 KiB in memory, made in \d+\.\d s", *said["ram"])


def test_what_asks_for_too_much_stops_before_training(class_folders, train_here, tmp_path):
    run = train_here("--dataset_path", class_folders, "--cache", "disk", "--cache_gib", 0.00001)
    assert run.code == 2
    assert "cache = 'disk': the decoded images take 170 KiB (" in run.err
    assert "allow --cache_gib 0.1" in run.err
    assert not list((tmp_path / "run").rglob("*.pt"))
    run = train_here("--dataset_path", class_folders, "--cache_gib", 0)
    assert run.code == 2
    assert "cache_gib = 0.0: must be a number above 0" in run.err


@pytest.mark.slow
def test_the_benchmark_script(class_folders, tmp_path):
    done = subprocess.run(
        [sys.executable, "tests/bench/reading.py", class_folders, "--rounds", "2", "--image_size", "32"],
        cwd=REPOSITORY, capture_output=True, text=True, env=environment(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"ratio \d+\.\d\d", done.stdout)) == 2
    assert str(tmp_path) not in done.stdout
