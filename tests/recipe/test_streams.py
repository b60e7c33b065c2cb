"""Commands whose standard output does not take every text, is not there, or breaks, end as they do elsewhere."""

import io
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


def check(images: Path, tmp_path: Path, shell: str = "", **more: str) -> "subprocess.CompletedProcess[bytes]":
    """The command in a process of its own, with what a shell does to its streams."""
    command = f'"{sys.executable}" -m sat_vg check "{images}" {shell}'
    return subprocess.run(["sh", "-c", command], capture_output=True, env=environment(tmp_path, **more), timeout=120)


def test_an_encoding_that_lacks_letters(images, tmp_path):
    done = check(images, tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\U0001f332" in done.stdout


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_other_encodings_that_lack_letters(images, command, monkeypatch, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        code, _, err = command("check", images)
    stream.flush()
    assert (code, err) == (0, "")
    assert rb"\U0001f332" in stream.buffer.getvalue()
    assert "café".encode(encoding) in stream.buffer.getvalue()


def test_streams_that_are_not_there(images, tmp_path):
    done = check(images, tmp_path, ">&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("absent", ["stdout", "stderr"])
def test_a_stream_that_is_not_there(images, command, monkeypatch, absent):
    with monkeypatch.context() as patch:
        patch.setattr(sys, absent, None)
        code, out, err = command("check", images)
    assert (code, err) == (0, "")
    assert ("0 errors" in out) == (absent == "stderr")


def test_a_reader_that_goes_away_ends_nothing(tmp_path):
    pipe = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    pipe.wait()
    command = [sys.executable, "-m", "sat_vg", "backbones"]  # which loads no torch
    done = subprocess.run(command, stdout=pipe.stdin, stderr=subprocess.PIPE, env=environment(tmp_path), timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_full_disk_under_the_output_is_said(tmp_path):
    command = [sys.executable, "-m", "sat_vg", "backbones"]  # which loads no torch
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment(tmp_path), timeout=120)
    assert done.returncode == 1
    assert done.stderr.decode().startswith("error: standard output cannot be written to (No space left on device)")
    assert b"Traceback" not in done.stderr
