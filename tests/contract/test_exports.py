"""Exports compute what the model computes, in ONNX Runtime and in a process that knows torch alone."""

import json
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from networks import fill
from safetensors.torch import load_file
from torchvision import models

from sat_vg.backbone_finetuning.commands.export import cli as export
from sat_vg.backbone_finetuning.commands.export.cli import ExportCommandOptions
from sat_vg.backbone_finetuning.commands.export.run import export_checkpoint
from sat_vg.backbone_finetuning.models import exports
from sat_vg.backbone_finetuning.models.exports import FORMATS
from sat_vg.backbone_finetuning.models.exports.contract import load_format
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.errors import CheckpointError

TOLERANCE = 1e-4
# Where nothing of this package can be: a program has to run with torch alone.
ALONE = """
import sys, torch
program = torch.export.load(sys.argv[1]).module()
for images, expected in torch.load(sys.argv[2], weights_only=True):
    for name, value in program(images).items():
        assert value.shape == expected[name].shape
        print(((value - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1)).item())
assert not any(name.startswith("sat_vg") for name in sys.modules)
"""


def checkpoint_of(folder, name, size, shift=0.0, **options):
    model = FineTuneModel(name, 3, pretrained=False, image_size=size, class_names=("a", "b", "c"), **options)
    fill(model.network)
    with torch.no_grad():
        next(model.parameters()).add_(shift)
    path = folder / f"{name}.pt"
    model.save_checkpoint(path)
    return path


def eager(checkpoint, part, images):
    """What the model gives, without any of the exporting code."""
    model = FineTuneModel.load_checkpoint(checkpoint)
    with torch.no_grad():
        return {"logits": model(images)} if part == "classifier" else dict(model.get_feature_extractor()(images))


def batches(size, is_fixed, multiple=1):
    shapes = [(1, size, size), (4, size, size)]
    if not is_fixed:
        shapes += [(2, size + 2 * multiple, size + multiple), (1, size + 3 * multiple, size + multiple)]
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(batch, 3, height, width, generator=generator) for batch, height, width in shapes]


def in_a_process_of_its_own(program, checkpoint, part, images, folder):
    pairs = [(one, eager(checkpoint, part, one)) for one in images]
    torch.save(pairs, folder / "expected.pt")
    done = subprocess.run(
        [sys.executable, "-c", ALONE, program, folder / "expected.pt"], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    found = [float(line) for line in done.stdout.split()]
    assert len(found) == sum(len(expected) for _, expected in pairs)
    return max(found)


def in_onnx_runtime(graph, checkpoint, part, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    worst = 0.0
    for one in images:
        expected = eager(checkpoint, part, one)
        assert names == list(expected)
        for value, right in zip(session.run(None, {"images": one.numpy()}), expected.values(), strict=True):
            assert value.shape == right.shape
            worst = max(worst, np.abs(value - right.numpy()).max() / max(1.0, right.abs().max().item()))
    return worst


def _commands_shown():
    page = (REPOSITORY / "docs/exporting.md").read_text()
    return [
        shlex.split(line.replace("CKPT/", ""))[2:] for line in page.splitlines() if line.startswith("sat-vg export")
    ]


# Format → the file that docs/exporting.md writes in it.
SHOWN = {
    command[command.index("--format") + 1]: command[command.index("--out") + 1]
    for command in _commands_shown()
    if "--out" in command
}


def test_every_format_of_the_table_has_a_module():
    files = Path(exports.__file__).parent.glob("*.py")
    assert sorted(FORMATS.values()) == sorted(file.stem for file in files if "\nFORMAT = " in file.read_text())
    for name in FORMATS:
        assert load_format(name).endings
    assert set(SHOWN) == set(FORMATS), "docs/exporting.md shows one command for each format"


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A folder where every command that docs/exporting.md shows has been run on a ResNet."""
    folder = tmp_path_factory.mktemp("shown")
    checkpoint_of(folder, "resnet18", 64).rename(folder / "best_model.pt")
    assert SHOWN
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in _commands_shown():
            assert export.main(command) == 0, command
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    return folder


# Before, torch exports some networks for the size alone that it traced; the card says so.
EXPORTS_ANY_SIZE = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14)


def test_onnx_maps_of_any_size_from_uint8(shown):
    import onnxruntime

    card = json.loads((shown / "maps.onnx.card.json").read_text())
    is_fixed = card["input"]["fixed_size"] is not None
    assert not (is_fixed and EXPORTS_ANY_SIZE)
    assert is_fixed or card["input"]["smallest"] == 33
    assert card["outputs"]["names"] == ["layer1", "layer2", "layer3", "layer4"]
    assert card["outputs"]["strides"] == [4, 8, 16, 32]
    session = onnxruntime.InferenceSession(shown / "maps.onnx", providers=["CPUExecutionProvider"])
    extractor = FineTuneModel.load_checkpoint(shown / "best_model.pt").get_feature_extractor()
    others = () if is_fixed else ((2, 3, 70, 91), (1, 3, 133, 40))
    for shape in ((1, 3, 64, 64), (4, 3, 64, 64), *others):
        images = torch.randint(256, shape, dtype=torch.uint8)
        with torch.no_grad():
            expected = extractor(extractor.normalise(images))
        given = session.run(list(expected), {"images": images.numpy()})
        for value, right in zip(given, expected.values(), strict=True):
            np.testing.assert_allclose(value, right, rtol=TOLERANCE, atol=TOLERANCE * right.abs().max().item())
    (shape,) = (one.shape for one in session.get_inputs())
    assert shape == ["batch", 3, *((64, 64) if is_fixed else ("height", "width"))]
    told = json.loads(session.get_modelmeta().custom_metadata_map["sat_vg"])
    assert told["class_names"] == ["a", "b", "c"]


def test_pt2_in_a_process_of_its_own(shown, tmp_path):
    card = json.loads((shown / "classifier.pt2.card.json").read_text())
    is_fixed = card["input"]["fixed_size"] is not None
    assert not (is_fixed and EXPORTS_ANY_SIZE)
    images = batches(64, is_fixed=is_fixed, multiple=7)
    worst = in_a_process_of_its_own(shown / "classifier.pt2", shown / "best_model.pt", "classifier", images, tmp_path)
    assert worst < TOLERANCE


def test_weights_fit_where_they_should(shown):
    network = models.resnet18(num_classes=3)
    for state in (torch.load(shown / "weights.pth", weights_only=True), load_file(shown / "weights.safetensors")):
        network.load_state_dict(state, strict=True)
    names = torch.load(shown / "detr.pth", weights_only=True)["model"]
    assert all(name.startswith("backbone.0.body.") for name in names)
    assert len(names) == len(network.state_dict()) - 2 - 20  # without the head and batch norm's counts


def test_files_tell_nothing_of_this_machine(shown):
    files = [path for path in shown.iterdir() if path.name != "best_model.pt"]
    assert len(files) == 3 * len(FORMATS)  # each with two cards
    for path in files:
        content = path.read_bytes()
        assert str(shown).encode() not in content, path
        assert b".py" not in content, path  # of no source file, and so of no folder


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The checkpoint of another ResNet."""
    return checkpoint_of(tmp_path_factory.mktemp("other"), "resnet18", 64, seed=1, shift=0.01)


@pytest.mark.parametrize("name", SHOWN.values())
def test_a_file_that_is_cut_short_altered_or_of_another_model(shown, other, name, tmp_path, capfd):
    whole = (shown / name).read_bytes()
    (tmp_path / "cut").mkdir()
    (tmp_path / "junk").mkdir()
    cut, junk = tmp_path / "cut" / name, tmp_path / "junk" / name
    cut.write_bytes(whole[: len(whole) // 2])
    junk.write_bytes(b"no export at all" * 9)
    for file, checkpoint, message in (
        (cut, shown / "best_model.pt", "cannot be read"),
        (junk, shown / "best_model.pt", "cannot be read"),
        (shown / name, other, "is not what"),
    ):
        assert export.main([str(checkpoint), "--verify", str(file)]) == 2
        err = capfd.readouterr().err
        assert err.startswith("error: "), err
        assert message in err
        assert "Traceback" not in err


def rewritten(source, target, part, change):
    """A copy of an archive with one part changed, checksums and all."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry.filename, change(content) if entry.filename.endswith(part) else content)
    return target


EVIL = "__import__('pathlib').Path('run').touch()"


@pytest.mark.parametrize(
    ("part", "find", "put"),
    [
        ("models/model.json", b'"expr_str": "', f'"expr_str": "{EVIL} or '.encode()),
        ("extra/sat_vg.json", b'"temperature": 1.0', b'"temperature": 1.5'),
        *(
            pytest.param(*more, marks=pytest.mark.slow)  # whatever differs, the files are compared byte by byte
            for more in (
                ("models/model.json", b"torch.ops.aten.conv2d.default", b"torch.hub.load"),
                ("sample_inputs/model.pt", b"", b"cos\nsystem\n(S'touch run'\ntR."),
                ("weights/weight_0", b"", b"0"),
            )
        ),
    ],
)
def test_programs_of_strangers_are_not_loaded(shown, part, find, put, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.export, "load", lambda *_, **__: pytest.fail("it was loaded"))

    def change(content):
        assert find in content
        return content.replace(find, put, 1)

    hostile = rewritten(shown / "classifier.pt2", tmp_path / "classifier.pt2", part, change)
    assert export.main([str(shown / "best_model.pt"), "--verify", str(hostile)]) == 2
    assert "a new export by torch" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"[" * 100_000, b"{}", b"null", b'{"contract": {"format": "pt2", "part": 1}}'])
def test_a_program_without_a_sound_description_is_refused(shown, content, tmp_path):
    damaged = rewritten(shown / "classifier.pt2", tmp_path / "m.pt2", "extra/sat_vg.json", lambda _: content)
    with pytest.raises(CheckpointError, match="no description"):
        load_format("pt2").require_own(damaged, FineTuneModel.load_checkpoint(shown / "best_model.pt"))


def test_the_same_program_is_verified_and_one_of_uint8_at_one_size_too(shown, tmp_path):
    options = ["--format", "pt2", "--with_normalisation", "--fixed_size", "64", "--part", "extractor"]
    assert export.main([str(shown / "best_model.pt"), *options, "--out", str(tmp_path / "m.pt2")]) == 0
    for path in (shown / "classifier.pt2", tmp_path / "m.pt2"):
        assert export.main([str(shown / "best_model.pt"), "--verify", str(path)]) == 0


def test_a_graph_whose_weights_lie_elsewhere_is_refused(shown, tmp_path):
    import onnx

    graph = onnx.load(shown / "maps.onnx")
    onnx.save(graph, tmp_path / "maps.onnx", save_as_external_data=True, location="weights.bin")
    with pytest.raises(CheckpointError, match="no description"):
        load_format("onnx").read(tmp_path / "maps.onnx", FineTuneModel.load_checkpoint(shown / "best_model.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["classifier", "extractor"])
@pytest.mark.parametrize(
    ("name", "size", "takes_all_sizes"),
    [
        ("resnet50", 64, True),
        ("efficientnet_b0", 64, True),
        ("convnext_tiny", 64, True),
        ("vit_b_32", 64, True),
        ("swin_t", 64, False),
        ("maxvit_t", 224, False),
        ("mobilenet_v3_small", 64, True),
        ("densenet121", 64, True),
        ("vgg11", 64, True),
        ("alexnet", 96, True),
        ("squeezenet1_1", 64, True),
        ("googlenet", 64, True),
        ("inception_v3", 160, True),
        ("regnet_y_400mf", 64, True),
        ("shufflenet_v2_x0_5", 64, True),
        ("mnasnet0_5", 64, True),
        ("swin_v2_t", 64, False),
        ("custom_cnn", 64, True),
    ],
)
def test_families(name, size, takes_all_sizes, part, tmp_path, capfd):
    checkpoint = checkpoint_of(tmp_path, name, size)
    capfd.readouterr()
    figures = {}
    for form in ("onnx", "pt2"):
        path = tmp_path / f"m.{form}"
        card = export_checkpoint(
            ExportCommandOptions(checkpoint=str(checkpoint), format=form, out=str(path), part=part)
        )
        assert (card["input"]["fixed_size"] is None) == takes_all_sizes, card["input"]["note"]
        first = max(size, card["input"]["smallest"])
        images = batches(first, not takes_all_sizes, card["input"]["multiple"])
        if form == "onnx":
            figures[form] = in_onnx_runtime(path, checkpoint, part, images)
        else:
            figures[form] = in_a_process_of_its_own(path, checkpoint, part, images, tmp_path)
        figures[f"{form} absolute"] = max(one["absolute"] for one in card["differences"])
        figures[f"{form} relative"] = max(one["relative"] for one in card["differences"])
    out, err = capfd.readouterr()
    assert err == "", out  # torch's tracer can fill pages with what it tries
    print(
        f"\nFIGURES {name} {part}: {card['input']['sizes']}; " + ", ".join(f"{k} {v:.1e}" for k, v in figures.items())
    )
    assert max(figures["onnx"], figures["pt2"]) < TOLERANCE
