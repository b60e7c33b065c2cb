"""`make gpu` on the CPU: every part that needs no GPU runs, on tiny networks, and what needs one says so."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment

pytestmark = pytest.mark.recipe
SCRIPT = Path(__file__).parents[1] / "gpu" / "run.py"
NEED_CUDA = {"fp16 overflow", "compile"}
NOT_QUICK = {"ViT-B/16 at 224", "MobileNetV2 at 224", "ResNet-50 at 224, compiled"}


def run(folder, *options):
    """Exit code, what was printed, and the report."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--device", "cpu", "--quick", "--out", "found.json", *options],
        capture_output=True, text=True, cwd=folder, env=environment(folder, OMP_NUM_THREADS="1"), timeout=540,
    )  # fmt: skip
    report = json.loads((folder / "found.json").read_text())
    return done.returncode, done.stdout + done.stderr, report


def test_checks_without_a_whole_training(tmp_path):
    names = ("exact probe", "extractor = torchvision", "DDP on one rank", "FSDP2 on one rank", "fp16 overflow")
    code, said, report = run(tmp_path, "--only", *names)
    assert code == 0, said
    assert {name: one["result"] for name, one in report["checks"].items()} == {
        **dict.fromkeys(names, "ok"), "fp16 overflow": "skipped"
    }  # fmt: skip
    assert report["rates"] == {}
    assert {"torch", "torchvision", "cuda"} <= set(report["versions"])


@pytest.mark.slow
def test_all_that_needs_no_gpu(tmp_path):
    code, said, report = run(tmp_path)
    found = {**report["checks"], **report["rates"]}
    assert {name for name, one in found.items() if one["result"] == "failed"} == set(), said
    assert code == 0, said
    skipped = {name: one["reason"] for name, one in found.items() if one["result"] == "skipped"}
    assert skipped == {**dict.fromkeys(NEED_CUDA, "needs CUDA"), **dict.fromkeys(NOT_QUICK, "left out by --quick")}
    assert report["checks"]["resume after SIGKILL"]["largest difference"] == 0
    assert report["checks"]["extractor = torchvision"]["largest difference"] == 0
    assert report["rates"]["ResNet-50 at 224"]["ratio"] > 0
    assert len(report["rates"]["input pipeline"]["by epoch"]) == 3
