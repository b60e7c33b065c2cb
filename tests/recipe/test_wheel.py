"""The package as a wheel and as a source archive, outside of the checkout."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY, write_classes

pytestmark = pytest.mark.recipe

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
BUILD = [*PIP, "wheel", "--quiet", "--no-deps", "--no-build-isolation"]


def run(*command: object, cwd: Path, **variables: str) -> str:
    """The standard output of a command, which must succeed."""
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, env={**os.environ, **variables}
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of all that belongs into the archives."""
    folder = tmp_path_factory.mktemp("source") / "sat_vg"
    for name in ("sat_vg", "configs"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source) -> Path:
    run(*BUILD, "--wheel-dir", source.parent, source, cwd=source.parent)
    (found,) = source.parent.glob("*.whl")
    return found


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of the package in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


def test_a_wheel_brings_the_recipes_and_all_files(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    names = contents(wheel)
    there = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "sat_vg").rglob("*") if path.is_file()}
    lacking = {name for name in there - set(names) if "__pycache__" not in name}
    assert not lacking, f"the wheel lacks {sorted(lacking)}: name them in setup.py"
    assert not [name for name in names if name.endswith(".png")]
    python = {"PYTHONPATH": str(tmp_path / "site")}
    shown = run(
        sys.executable, "-m", "sat_vg", "train", "--config", "ucmerced", "--dataset_path", "x", "--print_config",
        cwd=tmp_path, **python,
    )  # fmt: skip
    assert "backbone: mobilenet_v2" in shown
    assert "sat_vg " in run(sys.executable, "-m", "sat_vg", "--version", cwd=tmp_path, **python)
    where = run(sys.executable, "-c", "import sat_vg; print(sat_vg.__file__)", cwd=tmp_path, **python)
    assert str(tmp_path) in where


def test_the_source_archive_gives_the_same_wheel(source, wheel, tmp_path):
    copy = shutil.copytree(source, tmp_path / "copy")
    run(sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", tmp_path, cwd=copy)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        assert not [name for name in packed.getnames() if "/tests/" in name or "/docs/" in name]
    run(*BUILD, "--wheel-dir", tmp_path, archive, cwd=tmp_path)
    (again,) = tmp_path.glob("*.whl")
    assert contents(again) == contents(wheel)


def extras_of(wheel: Path) -> list[str]:
    """The extras for users, as the wheel declares them."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        declared = re.findall(r"^Provides-Extra: (\w+)$", archive.read(name).decode(), re.MULTILINE)
    assert {"timm", "geo", "onnx", "parquet", "webdataset", "dev", "docs"} <= set(declared)
    # FAISS brings an OpenMP of its own beside torch's, so it is not in the environment of all other tests.
    return [name for name in declared if name not in ("dev", "docs", "search")]


def test_what_the_extras_ask_for_is_met_by_the_extra_dev(wheel, tmp_path):
    told = run(*PIP, "install", "--dry-run", "--no-index", f"{wheel}[{','.join(extras_of(wheel))}]", cwd=tmp_path)
    assert "Requirement already satisfied: timm" in told and "Would install sat" in told


def site_packages(python: Path, cwd: Path) -> Path:
    return Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=cwd).strip())


def test_pip_keeps_a_cpu_build_of_torch(wheel, tmp_path):
    """``pip install torch`` from an index of CPU builds, then sat_vg: their versions have ``+cpu`` at the end."""
    site = tmp_path / "site"
    for name, version in (("torch", "2.10.0+cpu"), ("torchvision", "0.25.0+cpu")):
        about = site / f"{name}-{version}.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (about / "INSTALLER").write_text("pip\n")
        (about / "RECORD").write_text("")
    told = run(*PIP, "install", "--dry-run", "--no-index", wheel, cwd=tmp_path, PYTHONPATH=str(site))
    for name, version in (("torch", "2.10.0+cpu"), ("torchvision", "0.25.0+cpu")):
        assert f"({version})" in next(line for line in told.splitlines() if f"satisfied: {name}>=" in line)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_in_a_clean_environment_it_trains(wheel, tmp_path):
    """Everything is installed from the index, as for a new user; takes minutes and gigabytes."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[{','.join(extras_of(wheel))}]", cwd=tmp_path)
    assert str(site_packages(python, tmp_path)) in run(
        python, "-c", "import sat_vg; print(sat_vg.__file__)", cwd=tmp_path
    )
    images = write_classes(tmp_path / "images")
    command = tmp_path / "env/bin/sat-vg"
    dry = run(
        command, "train", "--config", "ucmerced", "--dataset_path", images, "--pretrained", "false", "--dry_run",
        cwd=tmp_path,
    )  # fmt: skip
    assert "dry run: nothing was trained" in dry
    small = ("--pretrained", "false", "--image_size", "32", "--num_epochs", "1", "--batch_size", "6")
    trained = run(command, "train", "--dataset_path", images, *TINY, *small, "--name", "first", cwd=tmp_path)
    assert "done: validation accuracy" in trained
    exported = run(
        command, "export", "runs/first", "--format", "onnx", "--part", "extractor", "--out", "maps.onnx", cwd=tmp_path
    )
    assert "maps.onnx" in exported
