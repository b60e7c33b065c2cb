"""What is shown of the best model: which images are looked at, and that they are the right ones."""

from dataclasses import astuple, replace

import pytest
import torch

from sat_vg.backbone_finetuning.data.loading.loaders import ImageBatches, ImageDataset
from sat_vg.backbone_finetuning.data.loading.sampling import BatchPlan, Part
from sat_vg.backbone_finetuning.data.loading.workers import Workers
from sat_vg.backbone_finetuning.data.sources.splits import load_class_folders
from sat_vg.backbone_finetuning.evaluation.predictions import names_of_set
from sat_vg.backbone_finetuning.evaluation.tasks import TASKS
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training import image_outputs
from sat_vg.backbone_finetuning.training.checkpoint import RunState
from sat_vg.backbone_finetuning.training.image_outputs import BestOutputs, SampleRecorder, Thumbnails
from sat_vg.backbone_finetuning.training.run_pictures import (
    complete,
    outputs_on_images,
    show_mistakes,
    validation_snapshot,
)
from sat_vg.backbone_finetuning.training.tracking import FileTracker
from sat_vg.backbone_finetuning.training.validation import evaluate
from sat_vg.backbone_finetuning.utils.precision import Precision
from sat_vg.backbone_finetuning.utils.ranks import Share, SingleProcess


@pytest.fixture
def parts(class_folders):
    splits = load_class_folders(class_folders)
    model = FineTuneModel("resnet18", 3, False, image_size=32, class_names=splits.class_names, dropout=0.5)
    geometry = model.preprocessing.geometry()
    datasets = {part: ImageDataset(splits.train, geometry, 0) for part in Part}
    datasets[Part.VALIDATION] = ImageDataset(splits.val, geometry, 0)
    cpu = torch.device("cpu")
    batches = ImageBatches(datasets, BatchPlan(len(splits.train), 6, 0), in_order_size=4, workers=Workers(0, cpu))
    return model, batches, Precision(cpu, torch.float32)


@pytest.mark.parametrize(("most", "places"), [(1000, list(range(9))), (9, list(range(9))), (5, [0, 2, 4, 6, 8])])
def test_images_at_equal_distances_are_looked_at(parts, monkeypatch, most, places):
    monkeypatch.setattr(image_outputs, "MOST_IMAGES", most)
    model, batches, _ = parts
    look = validation_snapshot(TASKS["single_label"], outputs_on_images(*parts))
    assert look.indices == places
    dataset = batches.parts[Part.VALIDATION]
    assert look.targets.float().argmax(1).tolist() == [dataset.split.labels[place] for place in places]
    assert (look.targets.sum(1) == 1).all()
    images = torch.stack([dataset[0, place][0] for place in places])
    thumbnails = Thumbnails(torch.tensor(places), model.preprocessing)
    complete(thumbnails, batches)
    assert thumbnails.stack().shape == (len(places), 3, 48, 48)
    for thumbnail, image in zip(thumbnails.stack(), images, strict=True):
        difference = thumbnail.float().mean((1, 2)) - image.float().mean((1, 2))
        assert difference.abs().max() < 1
    model.eval()
    with torch.no_grad():
        wanted = model(model.preprocessing.normalise(images)).softmax(1)
    assert torch.allclose(look.probabilities, wanted, atol=1e-5)


class TwoProcesses(SingleProcess):
    """Rank 0 of two processes, of which the other has these tensors."""

    def __init__(self, other):
        self.other = other

    def all_gather(self, value):
        return [value, self.other]


@pytest.mark.parametrize("most", [1000, 5, 2])
def test_a_validation_keeps_what_a_pass_over_the_sampled_images_gives(parts, monkeypatch, most):
    monkeypatch.setattr(image_outputs, "MOST_IMAGES", most)
    model, batches, precision = parts
    wanted = outputs_on_images(*parts)
    best = BestOutputs(9, model.preprocessing)
    evaluate(model, batches.in_order(Part.VALIDATION), precision, recorders=best.recorders(of_images=True))
    best.keep(SingleProcess())
    recorders = [SampleRecorder(image_outputs.sampled_places(9)) for _ in range(2)]
    for rank, recorder in enumerate(recorders):
        evaluate(model, batches.in_order(Part.VALIDATION).shared(Share(rank, 2)), precision, recorders=[recorder])
    of_both = recorders[0].gather(TwoProcesses(list(astuple(recorders[1].gather(SingleProcess())))))
    for found in (best.kept, of_both):
        assert torch.equal(found.indices, wanted.indices)
        assert torch.equal(found.targets, wanted.targets)
        assert torch.allclose(found.logits, wanted.logits, atol=1e-5)
        assert torch.allclose(found.vectors, wanted.vectors, atol=1e-5)
    assert best.thumbnails.missing == []
    again = Thumbnails(wanted.indices, model.preprocessing)
    complete(again, batches)
    assert torch.equal(best.thumbnails.stack(), again.stack())


def test_an_epoch_that_is_not_the_best_leaves_what_is_kept(parts):
    model, batches, precision = parts
    best = BestOutputs(9, model.preprocessing)
    evaluate(model, batches.in_order(Part.VALIDATION), precision, recorders=best.recorders(of_images=False))
    assert best.kept is None
    assert best.thumbnails.missing == list(range(9))
    best.keep(SingleProcess())
    kept = best.kept.logits.clone()
    model.set_classifier(torch.ones(3, 512), torch.zeros(3))
    evaluate(model, batches.in_order(Part.VALIDATION), precision, recorders=best.recorders(of_images=True))
    assert torch.equal(best.kept.logits, kept)


def test_without_mistakes_there_is_no_picture_of_them(parts, tmp_path):
    model, batches, _ = parts
    look = validation_snapshot(TASKS["single_label"], outputs_on_images(*parts))
    for targets, is_drawn in ((look.given, False), (look.given.roll(1, dims=1), True)):
        changed = replace(look, targets=targets)
        with FileTracker(tmp_path / str(is_drawn), RunState()) as tracker:
            show_mistakes(model, changed, batches, tracker, 0)
        assert (tmp_path / str(is_drawn) / "mistakes.png").exists() is is_drawn


def test_of_several_classes_the_wrong_ones_are_named_the_worst_first():
    names = ("bare\nsoil", "cars", "trees", "grass", "sea")
    targets = torch.zeros(9, 5, dtype=torch.bool)
    targets[:, :2] = True
    shares = torch.tensor([[0.1, 0.7, 0.9, 0.2, 0.6]]).repeat(9, 1)
    task, given, losses = TASKS["multi_label"], shares >= 0.5, torch.rand(9)
    title = task.mistake_title(targets[0], given[0], shares[0], names)
    assert title == "lacks bare\\nsoil 10 %\nadds trees 90 %\nadds sea 60 %"
    assert task.mistake_title(targets[0], ~targets[0], shares[0], names).endswith("\nand 2 more")
    assert names_of_set(targets[0], names) == "bare\\nsoil, cars"
    assert names_of_set(torch.zeros(5), names) == "(none)"
    assert torch.equal(task.severity(shares, losses), losses)
