"""Imports run one way; a walk over the package's own sources."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "sat_vg" / "backbone_finetuning"
NAME = "sat_vg.backbone_finetuning"
MAY_IMPORT = {
    "utils": {"utils"},
    "configs": {"configs", "utils"},
    "reports": {"reports", "utils"},
    "data": {"data", "configs", "utils", "reports"},
    "models": {"models", "configs", "utils", "reports"},
    "engine": {"engine", "data", "models", "configs", "utils", "reports"},
}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def test_imports_run_one_way():
    checked = 0
    for room, allowed in MAY_IMPORT.items():
        for path in (PACKAGE / room).rglob("*.py"):
            for module in imports_of(path):
                if module.startswith(NAME + "."):
                    checked += 1
                    other = module.removeprefix(NAME + ".").split(".")[0]
                    assert other in allowed, f"{path.relative_to(PACKAGE)} imports {module}"
    assert checked > 50


def test_every_room_is_known():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == set(MAY_IMPORT)


def test_configs_and_reports_know_no_torch():
    checked = 0
    for room in ("configs", "reports"):
        for path in (PACKAGE / room).rglob("*.py"):
            checked += 1
            assert not any(m.split(".")[0] in ("torch", "torchvision") for m in imports_of(path)), path
    assert checked >= 4


def test_no_junk_drawer():
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert len(names) > 20
    assert not names & {"misc", "helpers", "common", "utils"}


def test_an_extractor_needs_neither_data_nor_engine(tmp_path):
    code = f"""
import sys
from {NAME}.models.finetune_model import FineTuneModel
FineTuneModel("resnet18", 3, pretrained=False, image_size=32).save_checkpoint("m.pt")
FineTuneModel.load_checkpoint("m.pt").get_feature_extractor()
print([m for m in sys.modules if m.startswith(("{NAME}.data", "{NAME}.engine", "matplotlib", "tensorboard"))])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_package_imports_no_torch():
    code = "import sys, sat_vg.backbone_finetuning as s; print('torch' in sys.modules, s.FineTuneModel.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "FineTuneModel"]
