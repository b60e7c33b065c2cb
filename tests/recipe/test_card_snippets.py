"""The Python on a model card, run as it stands: the stored accuracy, and the numbers of the file."""

import json
import re

import pytest
import torch
from conftest import train_in, write_classes
from PIL import Image

from sat_vg.backbone_finetuning.commands.export import cli as export
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel

pytestmark = pytest.mark.recipe


def exported(checkpoint, path, *options):
    """What the snippet of the card defines."""
    assert export.main([str(checkpoint), "--out", str(path), *options]) == 0
    usage = json.loads(path.with_name(path.name + ".card.json").read_text())["usage"]
    assert f"```python\n{usage}\n```" in path.with_name(path.name + ".card.md").read_text()
    defined: dict = {}
    exec(usage.replace(repr(path.name), repr(str(path))), defined)
    return defined


def accuracy(folder, class_names, logits_of):
    paths = sorted(folder.glob("*/*"))
    right = 0
    for path in paths:
        with Image.open(path) as image:
            right += class_names[logits_of(image).argmax().item()] == path.parent.name
    return 100 * right / len(paths)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    images = write_classes(folder / "images")
    trained = train_in(
        folder, "--dataset_path", images, "--backbone", "resnet18", "--num_epochs", 1, "--image_size", 40
    )
    assert trained.code == 0
    return trained


@pytest.mark.parametrize(
    ("name", "options", "call"),
    [
        ("w.pth", ("--format", "torchvision"), lambda d, x: d["network"](x)),
        ("w.safetensors", ("--format", "safetensors"), lambda d, x: d["model"](x)),
        ("w.pt2", ("--format", "pt2"), lambda d, x: d["program"](x)["logits"]),
        ("u.pt2", ("--format", "pt2", "--with_normalisation"), lambda d, x: d["program"](x)["logits"]),
        ("w.onnx", ("--format", "onnx"), lambda d, x: torch.tensor(d["session"].run(None, {"images": x.numpy()})[0])),
    ],
    ids=["torchvision", "safetensors", "pt2", "pt2 of uint8", "onnx"],
)
def test_the_snippet_gives_the_stored_accuracy(run, tmp_path, name, options, call):
    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    folder = run.folder.parent / "images/val"
    model = FineTuneModel.load_checkpoint(run.best_model)
    stored = torch.load(run.best_model, weights_only=True)["metrics"]["val_accuracy"]
    defined = exported(run.best_model, tmp_path / name, *options)
    with torch.no_grad():
        found = accuracy(folder, model.class_names, lambda image: call(defined, defined["prepare"](image)[None]))
        assert found == pytest.approx(stored if stored > 1 else 100 * stored)
        with Image.open(next(folder.glob("*/*"))) as image:
            prepared = defined["prepare"](image)[None]
            own = model(model.preprocessing.transforms()(image)[None])
            torch.testing.assert_close(call(defined, prepared), own, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backbone", ["resnet18", "squeezenet1_1", "mobilenet_v2"])
def test_without_the_classifier_the_snippet_gives_what_it_saw_and_says_whose_the_metrics_are(tmp_path, backbone):
    model = FineTuneModel(backbone, 3, pretrained=False, image_size=64).eval()
    model.save_checkpoint(tmp_path / "m.pt", metrics={"val_accuracy": 0.98})
    defined = exported(tmp_path / "m.pt", tmp_path / "w.pth", "--format", "torchvision", "--with_head", "false")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(defined["network"](images).flatten(1), model.forward_pooled(images))
    card = (tmp_path / "w.pth.card.md").read_text()
    assert re.search(r"metrics below \| of the whole model; its classifier is not in this file", card)


def test_the_snippet_for_detr_gives_the_extractors_maps(tmp_path):
    model = FineTuneModel("resnet18", 3, pretrained=False, image_size=64).eval()
    model.save_checkpoint(tmp_path / "m.pt")
    defined = exported(tmp_path / "m.pt", tmp_path / "d.pth", "--format", "detr")
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        for theirs, ours in zip(
            defined["body"](images).values(), model.get_feature_extractor()(images).values(), strict=True
        ):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
