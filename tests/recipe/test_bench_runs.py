"""The benchmarks of many runs: what they keep, what they run again, and what their tables say."""

import json
import subprocess
import sys

import pytest
import torch
import torchvision
from conftest import REPOSITORY, environment, write_image

pytestmark = pytest.mark.recipe
BENCH = REPOSITORY / "tests/bench"


@pytest.fixture
def runs(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import runs

    return runs


def test_what_has_run_is_kept_and_only_the_same_is_not_run_again(runs, tmp_path):
    record = runs.Record(tmp_path / "results.json")
    run = runs.Run("full", 0, ("--weights", "/somewhere/w.pth", "--num_epochs", "3"))
    assert not record.has(run)
    record.add(run, {"best": 0.5, "cpu_seconds": 10})
    again = runs.Record(tmp_path / "results.json")
    assert again.has(runs.Run("full", 0, ("--weights", "/elsewhere/w.pth", "--num_epochs", "3")))
    longer = runs.Run("full", 0, ("--weights", "/somewhere/w.pth", "--num_epochs", "4"))
    assert not again.has(longer)
    assert not again.has(runs.Run("full", 1, run.flags))
    again.add(longer, {"best": 0.6, "cpu_seconds": 20})
    assert runs.Record(tmp_path / "results.json").of("full", "best") == {0: 0.6}
    assert "somewhere" not in (tmp_path / "results.json").read_text()


def test_differences_are_taken_seed_by_seed(runs):
    ours, base = {0: 0.52, 1: 0.62, 2: 0.73}, {0: 0.50, 1: 0.60, 2: 0.70, 3: 0.1}
    assert runs.difference(ours, base) == "+2.33 ± 0.58" or runs.difference(ours, base) == "**+2.33 ± 0.58**"
    assert runs.difference(ours, base).startswith("**")  # 2.33 > 4.30 · 0.58 / √3
    assert runs.difference({0: 0.5, 1: 0.65}, base) == "+2.50 ± 3.54"
    assert runs.difference({0: 0.5}, base) == "+0.00"
    assert runs.difference({7: 0.5}, base) == ""
    assert runs.ratio({0: 3.0, 1: 2.0, 5: 9.0}, {0: 1.0, 1: 1.0}) == "2.50"
    assert runs.spread([0.5, 0.6]) == "55.00 ± 7.07"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "data", "rows"),
    [
        ("techniques.py", "--ucmerced", ["linear_probe, exact"]),
        ("imbalance.py", "--eurosat", ["sampler weighted"]),
    ],
)
def test_a_benchmark_is_gone_on_with(script, data, rows, tmp_path):
    colours = {"Forest": (40, 160, 60), "Highway": (170, 160, 150)}
    for number, (name, colour) in enumerate(colours.items()):
        for index in range(112):
            write_image(tmp_path / "images" / name / f"{index}.png", colour, 1000 * number + index)
    torch.manual_seed(0)
    torch.save(torchvision.models.shufflenet_v2_x0_5().state_dict(), tmp_path / "weights.pth")
    command = [
        sys.executable, BENCH / script, data, tmp_path / "images", "--weights", tmp_path / "weights.pth", "--work",
        tmp_path / "work", "--results", tmp_path / "r.json", "--table", tmp_path / "t.md", "--backbone",
        "shufflenet_v2_x0_5", "--epochs", "2", "--seeds", "0", "--rows", *rows,
        *(["--images", "12"] if script == "imbalance.py" else ["--image_size", "32"]),
    ]  # fmt: skip

    def run() -> str:
        done = subprocess.run(command, capture_output=True, text=True, env=environment(tmp_path))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "2 runs to do" in run()
    kept = json.loads((tmp_path / "r.json").read_text())
    assert [entry["row"] for entry in kept if entry["row"] in rows] == rows
    assert all(entry["cpu_seconds"] > 0 and 0 <= entry["best"] <= 1 for entry in kept)
    assert list((tmp_path / "work/runs").iterdir()) == []
    if script == "imbalance.py":
        assert all(0 <= entry["recall"] <= 1 for entry in kept)
        assert len(list((tmp_path / "work/data").glob("*/train/Highway/*"))) == 1
        assert len(list((tmp_path / "work/data").glob("*/train/Forest/*"))) == 12
    table = (tmp_path / "t.md").read_text()
    assert str(tmp_path) not in table
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == 4  # two rows
    assert len({line.count("|") for line in lines}) == 1
    (tmp_path / "r.json").write_text(json.dumps(kept[:1]))
    assert "1 runs to do" in run()
