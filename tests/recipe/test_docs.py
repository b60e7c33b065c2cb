"""Every command and every snippet that the docs show is run here, or by the test that is named here."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, SHARED, TINY, Run, environment, train_command

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.cli import COMMANDS

pytestmark = pytest.mark.recipe

PAGES = [
    REPOSITORY / "README.md",
    *sorted(REPOSITORY.glob("docs/*.md")),
    *sorted(REPOSITORY.glob("docs/benchmarks/*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TRAIN = "python -m sat_vg.backbone_finetuning.train"
UCMERCED = "--config configs/ucmerced.yaml --dataset_path UCMerced --weights mobilenet_v2-imagenet.pth"

# What is shown, and where it is run. Placeholders are in capitals.
RUN_BY = {
    "make quickstart": "test_quickstart",
    "sat-vg check DIR": "test_the_shown_check_command",
    "sat-vg evaluate CKPT/best_model.pt DIR --split val": "test_the_shown_training_commands",
    "sat-vg evaluate CKPT/best_model.pt DIR --split test": "test_evaluate.py",
    "sat-vg evaluate CKPT/best_model.pt DIR --calibrate calibrated.pt": "test_evaluate.py",
    "sat-vg evaluate CKPT/best_model.pt DIR --views 8": "test_evaluate.py",
    **{
        f"sat-vg export CKPT/best_model.pt {arguments}": "test_exports.py"
        for arguments in (
            "--format torchvision --out weights.pth",
            "--format detr --out detr.pth",
            "--format safetensors --out weights.safetensors",
            "--format onnx --out maps.onnx --part extractor --with_normalisation true",
            "--format pt2 --out classifier.pt2",
            "--verify maps.onnx",
        )
    },
    "sat-vg extract CKPT/best_model.pt DIR --out features.npz": "test_extract.py",
    "sat-vg extract CKPT/best_model.pt DIR --out maps.safetensors --stages layer3,layer4 --dtype float16": (
        "test_extract.py"
    ),
    "sat-vg extract CKPT/best_model.pt images.csv --out features.parquet": "test_extract.py",
    "sat-vg predict CKPT/best_model.pt DIR --top 3": "test_predict.py",
    "sat-vg predict CKPT/best_model.pt DIR --top 1 --overlays looked_at": "test_predict.py",
    "sat-vg predict CKPT/best_model.pt DIR --top 1 --views 8": "test_predict.py",
    "find DIR -name '*.png' | sat-vg predict CKPT/best_model.pt - --json true": "test_predict.py",
    **{
        f"sat-vg compare {arguments}": "test_compare.py"
        for arguments in (
            "DIR --backbones resnet18,mobilenet_v2 --strategies linear_probe,full --seeds 0,1,2 --out OUT",
            "DIR --backbones resnet18,mobilenet_v2 --strategies linear_probe,full --seeds 0,1 --out OUT "
            "--max_params 5M --min_images_per_second 50 -- --num_epochs 5 --image_size 128",
            "UCMerced --recipe configs/compare/ucmerced.yaml --out OUT "
            "--weights mobilenet_v2=mobilenet_v2-imagenet.pth,squeezenet1_1=squeezenet1_1-imagenet.pth",
        )
    },
    **{
        f"sat-vg tune {arguments}": "test_tune.py"
        for arguments in (
            "DIR --search learning_rate=1e-5..1e-2:log weight_decay=1e-4,1e-3 strategy=full,lp_ft "
            "--trials 20 --out OUT",
            "DIR --search learning_rate=1e-4..1e-2:log label_smoothing=0,0.1 --trials 12 --out OUT "
            "--backbone mobilenet_v2 --num_epochs 8 --image_size 128",
            "--from_compare OUT/comparison.json --best 3 --search learning_rate=1e-5..1e-2:log "
            "--trials 30 --out TUNED",
        )
    },
    "sat-vg serve CKPT/best_model.pt --port 8000": "test_serve.py",
    "sat-vg export CKPT/best_model.pt --format onnx --out model.onnx --with_normalisation true": "test_serve.py",
    **dict.fromkeys(
        (
            "sat-vg train --dataset_path DIR --backbone mobilenet_v2 --strategy linear_probe --name first",
            "sat-vg evaluate runs/first --out evaluation",
            "sat-vg predict runs/first DIR --top 1",
            "sat-vg export runs/first --format onnx --part extractor --out maps.onnx",
        ),
        "test_first_hour.py",
    ),
    **{
        f"sat-vg recommend {arguments}": "test_recommend.py"
        for arguments in ("DIR", "--images 1200 --memory_gib 8", "--images 1200 --mobile", "--table")
    },
    "make costs": "tests/bench/backbone_costs.py, which measures every backbone for half an hour",
    "make test": "the run of this very test",
    "sat-vg train --dataset_path DIR --backbone resnet50 --name first": "test_first_hour.py",
    "sat-vg runs": "test_first_hour.py",
    f"{TRAIN} --dataset_path DIR --profile true": "test_the_shown_training_commands",
    f"{TRAIN} --dataset_path DIR --strategy last_layers --cached_views 4": "test_the_shown_training_commands",
    "python3 -m venv .venv && . .venv/bin/activate": "the Makefile's first target, the same words",
    "pip install -e .": "the Makefile's first target, the same words",
    TRAIN: "test_quickstart",
    f"{TRAIN} --dataset_path DIR --backbone resnet50": "test_the_shown_training_commands",
    f"{TRAIN} {UCMERCED}": "test_the_recipe_for_ucmerced",
    f"{TRAIN} --dataset_path DIR --checkpoint_dir CKPT --log_dir LOGS": "test_the_shown_training_commands",
    "sat-vg train --dataset_path DIR --backbone mobilenet_v2 --strategy linear_probe": "test_docs_site.py",
    "sat-vg train --dataset_path DIR --backbone mobilenet_v2 --checkpoint_dir checkpoints/full --log_dir logs/full": (
        "test_docs_site.py"
    ),
    "sat-vg evaluate checkpoints/finetune/best_model.pt": "test_docs_site.py",
    "sat-vg train --dataset_path DIR --bands red=4,green=3,blue=2,nir=8": "test_geotiff_runs.py",
    "sat-vg train --dataset_path images.csv --backbone resnet50": "test_data_sources.py",
    "sat-vg train --dataset eurosat --backbone resnet50": "test_data_sources.py",
    **{
        f"torchrun --nproc_per_node 2 {arguments}": "test_shown_jobs.py"
        for arguments in (
            "-m sat_vg.backbone_finetuning.train --dataset_path DIR --backbone resnet50",
            "--max-restarts 3 -m sat_vg.backbone_finetuning.train --dataset_path DIR --save_every_steps 200",
        )
    },
    "sat-vg shard DIR --out SHARDS": "test_shard_runs.py",
    **dict.fromkeys(
        (
            "python -m sat_vg.scenes.drawn scene.tif --size 2048",
            "sat-vg tile scene.tif --labels scene.geojson --size 64 --split blocks --block_size 1000 --out tiles",
            "sat-vg tile scene.tif --labels scene.geojson --size 64 --split blocks --block_size 1000 --virtual true "
            "--out tiles.csv",
            "sat-vg check tiles",
            "sat-vg train --dataset_path tiles --backbone resnet18 --image_size 64 --name first",
            "sat-vg train --dataset_path tiles.csv --backbone resnet18 --image_size 64 --name windows",
            "sat-vg predict runs/first scene.tif --size 64 --stride 32 --out map.tif",
            "sat-vg predict runs/first scene.tif --size 64 --stride 32 --out map.geojson",
            "sat-vg extract runs/first scene.tif --size 64 --out index.npz",
            "sat-vg search index.npz scene.tif/000512_000256_64x64 --top 20",
        ),
        "test_scene_runs.py",
    ),
    "python -m sat_vg.grounding.train": "test_grounding.py, where it is slow",
    **{
        f"sat-vg ground {arguments}": "test_grounding.py"
        for arguments in (
            "train --data DIR --backbone checkpoints/finetune/best_model.pt",
            "train --data DIR --backbone checkpoints/finetune/best_model.pt --freeze_backbone true",
            "evaluate checkpoints/grounding/best_model.pt DIR --split test --out evaluation",
            'predict checkpoints/grounding/best_model.pt image.jpg "the ship on the left" --out found.png',
        )
    },
    "sat-vg train --dataset_path SHARDS --backbone resnet50": "test_shard_runs.py",
    "sat-vg shard --check SHARDS": "test_shard_runs.py",
    "sat-vg shard --index SHARDS": "test_shard_runs.py",
    "SAT_VG_SHARD_SOURCE='pipe:cat FAR/{name}' sat-vg train --dataset_path SHARDS --cache_gib 4 --shard_window 8": (
        "test_shard_runs.py"
    ),
}


def shown_commands() -> list[tuple[Path, str]]:
    found = []
    for page in PAGES:
        for language, body in FENCE.findall(page.read_text()):
            if (language in ("bash", "") and ("python" in body or "sat-vg " in body)) or "make " in body:
                joined = body.replace("\\\n", " ")
                lines = [line.split("  #")[0].split("   #")[0].strip() for line in joined.splitlines()]
                found += [(page, re.sub(r"\s+", " ", line)) for line in lines if line]
    return found


def test_every_shown_command_is_known():
    commands = shown_commands()
    assert len(commands) >= 7
    for page, command in commands:
        if "tests/bench/" in command or command.startswith("make bench"):
            continue  # test_the_benchmark_scripts runs them
        assert command in RUN_BY, f"{page.name} shows {command!r}, which no test runs"


def test_the_pictures_of_the_readme_are_there_and_small():
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (REPOSITORY / "README.md").read_text())
    assert len(shown) == 2
    for name in shown:
        path = REPOSITORY / name
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size < 150_000, name


def test_the_makefile_does_what_the_readme_says():
    makefile = (REPOSITORY / "Makefile").read_text()
    assert "quickstart: $(VENV)/.installed" in makefile
    assert "\t$(PY) -m sat_vg.backbone_finetuning.train\n" in makefile
    assert "-m venv $(VENV)" in makefile
    assert "install --quiet --disable-pip-version-check -e ." in makefile
    listing = subprocess.run(["make"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for target in ("quickstart", "test", "check", "bench"):
        assert target in listing


@pytest.fixture
def shown(tmp_path, monkeypatch, capfd):
    """Run a command as it is shown, in a folder and in this process: its exit code, standard output and error."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)

    def run(folder: Path, command: str, values: dict[str, str], *more: str) -> tuple[int, str, str]:
        words = shlex.split(command)
        module, flags = (COMMANDS[words[1]][0], words[2:]) if words[0] == "sat-vg" else (words[2], words[3:])
        for name, value in values.items():
            flags = [re.sub(rf"^{name}\b", value, flag) for flag in flags]
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        capfd.readouterr()
        code = import_module(module).main([*flags, *more])
        return (code, *capfd.readouterr())

    return run


# On a network without weights to download, at a size that is done in seconds.
QUICK = ("--pretrained", "false", "--image_size", "32", "--num_epochs", "1", "--warmup_epochs", "0")


def test_the_shown_training_commands(shown, class_folders, tmp_path):
    evaluated = {}
    for number, command in enumerate(c for c in RUN_BY if c.startswith(TRAIN) and "DIR" in c):
        values = {"DIR": str(class_folders), "CKPT": f"{tmp_path}/c{number}", "LOGS": f"{tmp_path}/l{number}"}
        more = () if "--backbone" in command else TINY
        code, out, err = shown(tmp_path / f"run{number}", command, values, *QUICK, *more)
        assert code == 0, err
        assert "done: validation accuracy" in out
        if "CKPT" in command:
            evaluated = values
    evaluation = next(c for c in RUN_BY if c.startswith("sat-vg evaluate"))
    code, out, err = shown(tmp_path, evaluation, evaluated)
    assert code == 0, err
    assert json.loads((tmp_path / "evaluation/evaluation.json").read_text())["images"] == 9


def test_the_shown_check_command(shown, class_folders, tmp_path):
    command = next(c for c in RUN_BY if c.startswith("sat-vg check"))
    code, out, err = shown(tmp_path, command, {"DIR": str(class_folders)})
    assert code == 0, err
    assert "36 images in 3 classes: 27 train, 9 val" in out
    assert "0 errors" in out


def test_the_recipe_for_ucmerced(shown, mobilenet_weights, tmp_path):
    """The shown command on the real weights and some of the real images; its full length is the benchmark."""
    archive = SHARED / "data/ucmerced.zip"
    if not archive.exists():
        pytest.skip(f"the real images are not at hand: no {archive}")
    with zipfile.ZipFile(archive) as packed:
        wanted = [
            n for n in packed.namelist() if n.split("/")[1] in ("forest", "harbor", "runway") and n.endswith("5.jpg")
        ]
        packed.extractall(tmp_path, wanted)
    shutil.copy(mobilenet_weights, tmp_path / "mobilenet_v2-imagenet.pth")
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    command = next(c for c in RUN_BY if "configs/ucmerced.yaml" in c)
    code, out, err = shown(tmp_path, command, {}, "--num_epochs", "4")
    assert code == 0, err
    assert "312 tensors loaded" in out
    accuracy = torch.load(tmp_path / "checkpoints/ucmerced/best_model.pt", weights_only=True)["metrics"][
        "val_accuracy"
    ]
    assert accuracy >= 0.8


@pytest.mark.parametrize("page", ["README.md", "docs/extractor.md"])
def test_the_shown_python_runs(page, tmp_path, monkeypatch):
    model = FineTuneModel("resnet18", 3, pretrained=False, image_size=64)
    path = tmp_path / "checkpoints/finetune/best_model.pt"
    path.parent.mkdir(parents=True)
    model.save_checkpoint(path)
    monkeypatch.chdir(tmp_path)
    names = {"images_uint8": torch.randint(256, (2, 3, 64, 96), dtype=torch.uint8)}
    snippets = [body for language, body in FENCE.findall((REPOSITORY / page).read_text()) if language == "python"]
    assert snippets
    for body in snippets:
        exec(compile(body, page, "exec"), names)
    assert list(names["maps"]) == ["layer1", "layer2", "layer3", "layer4"]
    if page == "docs/extractor.md":

        class Samples:
            tensors, mask = torch.randn(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool)

        backbone = names["Backbone"](names["extractor"])
        assert [m.shape[-1] for _, m in backbone(Samples).values()] == [24, 12, 6, 3]
        assert backbone.num_channels == 512
    names["extractor"].eval()


@pytest.mark.slow
def test_the_benchmark_scripts(class_folders, tmp_path):
    table = tmp_path / "speed.md"
    data = ["--eurosat", class_folders, "--ucmerced", class_folders]
    rows = ["--rows", "resnet18", "pipeline", "import", "--repeats", "1"]
    done = subprocess.run(
        [sys.executable, "tests/bench/speed.py", *data, *rows, "--table", table],
        cwd=REPOSITORY, capture_output=True, text=True, env=environment(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(json.loads(table.with_suffix(".json").read_text())) == 4
    assert all(ratio > 0 for row in json.loads(table.with_suffix(".json").read_text()) for ratio in row["ratios"])
    assert str(tmp_path) not in table.read_text()


@pytest.mark.slow
def test_the_accuracy_script(class_folders, tmp_path):
    flags = train_command(tmp_path, "--dataset_path", class_folders, "--num_epochs", 1)[3:]
    own = [f for pair in zip(flags[::2], flags[1::2], strict=True) if pair[0] not in ("--log_dir", "--checkpoint_dir")
           for f in pair]  # fmt: skip
    table = tmp_path / "table.md"
    done = subprocess.run(
        [sys.executable, "tests/bench/accuracy.py", "--seeds", "0", "1", "--work", tmp_path / "w", "--table", table,
         "--", *own],
        cwd=REPOSITORY, capture_output=True, text=True, env=environment(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line for line in table.read_text().splitlines() if line.startswith("| ")]
    assert len(rows) == 4
    assert rows[-1].startswith("| **mean ± std**")
    assert str(tmp_path) not in table.read_text()


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("more", "accuracy"),
    [(("--num_epochs", "1", "--image_size", "32"), 0.3), pytest.param((), 0.90, marks=pytest.mark.slow)],
    ids=["one small epoch", "whole"],
)
def test_quickstart(shown, tmp_path, more, accuracy):
    """The command of ``make quickstart``; as it is, it runs in the slow tests, on all cores."""
    given = environment(tmp_path)
    if not more:
        del given["OMP_NUM_THREADS"]
    command = [sys.executable, *shlex.split(TRAIN)[1:], *more]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=given)
    assert done.returncode == 0, done.stderr
    first_lines = done.stdout.splitlines()[:2]
    assert first_lines[0].startswith("settings of the built-in scenes: ")
    assert first_lines[1].startswith("no --dataset_path DIR was given: training on the built-in scenes")
    for part in ("done: validation accuracy", "checkpoints/quickstart/best_model.pt", "stride 32", "tensorboard"):
        assert part in done.stdout, part
    logs = tmp_path / "logs/quickstart"
    run = Run(0, done.stdout, done.stderr, tmp_path)
    (tmp_path / "logs/metrics.jsonl").symlink_to(logs / "metrics.jsonl")
    assert max(line["val_accuracy"] for line in run.epochs) >= accuracy
    code, out, err = shown(tmp_path, TRAIN, {}, *more)
    assert code == 0, err
    assert "has finished" in out
