"""``sat-vg backbones``."""

import json
import subprocess
import sys

from sat_vg.backbone_finetuning.commands.backbones import main
from sat_vg.backbone_finetuning.models.networks.table import BACKBONES


def test_the_listing_needs_no_torch_and_has_every_row():
    code = (
        "import sys; from sat_vg.backbone_finetuning.commands.backbones import main; code = main([]); "
        "assert not any(name in sys.modules for name in ('torch', 'torchvision', 'numpy')); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    listed = [line.split()[0] for line in done.stdout.splitlines()[1:] if line][: len(BACKBONES)]
    assert listed == list(BACKBONES)
    line = next(line for line in done.stdout.splitlines() if line.startswith("resnet50 "))
    assert line.split() == ["resnet50", "ResNet", "23.5", "224", "5", "2048", "256/4", "512/8", "1024/16", "2048/32"]


def test_the_stages_of_one(capsys):
    assert main(["microsoft/resnet-50"]) == 0
    out = capsys.readouterr().out
    assert "resnet50: ResNet, 23.51 M parameters, a pooled vector of 2048" in out
    assert "IMAGENET1K_V1, IMAGENET1K_V2" in out
    assert [line.split() for line in out.splitlines() if line.startswith("layer3")] == [
        ["layer3", "7,098,368", "1024", "16", "yes"]
    ]


def test_json(capsys):
    assert main(["--json", "vit_b_16", "custom_cnn"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["vit_b_16"]["stages"][-1] == ["norm", 1536, 768, 16]
    assert content["custom_cnn"]["weights"] == []


def test_an_unknown_name(capsys):
    assert main(["resnet500"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: backbone = 'resnet500': unknown; did you mean resnet50")
