"""``sat-vg export``: what cannot be exported, what is left behind, and what the cards say."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import small_disk

from sat_vg.backbone_finetuning.commands.export import cli as export
from sat_vg.backbone_finetuning.models.exports import FORMATS, contract
from sat_vg.backbone_finetuning.models.exports.contract import load_format
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.machine_memory import Memory

HOSTILE = ("<script>alert(1)</script>", "a|b\n# c", "[x](javascript:y) \x1b[31m `z` _e_ **f**", "head_conv")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A ResNet with class names, settings and metrics of a stranger's making."""
    model = FineTuneModel("resnet18", len(HOSTILE), pretrained=False, image_size=32, class_names=HOSTILE)
    model.temperature = 1.5
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # not those of a fresh layer, with which nothing is rounded
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.7, 1.7)
    config = {
        "dataset_path": "/home/someone/secret/UCMerced",
        "weights": "~/weights/<b>.pth",
        "log_dir": "/home/someone/secret/logs",
        "anything": "/home/someone/secret/thing",
        "odd": {"of": torch.zeros(2), "deep": [[[[[["x"]]]]]]},
    }
    path = tmp_path_factory.mktemp("model") / "best_model.pt"
    model.save_checkpoint(path, config=config, metrics={"val_accuracy": 0.75, "val_loss": float("nan")})
    return path


def run(capfd, *arguments):
    capfd.readouterr()
    code = export.main([str(argument) for argument in arguments])
    return code, *capfd.readouterr()


@pytest.fixture
def exported(checkpoint, tmp_path, capfd):
    path = tmp_path / "weights.pth"
    code, out, err = run(capfd, checkpoint, "--format", "torchvision", "--out", path, "--with_head")
    assert code == 0, err
    return path, out


def test_what_is_said_and_written(exported):
    path, out = exported
    assert sorted(one.name for one in path.parent.iterdir()) == [
        "weights.pth", "weights.pth.card.json", "weights.pth.card.md",
    ]  # fmt: skip
    assert "1 × 32 × 32" in out
    assert "2 × 69 × 54" in out
    assert "licence  not set" in out
    assert f"written: {path}" in out


def test_the_card_for_programs(exported, checkpoint):
    path, _ = exported
    card = json.loads((path.parent / "weights.pth.card.json").read_text(), parse_constant=pytest.fail)
    assert card["data"] == {"name": "UCMerced", "classes": list(HOSTILE), "images": "not recorded"}
    assert card["metrics"] == {"val_accuracy": 0.75, "val_loss": "nan"}
    assert card["license"] is None
    assert card["outputs"]["temperature"] == 1.5
    assert card["provenance"]["config"]["weights"] == "<b>.pth"
    assert "log_dir" not in card["provenance"]["config"]
    assert "secret" not in json.dumps(card)
    assert len(card["differences"]) == 3
    assert max(one["deviation"] for one in card["differences"]) <= card["tolerance"] == 1e-4
    assert card["file"]["bytes"] == path.stat().st_size
    shown = {}
    exec(card["usage"].replace("'weights.pth'", repr(str(path))), shown)
    images = torch.randn(2, 3, 40, 50)
    model = FineTuneModel.load_checkpoint(checkpoint)
    torch.testing.assert_close(shown["network"].eval()(images), model(images), rtol=1e-4, atol=1e-4)


def without_front_matter(text):
    begin, _, rest = text.split("---\n", 2)
    assert begin == ""
    return rest


def hub_reads(path):
    """What a hub reads off the head of a card: plain YAML between two lines of dashes."""
    assert path.read_text().startswith("---\n")
    return yaml.safe_load(path.read_text().split("---\n", 2)[1])


def test_the_head_of_the_card_is_what_a_model_hub_reads(exported):
    path, _ = exported
    found = hub_reads(path.parent / "weights.pth.card.md")
    assert (found["library_name"], found["pipeline_tag"]) == ("sat_vg", "image-classification")
    assert {"image-classification", "remote-sensing", "resnet18", "torchvision"} <= set(found["tags"])
    assert found["metrics"] == ["accuracy"]  # the loss is none of a hub's, and was no number
    assert "license" not in found  # none was set, and none is claimed
    (entry,) = found["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "weights.pth"
    assert result["task"] == {"type": "image-classification"}
    assert result["dataset"] == {"type": "image_folder", "name": "UCMerced", "split": "validation"}
    assert result["metrics"] == [{"type": "accuracy", "name": "val_accuracy", "value": 0.75}]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("CC-BY-4.0", {"license": "cc-by-4.0"}),
        ("in house: do not\npass on", {"license": "other", "license_name": "in house: do not\npass on"}),
    ],
)
def test_a_folder_is_ready_for_a_model_hub(checkpoint, tmp_path, capfd, given, expected):
    path = tmp_path / "hub/model.safetensors"
    arguments = (checkpoint, "--format", "safetensors", "--out", path, "--license", given, "--readme")
    code, out, err = run(capfd, *arguments)
    assert code == 0, err
    assert sorted(one.name for one in path.parent.iterdir()) == [
        "README.md", "model.safetensors", "model.safetensors.card.json",
    ]  # fmt: skip
    assert "README.md" in out
    found = hub_reads(path.parent / "README.md")
    assert {name: found[name] for name in expected} == expected
    assert run(capfd, *arguments)[0] == 0  # a card of its own may be replaced
    (path.parent / "README.md").write_text("# Of somebody else\n")
    code, out, err = run(capfd, *arguments)
    assert code == 2
    assert "is no card of this program; move it, or choose another --out" in err
    assert (path.parent / "README.md").read_text() == "# Of somebody else\n"


def test_the_card_for_readers_shows_names_and_does_nothing_else(exported):
    path, _ = exported
    text = without_front_matter((path.parent / "weights.pth.card.md").read_text())
    markdown = pytest.importorskip("markdown")
    page = markdown.markdown(text, extensions=["tables", "fenced_code"])
    assert not re.search(r"<(?!/?(h1|h2|p|table|thead|tbody|tr|th|td|pre|code)\b)", page)
    cells = re.findall(r"<td>(.*?)</td>", page, re.DOTALL)
    plain = [cell.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for cell in cells]
    plain = [re.sub(r"&#(\d+);", lambda match: chr(int(match[1])), cell) for cell in plain]
    for name in ("<script>alert(1)</script>", "a|b\\n# c", "[x](javascript:y) \\x1b[31m `z` _e_ **f**", "head_conv"):
        assert name in plain
    assert "head_conv" in text  # what needs no escape is left readable
    assert "not set" in text


def test_the_licence_is_told(checkpoint, tmp_path, capfd):
    path = tmp_path / "w.safetensors"
    code, out, err = run(capfd, checkpoint, "--format", "safetensors", "--out", path, "--license", "CC-BY-4.0")
    assert code == 0, err
    assert "licence  CC-BY-4.0" in out
    assert "| licence | CC-BY-4.0 |" in (tmp_path / "w.safetensors.card.md").read_text()


def test_what_differs_is_not_left_behind(checkpoint, tmp_path, capfd):
    (tmp_path / "detr.pth").write_text("from before")
    code, out, err = run(
        capfd, checkpoint, "--format", "detr", "--out", tmp_path / "detr.pth", "--tolerance", "1e-12"
    )
    assert code == 2, out
    assert "above the tolerance of 1e-12" in err
    assert [path.name for path in tmp_path.iterdir()] == ["detr.pth"]
    assert (tmp_path / "detr.pth").read_text() == "from before"


def test_an_export_of_other_weights_is_told_from_this_one(exported, checkpoint, tmp_path, capfd):
    path, _ = exported
    code, out, err = run(capfd, checkpoint, "--verify", path)
    assert code == 0, err
    assert "torchvision, classifier: agrees with" in out
    model = FineTuneModel.load_checkpoint(checkpoint)
    with torch.no_grad():
        model.network.layer4[1].conv2.weight.mul_(1.01)
    model.save_checkpoint(tmp_path / "other.pt")
    code, out, err = run(capfd, tmp_path / "other.pt", "--verify", path)
    assert code == 2, out
    assert "is not what" in err
    assert "differ by" in err
    FineTuneModel("resnet34", 3, pretrained=False, image_size=32).save_checkpoint(tmp_path / "resnet34.pt")
    code, _, err = run(capfd, tmp_path / "resnet34.pt", "--verify", path)
    assert code == 2
    assert "is no resnet34" in err


def test_a_batch_that_does_not_fit_into_memory_is_left_out_with_a_line(exported, checkpoint, capfd, monkeypatch):
    """The system would kill the process without a word: three images of 4096 pixels take 9 GiB in a ResNet-18."""
    monkeypatch.setattr(contract, "machine_memory", lambda: Memory(2**30, 200_000))
    code, out, err = run(capfd, checkpoint, "--verify", exported[0])
    assert code == 0, err
    assert "not compared on 3 × 32 × 32, which takes about 0.0 GiB: 0.0 GiB are free" in out
    assert re.findall(r"^\d × \d+ × \d+", out, re.MULTILINE) == ["1 × 32 × 32"]


def test_what_cannot_be_asked_for(checkpoint, tmp_path, capfd):
    out = tmp_path / "out.pth"
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "odd.bin").write_bytes(b"1")
    for arguments, message in (
        ((), "say what to write and where: --format torchvision|detr"),
        (("--format", "detr"), "say what to write and where"),
        (("--format", "onnx", "--out", out), "a file of --format onnx ends in .onnx"),
        (("--format", "detr", "--out", tmp_path / "folder.pth"), "is a folder"),
        (("--format", "detr", "--out", checkpoint), "is the checkpoint itself"),
        (("--format", "detr", "--out", out, "--with_head"), "--with_head says nothing for --format detr"),
        (
            ("--format", "pt2", "--out", tmp_path / "m.pt2", "--fixed_size", 0),
            "must be a whole number from 1 to 4096; for example 224",
        ),
        (
            ("--format", "pt2", "--out", tmp_path / "m.pt2", "--fixed_size", 5000),
            "must be a whole number from 1 to 4096; for example 224",
        ),
        (("--format", "detr", "--out", out, "--tolerance", "nan"), "must be a number above 0"),
        (("--verify", tmp_path / "none.onnx"), "there is no file"),
        (("--verify", tmp_path / "odd.bin"), "ends in none of the endings"),
        (("--verify", checkpoint, "--part", "extractor"), "--part says nothing beside --verify"),
        (("--verify", checkpoint), "is no state dict"),
        (("--format", "detr", "--out", checkpoint / "below" / "d.pth"), "cannot be written"),
    ):
        code, said, err = run(capfd, checkpoint, *arguments)
        assert code != 0, (arguments, said)
        assert message in err, (arguments, err)
        assert "Traceback" not in err
    assert not out.exists()
    code, _, err = run(capfd, tmp_path / "none.pt", "--format", "detr", "--out", out)
    assert (code, "there is no file" in err) == (2, True)


def tiny(path, seed):
    model = FineTuneModel("squeezenet1_1", 3, pretrained=False, image_size=32)
    with torch.no_grad():
        next(model.parameters()).add_(0.01 * seed)
    model.save_checkpoint(path)
    return path


def killed_export(checkpoint, out, before):
    """Export in a process that is killed before it renames or removes the so-manieth thing; tells whether it was."""
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        calls = iter(range(1000))
        for name in ("replace", "unlink"):
            real = getattr(Path, name)

            def counted(*arguments, real=real, **options):
                if next(calls) == before:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)

            setattr(Path, name, counted)
        export.main([str(checkpoint), "--format", "torchvision", "--out", str(out)])
        os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_killed_export_leaves_no_card_of_another_file_and_nothing_for_long(tmp_path, capfd):
    one, two, out = tiny(tmp_path / "1.pt", 1), tiny(tmp_path / "2.pt", 2), tmp_path / "out/w[1].pth"
    sums = set()
    assert run(capfd, one, "--format", "torchvision", "--out", out)[0] == 0
    before = 0
    while killed_export((two, one)[before % 2], out, before):
        found = hashlib.sha256(out.read_bytes()).hexdigest()  # there is always a whole file
        sums.add(found)
        card, text = (out.with_name(out.name + ending) for ending in (".card.json", ".card.md"))
        assert not card.exists() or json.loads(card.read_text())["file"]["sha256"] == found, before
        assert not text.exists() or found in text.read_text(), before
        assert len(list(out.parent.iterdir())) <= 4
        before += 1
    assert before > 6  # two cards removed, three files put in place, and what the writers themselves rename
    assert len(sums) == 2
    names = [f"w[1].pth{ending}" for ending in ("", ".card.json", ".card.md")]
    assert sorted(path.name for path in out.parent.iterdir()) == names


@pytest.mark.parametrize("form", FORMATS)
def test_a_full_disk_is_a_sentence_and_leaves_what_was_there(form, checkpoint, tmp_path, capfd):
    if form == "onnx":
        pytest.importorskip("onnxscript")
    small = checkpoint if form == "detr" else tiny(tmp_path / "m.pt", 1)
    with small_disk(tmp_path / "disk", 1):
        out = tmp_path / "disk" / f"m{load_format(form).endings[0]}"
        out.write_text("from before")
        code, said, err = run(capfd, small, "--format", form, "--out", out)
        assert code == 1, (said, err)
        assert f"error: {str(out)!r} cannot be written (" in err
        assert "No space left" in err
        assert "Make room or choose another --out" in err
        assert [path.name for path in out.parent.iterdir()] == [out.name]
        assert out.read_text() == "from before"


def test_backbones_that_a_format_has_no_place_for(tmp_path, capfd):
    for name, options, form, message in (
        ("custom_cnn", {}, "torchvision", "torchvision has no such network"),
        ("custom_cnn", {}, "detr", "DETR's backbone is a ResNet"),
        ("resnet18", {"bands": ("red", "nir")}, "torchvision", "red, green, blue"),
        ("resnet18", {"bands": ("red", "nir")}, "detr", "red, green, blue"),
    ):
        FineTuneModel(name, 3, pretrained=False, image_size=32, **options).save_checkpoint(tmp_path / "m.pt")
        code, _, err = run(capfd, tmp_path / "m.pt", "--format", form, "--out", tmp_path / "out.pth")
        assert code == 2
        assert message in err
    squeezenet = FineTuneModel("squeezenet1_1", 3, pretrained=False, image_size=32)
    squeezenet.save_checkpoint(tmp_path / "m.pt")
    to = ("--format", "torchvision", "--out", tmp_path / "out.pth")
    assert "convolution in torchvision" in run(capfd, tmp_path / "m.pt", *to, "--with_head")[2]
    assert run(capfd, tmp_path / "m.pt", *to)[0] == 0
    more = ("--format", "safetensors", "--out", tmp_path / "bands.safetensors")
    FineTuneModel("resnet18", 3, pretrained=False, image_size=32, bands=("a", "b")).save_checkpoint(tmp_path / "m.pt")
    assert run(capfd, tmp_path / "m.pt", *more)[0] == 0


@pytest.mark.parametrize(
    "name",
    [
        "mnasnet0_5",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("vit_b_32", "googlenet", "swin_t", "convnext_tiny")
        ),
    ],
)
def test_torchvision_is_told_what_the_weights_need(name, tmp_path, capfd):
    FineTuneModel(name, 3, pretrained=False, image_size=64).save_checkpoint(tmp_path / "m.pt")
    code, _, err = run(capfd, tmp_path / "m.pt", "--format", "torchvision", "--out", tmp_path / "w.pth")
    assert code == 0, err
    usage = json.loads((tmp_path / "w.pth.card.json").read_text())["usage"]
    exec(usage.replace("'w.pth'", repr(str(tmp_path / "w.pth"))), {})


def test_onnx_without_its_packages_says_what_to_install(checkpoint, tmp_path):
    """In an interpreter that cannot import them."""
    code = (
        "import sys; sys.modules['onnxscript'] = None\n"
        "from sat_vg.backbone_finetuning.commands.export.cli import main\n"
        f"sys.exit(main([{str(checkpoint)!r}, '--format', 'onnx', '--out', {str(tmp_path / 'm.onnx')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "pip install 'sat_vg[onnx]'" in done.stderr
    assert not list(tmp_path.iterdir())


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom sat_vg.backbone_finetuning.commands.export.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
