"""What all command lines have in common: quick help, old spellings, and one name for one thing."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from typing import Any, get_type_hints

import pytest

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.cli import COMMANDS

NAME = "sat_vg.backbone_finetuning.commands"
# Where the options of a command arrive.
ENTRIES = {
    "check": "check",
    "recommend": "show_recommendation",
    "tune": "tune",
    "serve": "serve",
    "shard": "shard",
    "compare": "compare",
    "evaluate": "evaluate_checkpoint",
    "predict": "predict",
    "extract": "extract_features",
    "export": "export_checkpoint",
}


@pytest.fixture
def options_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The options that a command would run with."""

    def parse(command: str, *arguments: str) -> Any:
        found: list[Any] = []
        monkeypatch.setattr(f"{NAME}.{command}.run.{ENTRIES[command]}", lambda *given: found.append(given))
        assert import_module(COMMANDS[command].module).main(list(arguments), f"sat-vg {command}") == 0
        return found[0]

    return parse


def test_help_of_every_command_needs_no_torch():
    code = f"""
import sys, time
from importlib import import_module
for module in {[command.module for command in COMMANDS.values()]!r}:
    try:
        import_module(module).main(["--help"])
    except SystemExit as left:
        assert left.code == 0, module
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("usage: ") == len(COMMANDS) == 16
    assert "(default: )" not in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("evaluate", ("m.pt", "--output_dir", "x"), ("m.pt", "--out", "x")),
        ("shard", ("images", "--output_dir=x"), ("images", "--out", "x")),
        ("export", ("m.pt", "--without_head"), ("m.pt", "--with_head", "false")),
        ("extract", ("m.pt", "images", "--knn", "yes"), ("m.pt", "images", "--knn", "true")),
        ("extract", ("m.pt", "images", "--knn=no"), ("m.pt", "images", "--knn", "false")),
        ("extract", ("m.pt", "images", "--knn", "auto"), ("m.pt", "images")),
        ("compare", ("--dataset_path", "images", "--", "--num_epochs", "3"), ("images", "--", "--num_epochs", "3")),
    ],
)
def test_old_spellings_mean_the_same_and_get_a_hint(options_of, command, old, new, capsys):
    expected = options_of(command, *new)
    assert capsys.readouterr().err == ""
    assert options_of(command, *old) == expected
    err = capsys.readouterr().err
    assert " is now " in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "arguments", "switches"),
    [
        ("check", ("images", "--json"), {"json": True, "allow_outside": False}),
        ("predict", ("m.pt", "a", "b", "--json"), {"json": True, "images": ("a", "b")}),
        ("extract", ("m.pt", "a", "--mixed_precision", "--allow_outside"), {"mixed_precision": True, "knn": None}),
        ("export", ("m.pt", "--with_normalisation", "--with_head"), {"with_normalisation": True, "with_head": True}),
        ("compare", ("--anew", "images", "--dry_run"), {"anew": True, "dry_run": True, "data": "images"}),
    ],
)
def test_a_bare_flag_means_true(options_of, command, arguments, switches, capsys):
    found = options_of(command, *arguments)[0]
    assert {name: getattr(found, name) for name in switches} == switches
    assert capsys.readouterr().err == ""


def test_an_option_of_the_training_given_to_compare_gets_a_hint(capsys):
    assert import_module(COMMANDS["compare"].module).main(["images", "--num_epochs", "3"]) == 2
    assert "put it behind -- at the end, as in sat-vg compare DATA … -- --num_epochs VALUE" in capsys.readouterr().err


def test_options_of_one_name_have_one_type():
    types: dict[str, dict[str, Any]] = {}
    for command in ENTRIES:
        module = import_module(f"{NAME}.{command}.cli")
        (options,) = (
            kind for name, kind in vars(module).items() if name.endswith("Options") and isinstance(kind, type)
        )
        for name, kind in get_type_hints(options).items():
            types.setdefault(name, {})[command] = kind
    shared = {name: kinds for name, kinds in types.items() if len(kinds) > 1}
    assert len(shared) > 10
    # An optional argument of one command can be a required one of another; extract leaves out any number of images;
    # a split is a part of the images to evaluate, and a way of parting them to check (and to train); the precision
    # that is recommended for is the machine's own unless it is set.
    for name in set(shared) - {"images", "out", "batch_size", "data", "on_bad_image", "split", "mixed_precision"}:
        assert len(set(shared[name].values())) == 1, (name, shared[name])
    training = get_type_hints(FinetuneConfig)
    for name in ("bands", "nodata", "rescale", "seed", "train_split", "val_split", "val_fraction", "allow_outside"):
        assert name in {field.name for field in fields(FinetuneConfig)}
        assert types[name]["check"] == training[name], name


@pytest.mark.parametrize("path", ["x" * 300, "x/" * 3000, "a\0b"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "{}", "image.png"), ("extract", "model.pt", "{}"), ("evaluate", "{}"), ("runs", "{}"),
        ("export", "{}", "--format", "detr", "--out", "a.pth"), ("export", "a.pt", "--verify", "{}"),
        ("serve", "{}"), ("tune", ".", "--search", "dropout=0,0.1", "--from_compare", "{}"),
        ("ground", "predict", "model.pt", "image.png", "ship", "--out", "{}.png"),
    ],
)  # fmt: skip
def test_paths_that_no_file_can_have_end_in_a_sentence(path, arguments, capsys):
    command, *words = (word.format(path) for word in arguments)
    assert import_module(COMMANDS[command].module).main(words, f"sat-vg {command}") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and len(err) < 600 + len(path) * (command == "extract")


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("", "a package is missing (import of PIL halted; None in sys.modules, in "),
        ("name='PIL._imaging'", "a package is damaged or of another version (no libjpeg.so, in "),
    ],
)
@pytest.mark.parametrize("command", ["predict", "train"])
def test_a_package_that_cannot_be_imported_is_told_once(tmp_path, command, broken, said):
    """Where a command's module is imported, and where its work is."""
    code = "import sys; sys.modules['PIL'] = None; from sat_vg.cli import main; sys.exit(main())"
    if broken:
        (tmp_path / "PIL").mkdir()
        (tmp_path / "PIL/__init__.py").write_text(f"raise ImportError('no libjpeg.so\\nmore', {broken})")
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from sat_vg.cli import main; sys.exit(main())"
    remedy = "pip install --force-reinstall " if broken else "pip check says which one to install"
    arguments = ["--dry_run"] if command == "train" else ["model.pt", "images"]
    done = subprocess.run([sys.executable, "-c", code, command, *arguments], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert f"error: {said}" in done.stderr and remedy in done.stderr
    assert done.stderr.count("error") == 1 and done.stderr.count("\n") == 1, done.stderr


def test_an_import_within_this_package_that_fails_is_a_bug():
    code = f"import sys; sys.modules['{NAME}.predict.run'] = None; from sat_vg.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "predict", "a", "b"], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr
