"""Caches, progress files and earlier results that are pipes, links, bombs or nonsense: made anew, or one sentence."""

import io
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import zipfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from conftest import small_disk, train_in, write_image
from odd_entries import ODD_ENTRIES, put_in_place

from sat_vg.backbone_finetuning.commands.extract import cli as extract
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.regular_files import NotRegularFileError, open_regular, read_bounded

# A hang ends after a minute, and not with the whole test run.
pytestmark = [
    pytest.mark.recipe,
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform == "win32", reason="pipes and links of POSIX"),
]

FROZEN = (
    "--strategy", "linear_probe", "--probe_solver", "sgd", "--use_augmentation", "false", "--num_epochs", 2,
)  # fmt: skip


@pytest.fixture(autouse=True)
def memory_is_bounded():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20 < 0.7  # GiB


def course(run):
    """What the log says, but for how long it took."""
    assert run.code == 0, run.err
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in run.lines]


@pytest.mark.parametrize("kind", ODD_ENTRIES)
def test_only_regular_files_are_opened(tmp_path, kind):
    put_in_place(tmp_path / "entry", kind)
    if kind.endswith("file"):
        assert read_bounded(tmp_path / "entry", 9) == b"" if kind == "empty file" else True
        return
    with pytest.raises(OSError) as caught:
        open_regular(tmp_path / "entry")
    assert isinstance(caught.value, NotRegularFileError) == (kind in ("pipe", "socket", "device"))


@pytest.fixture(scope="module")
def few_images(tmp_path_factory):
    root = tmp_path_factory.mktemp("few") / "images"
    for number, name in enumerate(("field", "sea")):
        for split, count in (("train", 4), ("val", 2)):
            for index in range(count):
                seed = 100 * number + 50 * (split == "val") + index
                write_image(root / split / name / f"{index}.png", (90, 90 * number, 90), seed)
    return root


@pytest.fixture(scope="module")
def undisturbed(few_images, tmp_path_factory):
    """A run with its cache beside it."""
    return train_in(tmp_path_factory.mktemp("undisturbed"), "--dataset_path", few_images, *FROZEN)


class TestCaches:
    @pytest.mark.parametrize(
        ("where", "kind"),
        [*(("inside", kind) for kind in ODD_ENTRIES), ("entry", "pipe"), ("entry", "link to itself")],
    )
    def test_odd_entries_are_made_anew(self, undisturbed, few_images, train_here, tmp_path, where, kind):
        shutil.copytree(undisturbed.folder.parent / "cache", tmp_path / "cache")
        found = [path for path in (tmp_path / "cache").rglob("*") if not path.name.startswith(".")]
        files = [path for path in found if path.is_file()]
        assert {path.name for path in files} == {"pixels.bin", "index.npy", "features.bin", "readable_images.npz"}
        entries = [path for path in found if path.parent.name == "computed"]
        assert len(entries) == 3
        for path in files if where == "inside" else entries:
            put_in_place(path, kind)
        run = train_here("--dataset_path", few_images, *FROZEN)
        assert course(run) == course(undisturbed)
        (line,) = [line for line in run.out.splitlines() if line.startswith("decoded images:")]
        assert ", made in" in line
        assert all(path.is_dir() and not path.is_symlink() for path in entries)
        assert all(path.stat().st_size for path in files if path.parent.name != "cache")

    @pytest.mark.parametrize("kind", ["empty file", "pipe", "link to itself", "read-only", "full"])
    def test_one_that_cannot_be_written_to_costs_time_and_a_line(
        self, undisturbed, few_images, train_here, tmp_path, kind
    ):
        cache = tmp_path / "cache"
        with ExitStack() as stack:
            if kind in ODD_ENTRIES:
                cache.mkdir()
                put_in_place(cache / "computed", kind)
            else:
                stack.enter_context(small_disk(cache, 1))
                if kind == "full":
                    with (cache / "filler").open("wb") as file:
                        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(cache).free)
                else:
                    subprocess.run(["mount", "-o", "remount,ro", str(cache)], check=True)
            run = train_here("--dataset_path", few_images, *FROZEN)
        assert course(run) == course(undisturbed)
        assert run.out.count("frozen stages run in every epoch: ") == 1
        assert run.out.count("decoded images: not kept, every epoch decodes them anew (") == 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "best_model.pt"
    FineTuneModel("squeezenet1_1", 2, pretrained=False, image_size=32, class_names=["a", "b"]).save_checkpoint(path)
    return path


@pytest.fixture
def extract_here(few_images, checkpoint, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)

    def run(out="f.npz"):
        capfd.readouterr()
        code = extract.main([str(checkpoint), str(few_images / "train"), "--out", out])
        return code, *capfd.readouterr()

    return run


def npz(about, *, compression=zipfile.ZIP_STORED, **more):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as archive:
        archive.writestr("about.npy", about)
        for name, content in more.items():
            archive.writestr(f"{name}.npy", content)
    return packed.getvalue()


def npy(shape, descr, content=b""):
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + content


def text_npy(text):
    packed = io.BytesIO()
    np.save(packed, np.array(text))
    return packed.getvalue()


DEEP = "[" * 200_000 + "]" * 200_000
RESULTS = {
    "claims.npz": lambda: npz(npy((2**31,), "<U9")),
    "wide.npz": lambda: npz(npy((), f"<U{2**29}")),
    "bomb.npz": lambda: npz(npy((), f"<U{2**26}", bytes(2**28)), compression=zipfile.ZIP_DEFLATED),
    "object.npz": lambda: npz(npy((), "|O", b"cos\nsystem\n(S'touch canary'\ntR.")),
    "deep.npz": lambda: npz(text_npy(DEEP)),
    "infinity.npz": lambda: npz(text_npy('{"identity": Infinity}')),
    "no_text.npz": lambda: npz(text_npy(3.5)),
    "header.npz": lambda: npz(b"\x93NUMPY\1\0\xff\xff" + b"(" * 65535),
    "claims.safetensors": lambda: struct.pack("<Q", 2**62) + b"{}",
    "deep.safetensors": lambda: struct.pack("<Q", len(DEEP)) + DEEP.encode(),
    "list.safetensors": lambda: struct.pack("<Q", 2) + b"[]",
    "footer.parquet": lambda: b"PAR1" + b"\xff" * 99 + struct.pack("<I", 2**31 - 1) + b"PAR1",
    "tiny.parquet": lambda: b"PAR1",
}


class TestExtraction:
    @pytest.mark.parametrize("name", RESULTS)
    def test_an_earlier_result_is_not_believed(self, extract_here, name):
        content = RESULTS[name]()
        Path(name).write_bytes(content)
        code, out, err = extract_here(name)
        assert code == 2, (out, err)
        assert f"error: {name!r} exists and holds something else: choose another --out, or remove it" in err
        assert Path(name).read_bytes() == content
        assert not Path("canary").exists()

    @pytest.mark.parametrize(
        "kind", [kind for kind in ODD_ENTRIES if kind not in ("dangling link", "link to itself")]
    )
    def test_nor_what_is_no_file(self, extract_here, kind):
        put_in_place(Path("f.npz"), kind)
        code, out, err = extract_here()
        assert code == 2, (out, err)
        assert ("is a folder; name a file in it" if kind == "folder" else "exists and holds something else") in err

    @pytest.mark.parametrize(
        "change",
        [
            {"done": float("inf")},
            {"done": float("nan")},
            {"done": 10**30},
            {"done": 4.0},
            {"done": True},
            {"done": -1},
            {"done": 10**9},
            {"left_out": [[float("inf"), "x"]]},
            {"left_out": [[-1, "x"]]},
            {"left_out": [[1, "x"], [1, "x"]]},
            {"left_out": [[1]]},
            {"left_out": 3},
            {"left_out": "ab"},
            {"seen": None},
            {"settings": []},
            DEEP,
            "[]",
            "null",
            '{"done": 1, "done": 2}',
            "\ud800",
            *ODD_ENTRIES,
        ],
        ids=lambda change: str(change)[:30],
    )
    def test_progress_that_is_none_is_made_anew(self, extract_here, few_images, change):
        sound = {"settings": "", "done": 2, "seen": "", "left_out": []}
        Path("f.npz.partial").mkdir()
        if change in ODD_ENTRIES if isinstance(change, str) else False:
            put_in_place(Path("f.npz.partial/progress.json"), change)
        else:
            text = json.dumps({**sound, **change}) if isinstance(change, dict) else change
            Path("f.npz.partial/progress.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        code, out, err = extract_here()
        if change == "folder":  # nothing of ours to remove
            assert code in (0, 1, 2)
            assert "Traceback" not in err
            return
        assert code == 0, err
        assert "going on" not in out
        assert np.load("f.npz")["pooled"].shape == (8, 512)
        assert not Path("f.npz.partial").exists()

    @pytest.mark.parametrize("kind", ODD_ENTRIES)
    def test_rows_that_are_no_file_are_made_anew(self, extract_here, kind):
        Path("f.npz.partial").mkdir()
        put_in_place(Path("f.npz.partial/0.raw"), kind)
        code, _, err = extract_here()
        if kind == "folder":
            assert code == 1
            assert "'f.npz' cannot be written (" in err
            return
        assert code == 0, err
        assert np.load("f.npz")["pooled"].shape == (8, 512)

    def test_a_full_disk(self, extract_here, tmp_path):
        with small_disk(tmp_path / "disk", 1):
            with (tmp_path / "disk/filler").open("wb") as file:
                file.write(bytes(2**20 - 20_480))
            code, _, err = extract_here(f"{tmp_path}/disk/f.npz")
            assert code == 1
            assert "f.npz' " in err
            assert "ake room" in err
            assert not (tmp_path / "disk/f.npz").exists()
