"""Views of an image, and models whose probabilities are averaged."""

import pytest
import torch

from sat_vg.backbone_finetuning import Ensemble, FineTuneModel
from sat_vg.backbone_finetuning.models.ensemble import views_that_fit
from sat_vg.backbone_finetuning.models.views import views_of
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.preprocessing import BandFiles, Preprocessing

IMAGES = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def models():
    some = [FineTuneModel("squeezenet1_1", 3, pretrained=False, image_size=32, seed=seed) for seed in (0, 1)]
    for model in some:
        model.set_classifier(0.05 * torch.randn(3, 512, generator=torch.Generator().manual_seed(1)), torch.zeros(3))
    return some


def test_the_eight_views_are_the_flips_and_quarter_turns():
    views = list(views_of(IMAGES, 8))
    assert len({view.numpy().tobytes() for view in views}) == 8
    turned = [torch.rot90(each, k, (-2, -1)) for k in range(4) for each in (IMAGES, IMAGES.flip(-1))]
    assert {view.contiguous().numpy().tobytes() for view in views} == {
        each.contiguous().numpy().tobytes() for each in turned
    }
    assert torch.equal(views[0], IMAGES)
    assert torch.equal(views[1], IMAGES.flip(-1))
    assert len(list(views_of(IMAGES, 3))) == 3
    for count in (0, 9):
        with pytest.raises(ConfigError, match=f"views = {count}.*1 to 8"):
            next(views_of(IMAGES, count))


def test_of_images_that_are_not_square_the_views_of_the_same_size_are_taken():
    wide = IMAGES[..., :20, :]
    with pytest.warns(UserWarning, match=r"views = 8: images of 20 x 32 pixels are not square, so only the 4 views"):
        views = list(views_of(wide, 8))
    assert [view.shape for view in views] == [wide.shape] * 4
    assert torch.equal(views[3], torch.rot90(wide, 2, (-2, -1)))


def test_probabilities_are_averaged_over_views_and_models(models):
    first, second = models
    first.temperature, second.temperature = 1.0, 2.0
    values = first.preprocessing.normalise(IMAGES)
    shares = first.predict_probabilities(values, views=8)
    by_hand = torch.stack([first.predict_probabilities(view.contiguous()) for view in views_of(values, 8)]).mean(0)
    torch.testing.assert_close(shares, by_hand)
    assert (shares - first.predict_probabilities(values)).abs().max() > 1e-3
    assert torch.equal(first.predict_probabilities(values, views=1), first.predict_probabilities(values))
    # What does not depend on how an image lies is the same however it lies.
    turned = first.preprocessing.normalise(torch.rot90(IMAGES, 1, (-2, -1)))
    torch.testing.assert_close(first.predict_probabilities(turned, views=8), shares)
    ensemble = Ensemble((first, second), num_views=8)
    assert ensemble.passes == 16
    both = ensemble.predict_probabilities(IMAGES)
    torch.testing.assert_close(both, (shares + second.predict_probabilities(values, views=8)) / 2)
    torch.testing.assert_close(both.sum(1), torch.ones(3))
    second.temperature = 1.0


def test_each_model_of_an_ensemble_sees_images_in_its_own_size(models):
    large = FineTuneModel("squeezenet1_1", 3, pretrained=False, image_size=64)
    pixels = torch.randint(256, (2, 3, 80, 100), dtype=torch.uint8)
    both = Ensemble((models[0], large)).predict_probabilities(pixels)
    alone = [Ensemble((model,)).predict_probabilities(pixels) for model in (models[0], large)]
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)


def test_missing_values_are_the_mean_for_an_ensemble_as_for_a_model():
    model = FineTuneModel("squeezenet1_1", 3, pretrained=False, image_size=32)
    files = BandFiles((1, 2, 3), "uint16", 3)
    model.preprocessing = Preprocessing(image_size=32, mean=(90.0,) * 3, std=(9.0,) * 3, scale=1.0, files=files)
    values = torch.full((1, 3, 32, 32), 99.0)
    values[..., :4], values[..., 4:6] = torch.nan, torch.inf
    found = Ensemble((model,)).predict_probabilities(values)
    assert found.isfinite().all()
    assert found[0].tolist() == pytest.approx(list(model.predict(values)[0].probabilities.values()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_names": ("0", "sea", "2")}, "'model 2' has 'sea' as class 2 and the first model '1'"),
        ({"class_names": ("1", "0", "2")}, "'model 2' has '1' as class 1 and the first model '0'.*same order"),
        ({"num_classes": 4}, "'model 2' has 4 classes and the first model 3"),
        ({"task": "multi_label"}, "'model 2' is a multi_label model and the first one is single_label"),
    ],
    ids=["name", "order", "number", "task"],
)
def test_models_of_other_classes_are_refused_by_name(models, settings, message):
    other = FineTuneModel("squeezenet1_1", **{"num_classes": 3, "pretrained": False, "image_size": 32, **settings})
    with pytest.raises(ConfigError, match=message):
        Ensemble((models[0], other))


def test_a_model_of_images_with_an_up_is_shown_no_turned_ones(models):
    model = models[0]
    for augmentation, fitting in (("satellite", 8), ("turns", 8), ("basic", 2), ("crops", 1), (None, 8)):
        model.provenance = {"config": {"augmentation": augmentation}}
        views, note = views_that_fit(model, 8)
        assert views == fitting
        assert (f"views: {fitting}, not 8" in note) == (fitting < 8)
    model.provenance = {"config": {"augmentation": "crops", "use_augmentation": False}}
    assert views_that_fit(model, 8) == (8, "")
