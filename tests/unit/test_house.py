"""The tree of the package: where imports may go, and what lies where; a walk over the package's own sources."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "sat_vg"
PACKAGE = SOURCES / "backbone_finetuning"
NAME = "sat_vg.backbone_finetuning"
GROUNDING = "sat_vg.grounding"
# A folder imports itself and what its row names.
BELOW: dict[str, set[str]] = {
    "utils": set(),
    "configs": {"utils"},
    "reports": {"utils"},
    "data": {"configs", "utils", "reports"},
    "models": {"configs", "utils", "reports"},
    "evaluation": {"data", "models", "configs", "utils", "reports"},
    "training": {"evaluation", "data", "models", "configs", "utils", "reports"},
    "commands": {"training", "evaluation", "data", "models", "configs", "utils", "reports"},
}
# One module of models reads image files: FineTuneModel.predict takes paths.
ALSO = {f"{NAME}.models.prediction": {"data"}}
# The same of the modules of sat_vg.grounding, which stands on backbone_finetuning: each may import those before it.
GROUNDING_ORDER = (
    "config", "words", "metrics", "readers", "images", "batches", "tiles", "data", "network", "text", "model",
    "evaluation", "training", "cli", "train",
)  # fmt: skip
# And of the modules of sat_vg.scenes.
SCENES = "sat_vg.scenes"
SCENES_ORDER = (
    "geojson", "rasters", "drawn", "options", "labelling", "tiling", "preview", "kept_windows", "prediction",
    "similarity", "functions", "tile_cli", "search_cli",
)  # fmt: skip
BELOW_SCENES = {name: set(SCENES_ORDER[:place]) for place, name in enumerate(SCENES_ORDER)}
# predict with --out hands a scene over to the map of it: one command for the user, whatever the image's size.
# runs lists trainings of grounding as well.
ABOVE = {f"{NAME}.commands.predict.run": SCENES, f"{NAME}.commands.runs.run": f"{GROUNDING}.config"}
BELOW_GROUNDING = {name: set(GROUNDING_ORDER[:place]) for place, name in enumerate(GROUNDING_ORDER)}


def modules() -> dict[str, Path]:
    """All modules of the package by their dotted names."""
    found = {}
    for path in SOURCES.rglob("*.py"):
        name = ".".join(path.relative_to(SOURCES.parent).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    assert len(found) > 100
    return found


@cache
def import_statements(path: Path) -> list[ast.AST]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]


def imports_of(path: Path, known: dict[str, Path]) -> set[str]:
    """The package's own modules that a file imports, also within functions; for other packages their names."""
    found = set()
    for node in import_statements(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                found.add(module if module in known else node.module or "")
    return found


def folder_of(module: str, package: str = NAME) -> str:
    """The folder of a package, or its own module, in which a module lies."""
    parts = module.removeprefix(package + ".").split(".")
    return parts[0] if module.startswith(package + ".") else ""


@pytest.mark.parametrize(
    ("package", "below", "fewest"), [(NAME, BELOW, 300), (GROUNDING, BELOW_GROUNDING, 35), (SCENES, BELOW_SCENES, 15)]
)
def test_imports_run_one_way(package, below, fewest):
    known, checked = modules(), 0
    for module, path in known.items():
        here = folder_of(module, package)
        if here not in below:
            continue
        for imported in imports_of(path, known):
            there = folder_of(imported, package)
            if there:
                checked += 1
                assert there in below[here] | {here} | ALSO.get(module, set()), f"{module} imports {imported}"
    assert checked > fewest


def test_the_fine_tuning_does_not_know_what_stands_on_it():
    known, checked = modules(), 0
    for module, path in known.items():
        if module.startswith(NAME):
            checked += 1
            upwards = {name for name in imports_of(path, known) if name.startswith((GROUNDING, SCENES))}
            assert not {name for name in upwards if not name.startswith(ABOVE.get(module, " "))}, module
    assert checked > 100


def test_no_module_imports_itself_by_way_of_others():
    known = modules()
    graph = {module: imports_of(path, known) & set(known) - {module} for module, path in known.items()}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " → ".join((*above[above.index(module) :], module))
        if module not in done:
            for imported in sorted(graph[module]):
                visit(imported, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_every_folder_is_known_and_nothing_else_lies_beside_the_folders():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(BELOW)
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "train.py"}
    assert {path.stem for path in (SOURCES / "grounding").rglob("*.py")} == {"__init__", *GROUNDING_ORDER}
    assert {path.stem for path in (SOURCES / "scenes").rglob("*.py")} == {"__init__", *SCENES_ORDER}


def test_configs_reports_and_command_lines_import_no_torch():
    known, checked = modules(), 0
    for module, path in known.items():
        is_command_line = path.name in ("cli.py", "options.py") and folder_of(module) == "commands"
        is_command_line |= module.startswith(SCENES) and path.name in ("options.py", "tile_cli.py", "search_cli.py")
        is_command_line |= module.startswith(GROUNDING) and path.name in ("cli.py", "config.py", "train.py")
        if folder_of(module) in ("configs", "reports"):
            is_command_line = True
        if is_command_line:
            checked += 1
            assert not {name.split(".")[0] for name in imports_of(path, known)} & {"torch", "torchvision"}, path
    assert checked > 20


def test_no_junk_drawer():
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert not names & {"misc", "helpers", "common", "utils"}


def test_the_package_alone_needs_no_torch_and_an_extractor_neither_data_nor_training(tmp_path):
    code = f"""
import sys
import {NAME} as package
print("torch" in sys.modules)
package.FineTuneModel("resnet18", 3, pretrained=False, image_size=32).save_checkpoint("m.pt")
package.FineTuneModel.load_checkpoint("m.pt").get_feature_extractor()
import {NAME}.models.explain
unwanted = ("{NAME}.data", "{NAME}.training", "{NAME}.evaluation", "matplotlib", "tensorboard")
print([m for m in sys.modules if m.startswith(unwanted)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.splitlines() == ["False", "[]"]


def test_every_public_name_is_there():
    import sat_vg.backbone_finetuning as public

    assert len(public.__all__) >= 7
    assert all(getattr(public, name).__name__ == name for name in public.__all__)
