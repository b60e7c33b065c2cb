"""How many cores a process may use, as Linux says it in its files."""

import ast
import os
from pathlib import Path

import pytest

import sat_vg
from sat_vg.backbone_finetuning.utils import cores
from sat_vg.backbone_finetuning.utils.cores import usable_cores

TESTS = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 6),
        ({"cgroup": "0::/\n", "cpu.max": "max 100000\n"}, 6),
        ({"cgroup": "0::/\n", "cpu.max": "300000 100000\n"}, 3),
        ({"cgroup": "0::/\n", "cpu.max": "50000 100000\n"}, 1),
        ({"cgroup": "0::/\n", "cpu.max": "6400000 100000\n"}, 6),
        ({"cgroup": "0::/slice/job\n", "slice/job/cpu.max": "max 100000\n", "slice/cpu.max": "200000 100000\n"}, 2),
        ({"cgroup": "4:cpu,cpuacct:/\n", "cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cgroup": "4:cpu:/\n", "cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 6),
        ({"cgroup": "0::/\n", "cpu.max": "damaged"}, 6),
    ],
)  # fmt: skip
def test_no_more_than_the_affinity_and_the_quota_of_any_group_allow(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    for name, text in files.items():
        path = tmp_path / ("proc/self/cgroup" if name == "cgroup" else f"sys/fs/cgroup/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert usable_cores(tmp_path) == expected


def test_nobody_counts_the_cores_of_the_machine():
    """They are more than the process may use in a container, or under a job scheduler."""
    files = [*Path(sat_vg.__file__).parent.rglob("*.py"), *TESTS.rglob("*.py")]
    assert len(files) > 100
    found = []
    for file in files:
        if file in (Path(cores.__file__), Path(__file__)):
            continue
        text = file.read_text(encoding="utf-8")
        if not any(name in text for name in ("cpu_count", "sched_getaffinity", "PoolExecutor")):
            continue
        for node in ast.walk(ast.parse(text)):
            name = getattr(node, "attr", getattr(node, "id", ""))
            if name in ("cpu_count", "sched_getaffinity"):
                found.append(f"{file}:{node.lineno}: {name}")
            if isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("PoolExecutor"):
                limits = [*node.args, *(word.value for word in node.keywords if word.arg == "max_workers")]
                found += [] if limits else [f"{file}:{node.lineno}: as many workers as the machine has cores"]
    assert not found
