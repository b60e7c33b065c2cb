import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from sat_vg.backbone_finetuning.models.attention import attention_on_grid
from sat_vg.backbone_finetuning.models.explain import attention_heat, grad_cam, save_explanation
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.stages import Stage, find_member
from sat_vg.backbone_finetuning.utils.errors import ConfigError, WriteError

CLASSES = ("river", "forest", "harbour")


def model_of(name="resnet18", **options):
    model = FineTuneModel(name, 3, pretrained=False, image_size=64, class_names=CLASSES, **options)
    weight = find_member(model.network, model.row.family.classifier).weight
    with torch.no_grad():  # ViT's own start is zero: nothing would speak for any class
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) / weight.shape[1] ** 0.5)
    return model


def some_images(count=2, size=(64, 64), seed=0):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def with_squares(sides, generator, size=64, side=16):
    """Noise with bright squares: channel 0 (red) or channel 2 (blue) at random places of the given halves."""
    image = 0.3 * torch.randn(3, size, size, generator=generator)
    places = {}
    for channel, half in sides.items():
        top = int(torch.randint(0, size - side + 1, (), generator=generator))
        left = half * size // 2 + int(torch.randint(0, size // 2 - side + 1, (), generator=generator))
        image[channel, top : top + side, left : left + side] += 3
        places[channel] = (slice(top, top + side), slice(left, left + side))
    return image, places


@pytest.fixture(scope="module")
def square_finder():
    """A network trained to tell which colour a square has; nothing ever told it where the square lies."""
    model = FineTuneModel("custom_cnn", 2, pretrained=False, image_size=64, class_names=("red", "blue"))
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(12):
        labels = torch.arange(16) % 2
        halves = torch.randint(0, 2, (16,), generator=generator)
        pairs = zip(labels.tolist(), halves.tolist(), strict=True)
        images = torch.stack([with_squares({2 * label: half}, generator)[0] for label, half in pairs])
        loss = functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3
    return model


@pytest.fixture(scope="module", params=[0, 1])
def two_squares(request):
    """Images with a red square in one half and a blue one in the other, and where these are."""
    generator = torch.Generator().manual_seed(5)
    drawn = [with_squares({0: request.param, 2: 1 - request.param}, generator) for _ in range(8)]
    return torch.stack([image for image, _ in drawn]), [places for _, places in drawn]


def shares_on_squares(heats, places):
    """``[N, 2]``: the shares of each heat that lie on the red and on the blue square."""
    return torch.stack(
        [torch.stack([h[p[0]].sum(), h[p[2]].sum()]) / h.sum() for h, p in zip(heats, places, strict=True)]
    )


def test_the_heat_lies_on_the_square_of_the_explained_colour(square_finder, two_squares):
    images, places = two_squares
    for number, name in enumerate(("red", "blue")):
        heats = grad_cam(square_finder, images, name, "stage3")
        shares = shares_on_squares(heats, places)
        assert shares[:, number].min() > 0.25  # the square is a sixteenth of the image
        assert shares[:, 1 - number].max() < 0.03
        for heat, place in zip(heats, places, strict=True):
            row, column = divmod(int(heat.argmax()), 64)
            rows, columns = place[2 * number]
            assert rows.start - 8 <= row < rows.stop + 8
            assert columns.start - 8 <= column < columns.stop + 8


def test_the_last_map_of_four_cells_a_side_points_there_as_well(square_finder, two_squares):
    images, places = two_squares
    for number, name in enumerate(("red", "blue")):
        shares = shares_on_squares(grad_cam(square_finder, images, name), places).nanmean(0)  # some see nothing
        assert shares[number] > 0.1
        assert shares[number] > 4 * shares[1 - number]


SMALL = [
    *("resnet18", "mobilenet_v2", "efficientnet_b0", "convnext_tiny", "swin_t", "vit_b_32", "densenet121"),
    *("regnet_y_400mf", "vgg11_bn", "squeezenet1_1"),
]


@pytest.mark.parametrize("name", SMALL)
def test_every_family_is_explained_and_left_as_it_was(name):
    model = model_of(name, freeze_early_layers=True).train()
    images = some_images(size=(64, 96))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    trained = [parameter.requires_grad for parameter in model.parameters()]
    heats = [grad_cam(model, images, index) for index in range(3)]
    for heat in heats:
        assert heat.shape == (2, 64, 96)
        assert heat.dtype == torch.float32
        assert not heat.requires_grad
        assert heat.isfinite().all()
        assert heat.min() >= 0
        assert set(heat.amax((1, 2)).tolist()) <= {0.0, 1.0}
    assert max(heat.amax() for heat in heats) == 1
    assert [module.training for module in model.modules()] == flags
    assert len(set(flags)) == 2
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_before_a_global_average_it_is_the_map_weighted_by_the_classifier():
    model = model_of().eval()  # Zhou et al., 2016: there the gradient is the classifier's row over the places
    images = some_images()
    with torch.no_grad():
        maps = model.run_stages(images)
        weighted = torch.einsum("c,bchw->bhw", model.network.fc.weight[1], maps).relu()
    expected = functional.interpolate(weighted[:, None], size=(64, 64), mode="bilinear")[:, 0]
    heat = grad_cam(model, images, "forest")
    assert torch.allclose(heat * expected.amax((1, 2), keepdim=True), expected, atol=1e-5)


def test_an_earlier_stage_agrees_with_hooks_on_the_network():
    model = model_of().eval()
    images, seen = some_images(), {}
    handle = model.network.layer2.register_forward_hook(lambda module, inputs, output: seen.update(map=output))
    logits = model.network(images)
    handle.remove()
    (slopes,) = torch.autograd.grad(logits[:, 2].sum(), seen["map"])
    weighted = (slopes.mean((2, 3), keepdim=True) * seen["map"]).sum(1, keepdim=True).relu().detach()
    expected = functional.interpolate(weighted, size=(64, 64), mode="bilinear")[:, 0]
    expected = expected / expected.amax((1, 2), keepdim=True)
    assert torch.allclose(grad_cam(model, images, 2, "layer2"), expected, atol=1e-5)


def test_a_stage_may_be_followed_by_a_layer_that_works_in_place():
    model = model_of()
    assert model.network.relu.inplace
    model.stages = (Stage("linear", ("conv1", "bn1")), Stage("relu", ("relu", "maxpool")), *model.stages[1:])
    assert grad_cam(model, some_images(), 1, "linear").amax((1, 2)).tolist() == [1, 1]
    images = some_images()
    model.stages = (Stage("relu", ("relu",)), Stage("stem", ("conv1", "bn1", "relu", "maxpool")), *model.stages[2:])
    grad_cam(model, images)
    assert torch.equal(images, some_images())


def test_a_vit_is_explained_before_the_block_that_reads_its_class_token():
    model = model_of("vit_b_32")
    images = some_images()
    heat = grad_cam(model, images, 0)
    assert heat.max() == 1
    assert torch.equal(heat, grad_cam(model, images, 0, "block10"))
    assert grad_cam(model, images, 0, "norm").max() == 0  # no patch is read from here on
    assert grad_cam(model, images, 0, "block11").max() == 0


def test_classes_by_name_by_index_and_by_prediction():
    model = model_of().eval()
    images = some_images(3)
    with torch.no_grad():
        predicted = model(images).argmax(1)
    assert torch.equal(grad_cam(model, images), grad_cam(model, images, predicted))
    assert torch.equal(grad_cam(model, images, "harbour"), grad_cam(model, images, 2))
    each = grad_cam(model, images, torch.tensor([0, 1, 2]))
    for index in range(3):
        assert torch.allclose(each[index], grad_cam(model, images, index)[index], atol=1e-6)
    with pytest.raises(ConfigError, match=r"classes = 'harbor': .*did you mean 'harbour'\? Classes: river, forest"):
        grad_cam(model, images, "harbor")
    for wrong in (3, -1, torch.tensor([0, 3, 1])):
        with pytest.raises(ConfigError, match="classes 0 to 2"):
            grad_cam(model, images, wrong)
    for wrong in (torch.tensor([0, 1]), torch.tensor([0.0, 1, 2]), True):
        with pytest.raises(ConfigError, match="a tensor of 3 indices"):
            grad_cam(model, images, wrong)


def test_stages_and_images_that_cannot_be_explained():
    model, images = model_of("convnext_tiny"), some_images()
    with pytest.raises(ConfigError, match=r"'neck': .*after the pooling.*stem, stage1"):
        grad_cam(model, images, stage="neck")
    with pytest.raises(ConfigError, match=r"'stage5'.*did you mean"):
        grad_cam(model, images, stage="stage5")
    with pytest.raises(ConfigError, match=r"\[3, 64, 64\].*images\[None\]"):
        grad_cam(model, images[0])
    with pytest.raises(ConfigError, match="normalise them first"):
        grad_cam(model, torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_nothing_to_see_is_zero_and_no_division_by_zero():
    model = model_of()
    nn.init.zeros_(model.network.fc.weight)
    assert torch.equal(grad_cam(model, some_images(), 1), torch.zeros(2, 64, 64))
    nn.init.constant_(model.network.fc.weight, -1.0)  # every feature speaks against the class
    assert torch.equal(grad_cam(model, some_images(), 1), torch.zeros(2, 64, 64))


def test_it_works_in_inference_mode_and_in_other_precisions():
    model, images = model_of("vit_b_32"), some_images()
    expected = grad_cam(model, images, 1)
    with torch.inference_mode():
        assert torch.equal(grad_cam(model, images.clone(), 1), expected)
    with torch.no_grad():
        assert torch.equal(grad_cam(model, images, 1), expected)
    heat = grad_cam(model.bfloat16(), images, 1)
    assert heat.dtype == torch.float32
    assert (heat - expected).abs().mean() < 0.1


def test_attention_becomes_a_picture():
    weights = torch.zeros(2, 2, 7, 7)
    weights[0, :, 0, 1:] = torch.tensor([[0.0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 15]])
    weights[0, :, 3, 1] = 99  # what other tokens attend to does not count
    weights[1] = 1 / 7
    heat = attention_heat(weights, (2, 3))
    assert torch.allclose(heat[0], torch.tensor([[0.0, 0.1, 0.2], [0.3, 0.4, 1.0]]))
    assert torch.equal(heat[1], torch.zeros(2, 3))
    with pytest.raises(ConfigError, match=r"7 tokens.*\[B, heads, 7, 7\]"):
        attention_heat(weights[:, :, :4, :4], (2, 3))


def drawn_by(monkeypatch, model, images, path, **options):
    """What ``save_explanation`` passes on to be drawn."""
    from sat_vg.backbone_finetuning.reports import overlays

    seen, draw = [], overlays.draw_overlays
    monkeypatch.setattr(overlays, "draw_overlays", lambda *args: (seen.append(args), draw(*args))[1])
    save_explanation(model, images, path, **options)
    monkeypatch.undo()
    return seen[0]


def test_a_picture_of_uint8_images_and_of_normalised_ones(tmp_path, monkeypatch):
    model = model_of().train()
    model.temperature = 0.2
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    shown, heats, titles, heading = drawn_by(monkeypatch, model, images, tmp_path / "new" / "a.png", classes="river")
    assert np.array_equal(shown, images.permute(0, 2, 3, 1).numpy())
    normalised = model.preprocessing.normalise(images)
    assert np.array_equal(heats, grad_cam(model, normalised, "river").numpy())
    with torch.no_grad():
        shares = (model.eval()(normalised) / 0.2).softmax(1)
    for title, share in zip(titles, shares, strict=True):
        predicted, explained = title.split("\n")
        assert predicted == f"{CLASSES[int(share.argmax())]} {100 * float(share.max()):.0f} %"
        assert explained == f"heat: river {100 * float(share[0]):.0f} %"
    assert heading == "resnet18: Grad-CAM"
    again, heats_again, titles, _ = drawn_by(monkeypatch, model, normalised, tmp_path / "b.png")
    assert np.array_equal(again, shown)
    assert np.array_equal(heats_again, grad_cam(model, normalised).numpy())
    assert all("\n" not in title for title in titles)
    for path in (tmp_path / "new" / "a.png", tmp_path / "b.png"):
        with Image.open(path) as picture:
            assert picture.format == "PNG"
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("layer_idx", [None, 3])
def test_a_picture_of_attention(tmp_path, monkeypatch, layer_idx):
    model, images, grid = model_of("vit_b_32"), some_images(size=(64, 96)), (2, 3)
    options = {"kind": "attention", "layer_idx": layer_idx}
    _, heats, titles, heading = drawn_by(monkeypatch, model, images, tmp_path / "a.png", **options)
    block = -1 if layer_idx is None else layer_idx
    weights = attention_on_grid(model.network, model.row, model.stages, images, block).weights
    assert heats.shape == (2, *grid)
    assert np.array_equal(heats, attention_heat(weights, grid).numpy())
    assert len(titles) == 2
    assert heading == f"vit_b_32: attention of {'the last block' if layer_idx is None else 'block 3'}"


def test_the_coloured_bands_are_drawn_or_the_first_three(tmp_path, monkeypatch):
    for bands, drawn in ((("blue", "green", "red", "nir"), [2, 1, 0]), (("nir", "swir", "red", "vv"), [0, 1, 2])):
        model = FineTuneModel("resnet18", 3, pretrained=False, image_size=64, bands=bands)
        images = torch.randint(0, 256, (1, 4, 64, 64), dtype=torch.uint8)
        shown, *_ = drawn_by(monkeypatch, model, images, tmp_path / "a.png")
        assert np.array_equal(shown, images[:, drawn].permute(0, 2, 3, 1).numpy())
    model = FineTuneModel("resnet18", 3, pretrained=False, image_size=64, in_channels=1)
    images = torch.randint(0, 256, (1, 1, 64, 64), dtype=torch.uint8)
    shown, *_ = drawn_by(monkeypatch, model, images, tmp_path / "a.png")
    assert np.array_equal(shown, images.repeat(1, 3, 1, 1).permute(0, 2, 3, 1).numpy())


def test_what_cannot_be_drawn_is_refused(tmp_path):
    model, images, path = model_of(), some_images(), tmp_path / "a.png"
    for message, options in (
        ("kind = 'lime'", {"kind": "lime"}),
        ("classes is for kind = 'grad_cam'", {"kind": "attention", "classes": 1}),
        ("stage is for kind = 'grad_cam'", {"kind": "attention", "stage": "layer4"}),
        ("layer_idx = -1 is for kind = 'attention'", {"layer_idx": -1}),
        ("resnet18 has no attention", {"kind": "attention"}),
        ("did you mean 'forest'", {"classes": "forrest"}),
    ):
        with pytest.raises(ConfigError, match=message):
            save_explanation(model, images, path, **options)
    with pytest.raises(ConfigError, match=r"name it 'a\.png'"):
        save_explanation(model, images, tmp_path / "a.jpg")
    with pytest.raises(ConfigError, match=r"torch\.int64: give uint8"):
        save_explanation(model, images.long(), path)
    with pytest.raises(ConfigError, match="one image or more"):
        save_explanation(model, images[:0], path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="cannot be written"):
        save_explanation(model, images, tmp_path / "file" / "a.png")
