"""No file that a stranger hands over runs code, writes outside its folder, hangs, or ends in a traceback.

The corpus is in ``hostile_corpus.py``. Everything runs in this process, which a hostile file would bring down.
"""

import json
import os
import resource
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import TINY, write_image
from hostile_corpus import BAD_IMAGES, CONFIGS, ODD_CLASS_NAMES, ODD_IMAGES, ODD_NAMES, TENSOR_FILES, encoded, noise

from sat_vg.backbone_finetuning.commands.check import run as checking
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training.preparation import explained_losses
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, LoadingError

# A hang ends after a minute, and not with the whole test run.
pytestmark = [pytest.mark.recipe, pytest.mark.timeout(60)]


def test_the_corpus_is_large():
    assert len(BAD_IMAGES) + len(ODD_IMAGES) + len(CONFIGS) + len(TENSOR_FILES) >= 80


def listing(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Every name below a folder with size, time of change and target, but for what a run may write."""
    found = {}
    for current, folders, files in os.walk(folder):
        here = Path(current)
        if here == folder:
            folders[:] = [name for name in folders if name not in ("run", "cache")]
        for name in (*folders, *files):
            path = here / name
            status = path.lstat()
            is_folder = path.is_dir() and not path.is_symlink()
            size, time = (0, 0) if is_folder else (status.st_size, status.st_mtime_ns)
            found[os.path.relpath(path, folder)] = (size, time, str(path.readlink()) if path.is_symlink() else "")
    return found


@pytest.fixture
def images(tmp_path):
    """train/ and val/ with two classes of 4 + 2 images, all different."""
    for number, name in enumerate(("field", "sea")):
        for split, count in (("train", 4), ("val", 2)):
            for index in range(count):
                seed = 100 * number + 50 * (split == "val") + index
                write_image(tmp_path / "images" / split / name / f"{index}.png", (90, 90 * number, 90), seed)
    return tmp_path / "images"


@pytest.fixture(autouse=True)
def nothing_else_is_written(tmp_path, monkeypatch):
    """After the test: no file appeared or changed outside the run folder and the cache, no canary, no gigabytes."""
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    nothing_else_is_written.before = None
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    if nothing_else_is_written.before is not None:
        assert listing(tmp_path) == nothing_else_is_written.before
    assert not [path for path in tmp_path.rglob("canary*") if path.is_file()]
    assert not Path("/tmp/canary").exists()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 2**20 < 1  # GiB


def seal(tmp_path):
    """All inputs are made: from here on nothing but a run may write."""
    nothing_else_is_written.before = listing(tmp_path)


def refused(code, out, err, *parts, expected=2):
    assert code == expected, (out, err)
    assert "Traceback" not in out + err
    assert "error: " in err
    for part in parts:
        assert part in out + err, (part, out, err)
    steering = [c for c in out + err if c != "\n" and not c.isprintable()]
    assert not steering, steering


@pytest.fixture
def check_here(command):
    return partial(command, "check")


@pytest.fixture(scope="module")
def product_path(tmp_path_factory):
    """A sound best_model.pt of the two classes."""
    path = tmp_path_factory.mktemp("product") / "best_model.pt"
    model = FineTuneModel(TINY[1], 2, pretrained=False, image_size=32, class_names=["field", "sea"])
    model.save_checkpoint(path)
    return path


@pytest.fixture
def evaluate_here(command):
    return lambda *arguments: command("evaluate", *arguments, "--out", "run/evaluation", "--num_workers", 0)


class TestImages:
    @pytest.mark.parametrize("name", BAD_IMAGES)
    def test_bad_one(self, name, images, tmp_path, check_here, evaluate_here, product_path):
        make, says = BAD_IMAGES[name]
        make(images / "val/sea" / name)
        seal(tmp_path)
        refused(*check_here(images), "1 of 13 images cannot be read", name, says)
        refused(*evaluate_here(product_path, images), "1 of 13 images cannot be read", name, says)

    def test_all_bad_ones_at_once(self, images, tmp_path, train_here):
        for name, (make, _) in BAD_IMAGES.items():
            make(images / "train/sea" / name)
        for name in ODD_NAMES:
            (images / "val/sea" / os.fsdecode(name)).write_bytes(b"bad")
        bad = len(BAD_IMAGES) + len(ODD_NAMES)
        seal(tmp_path)
        run = train_here("--dataset_path", images)
        refused(run.code, run.out, run.err, f"{bad} of {bad + 12} images cannot be read", f"and {bad - 10} more")
        run = train_here("--dataset_path", images, "--on_bad_image", "skip")
        refused(run.code, run.out, run.err, "--on_bad_image skip:0.774")
        run = train_here("--dataset_path", images, "--on_bad_image", "skip:1", "--num_epochs", 1)
        assert run.code == 0, run.err
        assert sum(line.startswith("left out ") for line in run.out.splitlines()) == 11  # ten, and how many others
        assert f"left out {bad - 10} more" in run.out
        assert f"; {bad} more left out" in run.out  # in the line of the data
        listed = (run.folder / "logs/skipped_images.txt").read_text(encoding="utf-8")
        assert len(listed.splitlines()) == bad
        for name, (_, says) in BAD_IMAGES.items():
            (line,) = (line for line in listed.splitlines() if f"/{name}\t" in line)
            assert says in line
        assert all(c in "\n\t" or c.isprintable() for c in listed)

    def test_odd_ones_are_trained_on(self, images, tmp_path, train_here, check_here):
        for name, make in ODD_IMAGES.items():
            make(images / "train/sea" / name)
            make(images / "val/field" / f"other_{name}")  # the same pixels
        for number, name in enumerate(ODD_NAMES):
            (images / "train/field" / os.fsdecode(name)).write_bytes(encoded(noise(seed=200 + number), "jpeg"))
        seal(tmp_path)
        code, out, err = check_here(images, "--json")
        refused(code, out, err, "error: the data have")
        findings = json.loads(out)
        assert findings["unreadable"] == []
        assert len(findings["copies"]) == len(ODD_IMAGES)
        run = train_here("--dataset_path", images)
        refused(run.code, run.out, run.err, f"{len(ODD_IMAGES)} in train and val", "--on_duplicates warn")
        run = train_here("--dataset_path", images, "--on_duplicates", "warn", "--num_epochs", 1)
        assert run.code == 0, run.err
        assert "warning: the same images" in run.out
        assert not (run.folder / "logs/skipped_images.txt").exists()

    def test_odd_class_names(self, tmp_path, train_here, check_here, evaluate_here, product_path):
        for number, name in enumerate(ODD_CLASS_NAMES):
            for index in range(4):
                write_image(
                    tmp_path / "images" / os.fsdecode(name) / f"{index}.png",
                    (20 * number, 99, 99),
                    10 * number + index,
                )
        seal(tmp_path)
        code, out, err = check_here(tmp_path / "images")
        assert code == 0, err
        run = train_here("--dataset_path", tmp_path / "images", "--num_epochs", 1, draws=True)
        assert run.code == 0, run.err
        assert all(c == "\n" or c.isprintable() for c in out + run.out + run.err)
        model = FineTuneModel.load_checkpoint(run.best_model)
        assert sorted(model.class_names) == sorted(map(os.fsdecode, ODD_CLASS_NAMES))
        code, out, err = evaluate_here(run.best_model, tmp_path / "images")
        assert code == 0, err
        assert all(c == "\n" or c.isprintable() for c in out + err)
        refused(*evaluate_here(product_path, tmp_path / "images"), "the model knows no class")

    def test_sparse_geotiffs(self, tmp_path, check_here, train_here):
        rasterio = pytest.importorskip("rasterio", reason="GeoTIFFs need rasterio: pip install 'sat_vg[geo]'")
        profile = {"driver": "GTiff", "width": 16_000, "height": 16_000, "count": 1, "dtype": "uint16"}
        for number in range(24):
            path = tmp_path / f"images/{'train' if number % 3 else 'val'}/{'ab'[number % 2]}/{number}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            with rasterio.open(path, "w", **profile, sparse_ok=True, tiled=True, compress="deflate"):
                pass
        seal(tmp_path)
        for flags in ((), ("--bands", "1")):
            says = ("24 of 24 images cannot be read", "16000 x 16000 pixels", "0.tif") if flags else ()
            refused(*check_here(tmp_path / "images", *flags), *says)
            run = train_here("--dataset_path", tmp_path / "images", *flags)
            refused(run.code, run.out, run.err, *says)

    def test_no_permission(self, images, tmp_path, check_here):
        locked = images / "train/sea/0.png"
        locked.chmod(0)
        if os.access(locked, os.R_OK):
            pytest.skip("permissions do not bind this user (root)")
        seal(tmp_path)
        refused(*check_here(images), "Permission denied")

    def test_images_that_vanish_while_being_checked(self, images, tmp_path, check_here, monkeypatch):
        real = checking.load_splits

        def load(*arguments, **options):
            splits = real(*arguments, **options)
            (images / "train/sea/0.png").unlink()
            return splits

        monkeypatch.setattr(checking, "load_splits", load)
        refused(*check_here(images), "there is no such file", "0.png")


class TestFolders:
    def test_loops(self, images, tmp_path, check_here):
        sea = images / "train/sea"
        for name, target in {"up": "..", "root": str(images), "all": "/", "me": ".", "a": "b", "b": "a"}.items():
            (sea / name).symlink_to(target)
        (sea / "nested").mkdir()
        (sea / "nested/again").symlink_to("../nested")
        seal(tmp_path)
        code, out, err = check_here(images)
        assert code == 0, (out, err)
        assert "12 images in 2 classes" in out

    def test_a_class_that_is_a_link_to_everything(self, images, tmp_path, check_here):
        (images / "train/everything").symlink_to("/")
        (images / "train/all").symlink_to(images)
        seal(tmp_path)
        refused(*check_here(images), "2 class folders without images")

    def test_a_class_that_is_a_link_outside(self, images, tmp_path, check_here, train_here):
        (images / "train/sea").rename(tmp_path / "elsewhere")
        (images / "train/sea").symlink_to(tmp_path / "elsewhere")
        seal(tmp_path)
        code, out, _ = check_here(images)
        assert code == 0
        assert "12 images in 2 classes" in out

    @pytest.mark.parametrize("kind", ["file", "pipe", "missing", "empty", "nul", "itself", "device"])
    def test_no_data_set(self, kind, tmp_path, check_here, train_here, evaluate_here, product_path):
        path = tmp_path / "images"
        if kind == "file":
            path.write_bytes(b"x")
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "empty":
            path.mkdir()
        elif kind == "itself":
            path.symlink_to(path)
        elif kind in ("nul", "device"):
            path = {"nul": "a\0b", "device": "/dev/zero"}[kind]
        seal(tmp_path)
        refused(*check_here(path))
        refused(*evaluate_here(product_path, path))
        run = train_here("--dataset_path", path)
        refused(run.code, run.out, run.err)


class TestConfigs:
    @pytest.mark.parametrize("name", CONFIGS)
    def test_file(self, name, tmp_path, train_here):
        make, says = CONFIGS[name]
        make(tmp_path / name)
        seal(tmp_path)
        run = train_here("--config", tmp_path / name)
        refused(run.code, run.out, run.err, says)
        assert len(run.err) < 20_000

    @pytest.mark.parametrize(
        "flags",
        [
            ("--seed", "9" * 5000),
            ("--batch_size", "1e999"),
            ("--num_workers", "100000000"),
            ("--image_size", "1000000"),
            ("--unfreeze_layers", "[" * 5000),
            ("--backbone", "!!python/object/apply:os.system [touch canary_of_a_flag]"),
            ("--backbone", "../../etc/passwd"),
            ("--backbone", "\x1b[2J"),
            ("--learning_rate", "nan"),
            ("--weights", "/dev/zero"),
            ("--weights", "a\0b"),
            ("--resume", "a\0b"),
            ("--train_split", "../../etc"),
            ("--val_split", "/etc"),
        ],
        ids=lambda flags: f"{flags[0]} {flags[1][:12]!r}",
    )  # fmt: skip
    def test_flag(self, flags, images, tmp_path, train_here):
        seal(tmp_path)
        run = train_here("--dataset_path", images, *flags)
        refused(run.code, run.out, run.err)


class TestTensorFiles:
    @pytest.mark.parametrize("name", TENSOR_FILES)
    def test_file(self, name, images, tmp_path, train_here, evaluate_here):
        TENSOR_FILES[name](tmp_path / name)
        seal(tmp_path)
        with pytest.raises(CheckpointError) as caught:
            FineTuneModel.load_checkpoint(tmp_path / name)
        assert len(str(caught.value)) < 5000
        refused(*evaluate_here(tmp_path / name, images), name)
        for flags in (("--resume", tmp_path / name), ("--pretrained", "true", "--weights", tmp_path / name)):
            run = train_here("--dataset_path", images, *flags)
            refused(run.code, run.out, run.err, name)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("schema", 99),
            ("schema", "1"),
            ("schema", None),
            ("backbone", "../../outside"),
            ("backbone", 7),
            ("backbone", "resnet50"),
            ("backbone", "timm:hf-hub:somebody/model"),
            ("backbone", "timm:../../outside"),
            ("class_names", ["a", 3]),
            ("class_names", "ab"),
            ("class_names", []),
            ("class_names", ["a"] * 3),
            ("preprocessing", {"image_size": 10**9}),
            ("preprocessing", {"image_size": "x"}),
            ("preprocessing", {"image_size": 32, "std": [0.0, 1.0, 1.0]}),
            ("preprocessing", {"image_size": 32, "mean": [1.0]}),
            ("preprocessing", {"image_size": 32, "interpolation": "__class__"}),
            ("preprocessing", {"image_size": 32, "__init__": 3}),
            ("dropout", "x"),
            ("dropout", 7.0),
            ("state_dict", {}),
            ("state_dict", {"conv1.weight": 3}),
            ("state_dict", {3: torch.zeros(3)}),
            ("state_dict", [1]),
            ("config", 3),
            ("config", {"on_bad_image": 3}),
            ("config", {"val_split": "../../.."}),
            ("config", {"no_such_field": 1}),
            ("config", {"val_fraction": float("nan")}),
            ("metrics", None),
            ("versions", 3),
        ],
        ids=lambda value: str(value)[:30],
    )
    def test_altered_product(self, product_path, key, value, images, tmp_path, evaluate_here):
        path = tmp_path / "best_model.pt"
        torch.save({**torch.load(product_path, weights_only=True), key: value}, path)
        seal(tmp_path)
        refused(*evaluate_here(path, images))
        if key == "config" and isinstance(value, dict):  # kept for the record; only evaluate goes by it
            return
        with pytest.raises(ValueError) as caught:
            FineTuneModel.load_checkpoint(path)
        assert caught.value.args
        assert type(caught.value).__module__.startswith("sat_vg"), repr(caught.value)


def test_lost_workers_are_named_and_other_errors_pass():
    for text, says in {
        "DataLoader worker (pid 3) is killed by signal: Killed. ": "memory is used up",
        "DataLoader worker (pid(s) 3, 4) exited unexpectedly": "worker process that decodes images died",
        "DataLoader timed out after 300 seconds": "--loader_timeout",
        "Unexpected bus error encountered in worker. It might be caused by insufficient shared memory (shm).": "shm",
        "received 0 items of ancdata": "ulimit",
    }.items():
        with pytest.raises(LoadingError, match=says), explained_losses(FinetuneConfig()):
            raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="mat1 and mat2"), explained_losses(FinetuneConfig()):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
