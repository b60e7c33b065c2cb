"""The package as a wheel and as a source archive, outside of the checkout."""

import json
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

from sat_vg.backbone_finetuning.commands.serve.cli import ServeOptions
from sat_vg.backbone_finetuning.configs.option_parser import parse_options
from sat_vg.backbone_finetuning.models.artifact import BEST_MODEL
from sat_vg.cli import COMMANDS

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


def test_the_image_of_the_server_fits_the_package_and_its_page(wheel, tmp_path):
    """No test can build it. A wheel is built of the files that it copies, and what it names is compared."""
    lines = [line.split(maxsplit=1) for line in (REPOSITORY / "docs/Dockerfile").read_text().splitlines() if line]
    said = {key: [rest for name, rest in lines if name == key] for key, _ in lines}
    page = (REPOSITORY / "docs/serving.md").read_text()
    app = tmp_path / "app"
    for *names, target in map(str.split, said["COPY"]):
        for name in names:
            place = app / target / name if target.endswith("/") else app / target
            place.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy)(REPOSITORY / name, place)
    run(*BUILD, "--wheel-dir", tmp_path, app, cwd=tmp_path)
    (built,) = tmp_path.glob("*.whl")
    assert {name for name in contents(built) if "__pycache__" not in name} == set(contents(wheel))
    (python,) = re.findall(r"python:3\.(\d+)-slim", said["FROM"][0])
    (oldest,) = re.findall(r'python_requires=">=3\.(\d+)"', (REPOSITORY / "setup.py").read_text())
    assert int(python) >= int(oldest)
    (installed,) = re.findall(r"'\.\[(.+)\]'", " ".join(said["RUN"]))
    assert {"serve", "geo"} == set(installed.split(",")) <= set(extras_of(wheel))
    assert "libexpat1" in " ".join(said["RUN"]), "the one library that rasterio's wheel looks for in the system"
    program, name, *arguments = json.loads(said["ENTRYPOINT"][0]) + json.loads(said["CMD"][0])
    assert (program, COMMANDS[name].module) == ("sat-vg", "sat_vg.backbone_finetuning.commands.serve.cli")
    options = parse_options(ServeOptions, arguments, "sat-vg serve", "", {"checkpoint": "MODEL"})
    assert options.host == "0.0.0.0", "a container's own 127.0.0.1 is reached by nobody"
    assert said["EXPOSE"] == [str(options.port)]
    assert f"http://127.0.0.1:{options.port}/health" in said["HEALTHCHECK"][0]
    assert f"-p {options.port}:{options.port} " in page
    assert f"/checkpoints:{Path(options.checkpoint).parent}:ro" in page
    assert options.checkpoint.endswith(f"/{BEST_MODEL}")
    (user,) = said["USER"]
    assert any(f"useradd --create-home {user}" in one for one in said["RUN"]), "the cache lies in a home"


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
