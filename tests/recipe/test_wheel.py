"""The package as a wheel, outside of the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.recipe


def test_a_wheel_brings_the_recipes_and_all_files(tmp_path):
    source = tmp_path / "source"
    for name in ("sat_vg", "configs"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(source)], check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        names = set(archive.namelist())
    there = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "sat_vg").rglob("*") if path.is_file()}
    lacking = {name for name in there - names if "__pycache__" not in name}
    assert not lacking, f"the wheel lacks {sorted(lacking)}: name them in setup.py"
    for arguments, expected in (
        (["train", "--config", "ucmerced", "--dataset_path", "x", "--print_config"], "backbone: mobilenet_v2"),
        (["--version"], "sat_vg "),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "sat_vg", *arguments], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
    where = subprocess.run(
        [sys.executable, "-c", "import sat_vg; print(sat_vg.__file__)"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")}, check=True,
    )  # fmt: skip
    assert str(tmp_path) in where.stdout
