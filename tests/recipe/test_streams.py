"""Commands whose standard output does not take every text, is not there, or breaks, end as they do elsewhere."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment, write_image


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number, name in enumerate(("café", "🌲")):
        for index in range(4):
            write_image(
                tmp_path / "images" / name / f"{index}.png", (40 + 90 * number, 99, 50), 9 * number + index, 16
            )
    return tmp_path / "images"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_an_encoding_that_lacks_letters(images, tmp_path, encoding):
    command = [sys.executable, "-m", "sat_vg", "check", str(images)]
    done = subprocess.run(
        command, capture_output=True, env=environment(tmp_path, PYTHONIOENCODING=encoding), timeout=120
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\U0001f332" in done.stdout


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_stream_that_is_not_there(images, tmp_path, closed):
    command = f'"{sys.executable}" -m sat_vg check "{images}" {closed}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, env=environment(tmp_path), timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_reader_that_goes_away_ends_nothing(images, tmp_path):
    pipe = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    pipe.wait()
    command = [sys.executable, "-m", "sat_vg", "check", str(images)]
    done = subprocess.run(command, stdout=pipe.stdin, stderr=subprocess.PIPE, env=environment(tmp_path), timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_full_disk_under_the_output_is_said(images, tmp_path):
    command = [sys.executable, "-m", "sat_vg", "check", str(images)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment(tmp_path), timeout=120)
    assert done.returncode == 1
    assert done.stderr.decode().startswith("error: standard output cannot be written to (No space left on device)")
    assert b"Traceback" not in done.stderr
