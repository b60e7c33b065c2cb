"""Files that were altered, and files that were made to do harm."""

import io
import os
import pickle
import struct
import time
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from sat_vg.backbone_finetuning.utils.errors import CheckpointError
from sat_vg.backbone_finetuning.utils.tensor_files import load_tensors, save_tensors
from sat_vg.backbone_finetuning.utils.torch_archives import DamagedFileError, RefusedFileError, require_sound

CONTENT = {
    "network": OrderedDict(weight=torch.arange(40.0).reshape(5, 8), half=torch.ones(3, dtype=torch.bfloat16)),
    "shared": torch.arange(6)[2:4],
    "state": {"step": 7, "loss": 0.25, "large": 2**70, "best": None, "done": False, "names": ["a", ("b", "ü")]},
}


def equal(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return isinstance(second, dict) and list(first) == list(second) and all(
            equal(first[name], second[name]) for name in first
        )  # fmt: skip
    if isinstance(first, (list, tuple)):
        return type(first) is type(second) and len(first) == len(second) and all(map(equal, first, second))
    return type(first) is type(second) and first == second


def bytes_of(content: object, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


WHOLE = bytes_of(CONTENT)
ANY_FILE = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@ANY_FILE
@given(place=st.integers(0, len(WHOLE) - 1), change=st.integers(1, 255))
def test_any_altered_byte_is_seen_or_harmless(tmp_path, place, change):
    path = tmp_path / "f.pt"
    path.write_bytes(WHOLE[:place] + bytes([WHOLE[place] ^ change]) + WHOLE[place + 1 :])
    try:
        loaded = load_tensors(path)
    except CheckpointError:
        return
    assert equal(loaded, CONTENT)


def test_numbers_that_are_marked_as_a_folder_are_not_loaded(tmp_path):
    """torch reads nothing of such an entry, and the tensor is whatever lay in memory."""
    path, found = tmp_path / "f.pt", WHOLE.index(b"PK\x01\x02")
    while WHOLE[found + 46 :][:14] != b"archive/data/0":
        found = WHOLE.index(b"PK\x01\x02", found + 1)
    path.write_bytes(WHOLE[: found + 38] + b"\x10" + WHOLE[found + 39 :])
    with pytest.raises(CheckpointError, match="'archive/data/0' is marked as a folder"):
        load_tensors(path)


@ANY_FILE
@given(length=st.integers(0, len(WHOLE) - 1), padding=st.sampled_from([b"", b"\0" * 64, b"PK\x05\x06"]))
def test_any_cut_is_seen(tmp_path, length, padding):
    path = tmp_path / "f.pt"
    path.write_bytes(WHOLE[:length] + padding)
    with pytest.raises(CheckpointError):
        load_tensors(path)


@ANY_FILE
@given(place=st.integers(0, len(WHOLE) - 2), count=st.integers(1, 400), fill=st.sampled_from([b"\0", b"\xff", b"x"]))
def test_any_lost_block_is_seen_or_harmless(tmp_path, place, count, fill):
    path = tmp_path / "f.pt"
    block = WHOLE[place : place + count]
    path.write_bytes(WHOLE[:place] + fill * len(block) + WHOLE[place + len(block) :])
    try:
        loaded = load_tensors(path)
    except CheckpointError:
        return
    assert equal(loaded, CONTENT)


@pytest.mark.parametrize("legacy", [False, True])
def test_what_people_save_is_read(tmp_path, legacy):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    content = {
        **CONTENT,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "milestones": Counter([3, 5]),
        "names": {"set"},
        "size": torch.Size([2, 3]),
        "raw": b"bytes",
        "dtype": torch.float16,
        "complex": 1j,
        "transposed": torch.randn(3, 4).T,
        "channels_last": torch.randn(1, 2, 3, 3).to(memory_format=torch.channels_last),
    }
    if not legacy:
        content["float8"] = torch.ones(4).to(torch.float8_e4m3fn)
        content["unsigned"] = torch.ones(4, dtype=torch.uint16)
    path = tmp_path / "f.pt"
    path.write_bytes(bytes_of(content, legacy))
    loaded = load_tensors(path)
    assert loaded.keys() == content.keys()
    assert equal(loaded["optimizer"], content["optimizer"])
    assert loaded["model"]._metadata == content["model"]._metadata


def test_safetensors_are_read_and_their_damage_is_seen(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.arange(4.0)}, path)
    assert torch.equal(load_tensors(path)["a"], torch.arange(4.0))
    whole = path.read_bytes()
    for damage in (whole[:-1], whole[:9], b"", struct.pack("<Q", 2**60) + whole[8:], whole + b"x"):
        path.write_bytes(damage)
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_tensors(path)


class RunsCommand:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_a_command_is_refused_and_does_not_run(tmp_path, legacy):
    for call, name in ((os.system, "system"), (eval, "eval"), (exec, "exec"), (os.popen, "popen")):
        mark = tmp_path / f"ran_{name}"
        text = f"touch {mark}" if name in ("system", "popen") else f"open({str(mark)!r}, 'w')"
        path = tmp_path / "evil.pt"
        path.write_bytes(bytes_of({"a": torch.ones(2), "b": RunsCommand(call, text)}, legacy))
        with pytest.raises(CheckpointError, match=rf"it holds the Python object \w+\.{name}.*could run code"):
            load_tensors(path)
        path.write_bytes(pickle.dumps(RunsCommand(call, text)))  # not even of torch
        with pytest.raises(CheckpointError):
            load_tensors(path)
        time.sleep(0.05)
        assert not mark.exists()
    torch.load(io.BytesIO(bytes_of(RunsCommand(os.system, f"touch {tmp_path / 'sure'}"))), weights_only=False)
    assert (tmp_path / "sure").exists()  # the trap works where it is stepped into


def rezipped(whole: bytes, change: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The same archive with other entries; checksums fit."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(target, "w", compression) as archive:
        for name in dict.fromkeys([*source.namelist(), *change]):
            archive.writestr(name, change[name] if name in change else source.read(name))
    return target.getvalue()


def refusal(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "evil.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_tensors(path)
    return str(caught.value)


def test_archives_that_would_fill_the_memory(tmp_path):
    bomb = rezipped(WHOLE, {"archive/data/0": b"\0" * 50_000_000}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    assert "is compressed" in refusal(tmp_path, bomb)

    whole = bytes_of({"a": torch.zeros(16)})
    short = rezipped(whole, {"archive/data/0": b"\0" * 8})  # the tensor says 64 bytes: reading on would be a leak
    assert "claims 64 bytes and has 8" in refusal(tmp_path, short)

    stretched = bytes_of({"a": torch.zeros(1).expand(10**12)})
    assert "is larger than the file" in refusal(tmp_path, stretched)

    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        listing = archive.read("archive/data.pkl")
    large = b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R."
    assert "it holds the Python object builtins.bytearray" in refusal(
        tmp_path, rezipped(whole, {"archive/data.pkl": large})
    )
    for harm, reason in (
        (b"\x80\x02]" + b"\x85" * 5000 + b".", "nested more than"),
        (b"\x80\x02ctorch\nTensor\nJ\xff\xff\xff\x7f\x85R.", "it calls torch.Tensor"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.", "no list of tensors"),  # BINBYTES8
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00idna\x86R.", "it encodes as"),
        (listing[:13], "no list of tensors"),
        (b"", "no list of tensors"),
    ):
        assert reason in refusal(tmp_path, rezipped(whole, {"archive/data.pkl": harm})), reason


def test_archives_that_are_not_what_they_seem(tmp_path):
    whole = bytes_of({"a": torch.zeros(16)})
    assert "TorchScript" in refusal(tmp_path, rezipped(whole, {"archive/constants.pkl": b"x"}))
    double = io.BytesIO()
    with zipfile.ZipFile(double, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data.pkl", b"x")
        archive.writestr("archive/data.pkl", b"y")
    assert "the same name" in refusal(tmp_path, double.getvalue())
    empty = io.BytesIO()
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("readme", b"x")
    assert "no list of its tensors" in refusal(tmp_path, empty.getvalue())


def test_legacy_files_that_claim_more_than_they_hold(tmp_path):
    whole = bytes_of({"a": torch.zeros(16)}, legacy=True)
    claims_16 = b"K\x10N"  # 16 elements, no view
    assert whole.count(claims_16) == 1
    huge = whole.replace(claims_16, b"J\xff\xff\xff\x7fN")
    assert "its tensors claim" in refusal(tmp_path, huge)
    path = tmp_path / "f.pt"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            load_tensors(path)


def test_other_files_are_no_checkpoints(tmp_path):
    path = tmp_path / "f.pt"
    for content in (
        b"",
        b"text",
        b"\x89PNG\r\n\x1a\n" + b"x" * 100,
        b"PK\x03\x04",
        b"PK\x03\x04" + b"\0" * 200,
        b".",
    ):
        path.write_bytes(content)
        with pytest.raises((DamagedFileError, RefusedFileError)):
            require_sound(path)
        assert "cannot be read" in refusal(tmp_path, content)


def test_what_is_written_is_sound(tmp_path):
    save_tensors(tmp_path / "f.pt", CONTENT)
    require_sound(tmp_path / "f.pt")
    assert equal(load_tensors(tmp_path / "f.pt"), CONTENT)
