"""Files of weights as people have them: nested, prefixed, in pieces, damaged, and those that this package writes."""

import argparse
import json
import re
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models
from torchvision.ops.misc import FrozenBatchNorm2d

from sat_vg.backbone_finetuning.models.adapters import export_detr_state_dict
from sat_vg.backbone_finetuning.models.exports import safetensors_weights, torchvision_weights
from sat_vg.backbone_finetuning.models.exports.contract import ExportOptions
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, WeightsError


def build(path, backbone="resnet18", **options):
    return FineTuneModel(backbone, 3, weights=str(path), **{"image_size": 64, **options})


def refusal(path, backbone="resnet18", error=WeightsError, **options):
    with pytest.raises(error) as caught:
        build(path, backbone, **options)
    return str(caught.value)


def random_state(name, seed, **options):
    torch.manual_seed(seed)
    return models.get_model(name, weights=None, **options).state_dict()


@pytest.fixture(scope="module")
def first():
    return random_state("resnet18", 1)


@pytest.fixture(scope="module")
def second():
    return random_state("resnet18", 2)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.pth"


def save(content, path):
    torch.save(content, path)
    return path


def with_prefix(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def holds(model, state):
    """Whether the backbone's tensors are these, to the bit."""
    own = model.network.state_dict()
    return all(torch.equal(own[name], value) for name, value in state.items() if not name.startswith("fc."))


@pytest.mark.parametrize(
    "place",
    ["", "net.", "encoder.", "state_dict/module.encoder_q.", "state_dict/model.backbone.", "model/backbone.0.body.",
     "teacher/backbone.", "_orig_mod.module.backbone.", "a/b/c.d.e."],
)  # fmt: skip
def test_names_are_found_under_any_prefix(path, first, place):
    *folders, prefix = place.split("/")
    content = with_prefix(prefix, {**first, "head.0.weight": torch.ones(2)})
    for folder in reversed(folders):
        content = {folder: content, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(())}}}}
    model = build(save(content, path))
    assert holds(model, first)
    assert "none missing but the new head" in model.weights_report
    assert (f"names under {place.replace('/', '.')!r}".replace("_orig_mod.", "") in model.weights_report) is (
        place.replace("_orig_mod.", "") != ""
    )


def test_what_compilers_and_shards_put_into_names_is_taken_out(path, first):
    inner = {name.replace("layer1.", "layer1._orig_mod.").replace("layer2.", "layer2._fsdp_wrapped_module."): value
             for name, value in first.items()}  # fmt: skip
    assert holds(build(save(inner, path)), first)


@pytest.mark.parametrize("prefix", ["", "backbone.", "encoder_q."])
def test_layers_by_position_as_a_sequential_of_children_has_them(path, first, prefix):
    network = models.resnet18()
    network.load_state_dict(first)
    plain = torch.nn.Sequential(*list(network.children())[:-1]).state_dict()
    model = build(save({"state_dict": with_prefix(prefix, plain)}, path))
    assert holds(model, first)
    assert "layers by their position" in model.weights_report


@pytest.mark.parametrize(
    ("taken", "other"),
    [
        ("state_dict_ema.", "state_dict."),
        ("model_ema.module.", "model."),
        ("teacher.backbone.", "student.module.backbone."),
        ("modelTeacher.", "modelStudent."),
        ("state_dict.module.encoder_q.", "state_dict.module.encoder_k."),
        ("base_encoder.", "momentum_encoder."),
        ("online_network.", "target_network."),
    ],
)
def test_of_two_copies_the_usual_one_is_taken_and_said(path, first, second, taken, other):
    model = build(save({**with_prefix(other, second), **with_prefix(taken, first)}, path))
    assert holds(model, first)
    assert f"taken from {taken!r} and not from {other!r}" in model.weights_report


def test_of_several_networks_the_one_that_fits_is_taken(path, first):
    larger = with_prefix("teacher.", random_state("resnet34", 4) | random_state("resnet50", 5))
    model = build(save({**larger, **with_prefix("student.", first)}, path))
    assert holds(model, first)
    assert "names under 'student.'" in model.weights_report
    assert "other tensors of the file not used" in model.weights_report


def test_equal_claims_are_refused_unless_they_are_the_same(path, first, second):
    message = refusal(save({"one": first, "two": second}, path))
    assert "'one.' and 'two.' fit equally well" in message
    assert "file of its own" in message
    assert holds(
        build(save({"one": first, "two": {name: value.clone() for name, value in first.items()}}, path)), first
    )


@pytest.mark.parametrize(
    ("backbone", "gone"),
    [("resnet18", ("layer3.", "layer4.")), ("squeezenet1_1", ("features.7.", "features.12.")),
     ("timm:resnet10t", ("layer4.",)), ("resnet18", ("bn1.running_mean",))],
)  # fmt: skip
def test_half_a_backbone_is_refused_unless_that_is_meant(path, backbone, gone):
    if backbone.startswith("timm:"):
        pytest.importorskip("timm")
    whole = FineTuneModel(backbone, 3, pretrained=False, image_size=64).network.state_dict()
    part = {name: value for name, value in whole.items() if not name.removeprefix("trunk.").startswith(gone)}
    lost = [name for name in whole if name not in part and "num_batches" not in name]
    save({"state_dict": with_prefix("net.", part)}, path)
    message = refusal(path, backbone)
    assert f"{len(lost)} of the " in message
    assert lost[0] in message
    assert "--allow_missing true" in message
    model = build(path, backbone, allow_missing=True)
    assert f"missing {lost[0]}" in model.weights_report
    assert "start at random" in model.weights_report


def test_counters_heads_and_computed_buffers_are_no_reason(path):
    network = models.resnet18(norm_layer=FrozenBatchNorm2d)
    state = {name: value for name, value in network.state_dict().items() if not name.startswith("fc.")}
    assert "none missing" in build(save(state, path)).weights_report
    swin = {n: v for n, v in models.swin_t().state_dict().items() if not n.endswith("relative_position_index")}
    assert "none missing" in build(save(swin, path), "swin_t").weights_report


def test_weights_of_a_deeper_network_are_refused(path):
    message = refusal(save(random_state("resnet34", 3), path))
    assert "has layers that resnet18 lacks: layer1.2, layer2.2" in message
    assert "dropped layer1.2" in build(path, allow_missing=True).weights_report


def blocks(*names, count=12, size=192):
    return {f"blocks.{index}.{name}": torch.full((size,), 0.1) for index in range(count) for name in names}


@pytest.mark.parametrize(
    ("backbone", "further", "named"),
    [
        ("resnet18", {"layer2.0.se.fc1.weight": torch.ones(8, 128, 1, 1)}, "layer2.0.se"),
        ("resnet18", {"layer1.0.conv1.bias": torch.ones(64)}, "layer1.0.conv1.bias"),
        ("resnet18", {"bn1.gain": torch.ones(())}, "bn1.gain"),
        ("timm:vit_tiny_patch16_224", blocks("ls1.gamma", "ls2.gamma"), "blocks.0.ls1, blocks.0.ls2"),
        ("timm:vit_tiny_patch16_224", blocks("attn.q_norm.weight", size=64), "blocks.0.attn.q_norm, blocks.1"),
        ("timm:vit_tiny_patch16_224", {"reg_token": torch.ones(1, 4, 192)}, "reg_token"),
    ],
)
def test_weights_of_a_network_with_more_in_its_layers_are_refused(path, backbone, further, named):
    """SE-ResNet, layer scale, norms of queries and registers: without them the rest computes something else."""
    if backbone.startswith("timm:"):
        pytest.importorskip("timm")
    network = FineTuneModel(backbone, 3, pretrained=False, image_size=64).network
    whole = {name.removeprefix("trunk."): value for name, value in network.state_dict().items()}
    message = refusal(save({"state_dict": whole | further}, path), backbone)
    assert f"has layers that {backbone} lacks: {named}" in message
    assert "--allow_missing true" in message
    assert "dropped" in build(path, backbone, allow_missing=True).weights_report


def test_weights_of_a_vit_with_other_patches_are_refused(path):
    """timm resamples them: the weights of patches of 32 pixels would run on those of 16 without a word."""
    pytest.importorskip("timm")
    state = FineTuneModel("timm:vit_small_patch32_224", 3, pretrained=False, image_size=64).network.state_dict()
    save({name.removeprefix("trunk."): value for name, value in state.items()}, path)
    assert "patches of 32 x 32 pixels, and the backbone has 16 x 16" in refusal(path, "timm:vit_small_patch16_224")
    assert "none missing" in build(path, "timm:vit_small_patch32_224", image_size=96).weights_report


@pytest.mark.parametrize(
    "further",
    [
        {"total_ops": torch.ones(1), "layer1.0.total_ops": torch.ones(1), "layer1.total_params": torch.ones(1)},
        {"layer1.0.conv1.bias": torch.zeros(64)},
        {"layer1.0.index": torch.ones(3, dtype=torch.int64)},
        {"projector.0.weight": torch.ones(3, 3), "mask_token": torch.ones(3), "fc.0.weight": torch.ones(3)},
    ],
)
def test_what_shapes_no_output_of_the_backbone_may_lie_in_the_file(path, first, further):
    assert "none missing but the new head" in build(save(first | further, path)).weights_report


def test_names_of_another_library_are_told_as_such(path, first):
    for_hf = {name.replace("layer", "encoder.stages.").replace("conv", "convolution"): v for name, v in first.items()}
    del for_hf["bn1.weight"]
    message = refusal(save({f"embedder.{name}": v for name, v in for_hf.items() if "stages" in name}, path))
    assert "--backbone timm:NAME" in message
    assert "renamed to those of resnet18" in message


@pytest.mark.parametrize(
    ("backbone", "renamed"),
    [
        ("densenet121", lambda name: name.replace(".norm1.", ".norm.1.").replace(".norm2.", ".norm.2.")
         .replace(".conv1.", ".conv.1.").replace(".conv2.", ".conv.2.")),
        ("vit_b_32", lambda name: name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2.")),
    ],
)  # fmt: skip
def test_names_of_older_torchvision_are_understood(path, backbone, renamed):
    state = random_state(backbone, 1)
    old = {renamed(name): value for name, value in state.items()}
    assert old.keys() != state.keys()
    model = build(save(old, path), backbone, image_size=224)
    own = model.network.state_dict()
    assert "none missing but the new head" in model.weights_report
    assert all(torch.equal(own[name], state[name]) for name in own if not name.startswith(("classifier", "heads")))


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (float("nan"), "NaN"),
        (float("inf"), "infinite"),
        (float("-inf"), "infinite"),
        (1e300, "too large for float32"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(path, first, value, part):
    name = "bn1.running_var" if value < 0 else "layer3.0.conv1.weight"
    broken = {key: tensor.clone() for key, tensor in first.items()}
    broken[name] = broken[name].double()
    broken[name].view(-1)[2] = value
    message = refusal(save({"state_dict": broken}, path))
    assert f"{name} has 1 number of " in message
    assert part in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_formats_are_converted_and_said(path, first, dtype):
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in first.items()}
    model = build(save(state, path))
    assert model.network.conv1.weight.dtype is torch.float32
    assert torch.equal(model.network.conv1.weight, state["conv1.weight"].float())
    assert f"converted from {str(dtype).removeprefix('torch.')}" in model.weights_report


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [(torch.int8, "quantised"), (torch.int64, "quantised"), (torch.bool, "no weights"), (torch.complex64, "complex")],
)
def test_what_is_no_floating_point_number_is_refused(path, first, dtype, remedy):
    message = refusal(save({**first, "conv1.weight": torch.zeros(64, 3, 7, 7, dtype=dtype)}, path))
    assert f"conv1.weight holds {str(dtype).removeprefix('torch.')}" in message
    assert remedy in message.partition("; ")[2]
    assert ("quantised" in message) == (remedy == "quantised")


def test_numbers_of_four_bits_are_refused_as_quantised(path, first):
    packed = torch.zeros(64, 3, 7, 7, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    message = refusal(save({"one": {**first, "conv1.weight": packed}}, path))
    assert "conv1.weight holds uint8" in message
    assert "quantised" in message


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"conv1.weight": [[1.0, 2.0]], "epoch": 3}, "conv1.weight (list), epoch (int)"),
        ([1, 2], "but a list"),
        (torch.zeros(3), "but a Tensor"),
        ({}, "nothing"),
    ],
)
def test_files_without_named_tensors_say_what_they_hold(path, content, part):
    assert part in refusal(save(content, path))


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_command_line_in_the_file_is_left_out_and_other_objects_are_refused(path, first, is_zip):
    """DINO, MAE and DETR save their ``argparse.Namespace`` beside the weights."""
    args = argparse.Namespace(lr=1e-4, betas=(0.9, 0.999), output_dir="", inner=argparse.Namespace(weights=[1.0]))
    content = {"teacher": with_prefix("backbone.", first), "args": args, "epoch": 300}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    assert holds(build(path), first)
    args.output_dir = path
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    assert re.search(r"it holds the Python object pathlib\S*Path", refusal(path, error=CheckpointError))
    with pytest.raises(CheckpointError, match=r"no best_model|argparse\.Namespace"):
        FineTuneModel.load_checkpoint(path)


def test_a_namespace_cannot_call_anything(tmp_path):
    """A second state would be passed to what the first one had put under ``__setstate__``."""
    build_twice = (
        b"\x80\x02cargparse\nNamespace\n)\x81}X\x0c\x00\x00\x00__setstate__ctorch\nTensor\nsbJ\xff\xff\xff\x7fb."
    )
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("w/data.pkl", build_twice)
    assert "it sets __setstate__" in refusal(tmp_path / "w.pth", error=CheckpointError)


def test_dictionaries_without_end_end(path):
    loop = {"epoch": 1}
    loop["again"] = loop
    assert "no state dict" in refusal(save(loop, path))
    deep = {"w": torch.zeros(1)}
    for _ in range(60):
        deep = {"deeper": deep}
    assert "no state dict" in refusal(save(deep, path))


def test_another_archive_is_told_from_weights(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("EuroSAT/forest/1.jpg", "x")
    message = refusal(path, error=CheckpointError)
    assert "EuroSAT/forest/1.jpg" in message
    assert "unpack" in message


def test_content_and_not_the_ending_tells_safetensors(tmp_path, first):
    save_file({name: value.clone() for name, value in first.items()}, tmp_path / "model.bin")
    assert holds(build(tmp_path / "model.bin"), first)
    torch.save(first, tmp_path / "w.safetensors")
    assert holds(build(tmp_path / "w.safetensors"), first)


@pytest.mark.parametrize("num_bands", [13, 1])
@pytest.mark.parametrize("backbone", ["resnet18", "squeezenet1_1"])
def test_weights_for_other_bands_name_the_flag(path, backbone, num_bands):
    state = random_state(backbone, 1)
    stem = next(name for name, value in state.items() if value.dim() == 4)
    state[stem] = state[stem][:, :1].repeat(1, num_bands, 1, 1)
    message = refusal(save(state, path), backbone)
    assert "--bands" in message
    assert f"for {num_bands} band" in message
    with_bands = build(path, backbone, bands=[f"b{number}" for number in range(num_bands)])
    assert torch.equal(with_bands.network.state_dict()[stem], state[stem])


@pytest.mark.parametrize("write", ["save_checkpoint", "save_safetensors"])
class TestOwnFiles:
    @pytest.fixture
    def ours(self, tmp_path, write):
        torch.manual_seed(5)
        ending = {"save_checkpoint": "pt", "save_safetensors": "safetensors"}[write]

        def make(backbone="resnet18", **options):
            names = options.pop("class_names", ["field", "sea", "town"])
            model = FineTuneModel(
                backbone, len(names), pretrained=False, image_size=64, seed=7, class_names=names, **options
            )
            getattr(model, write)(tmp_path / f"m.{ending}")
            return model, tmp_path / f"m.{ending}"

        return make

    def test_another_backbone_is_named(self, ours):
        _, file = ours("resnet34")
        message = refusal(file)
        assert "holds a resnet34" in message
        assert "backbone = 'resnet18'" in message
        assert "--backbone resnet34" in message

    @pytest.mark.parametrize("backbone", ["resnet18", "squeezenet1_1"])
    def test_the_head_of_the_same_classes_is_kept(self, ours, backbone):
        model, file = ours(backbone)
        again = build(file, backbone, class_names=["field", "sea", "town"])
        assert "the head is kept, as the 3 classes are the same" in again.weights_report
        assert again.weights_report.endswith("none missing")
        images = torch.randn(2, 3, 64, 64)
        assert torch.equal(again.eval()(images), model.eval()(images))

    def test_the_head_of_the_same_classes_in_another_order_is_reordered(self, ours):
        model, file = ours(class_names=["town", "e\u0301te\u0301", "field"])
        again = build(file, class_names=["field", "town", "\u00e9t\u00e9"])
        assert "put into the order" in again.weights_report
        assert torch.equal(again.network.fc.weight, model.network.fc.weight[[2, 0, 1]])
        assert torch.equal(again.network.fc.bias, model.network.fc.bias[[2, 0, 1]])

    @pytest.mark.parametrize(
        ("options", "part"),
        [
            ({"class_names": ["field", "sea", "wood"]}, "the head is new: 2 of the 3 classes are in the file"),
            (
                {"class_names": ["field", "sea", "town"], "task": "multi_label"},
                "the head is new: that of the file is",
            ),
            ({}, "none missing but the new head"),
        ],
    )
    def test_the_head_of_other_classes_is_new(self, ours, options, part):
        model, file = ours()
        again = build(file, **options)
        assert part in again.weights_report
        assert not torch.equal(again.network.fc.weight, model.network.fc.weight)
        assert torch.equal(again.network.conv1.weight, model.network.conv1.weight)

    def test_bands_are_named_and_kept(self, ours):
        model, file = ours(bands=["nir", "red", "green"])
        message = refusal(file)
        assert "trained on the bands nir, red, green" in message
        assert "--bands nir=" in message
        again = build(file, bands=["nir", "red", "green"])
        assert torch.equal(again.network.conv1.weight, model.network.conv1.weight)


def test_what_is_exported_here_is_read_back(tmp_path):
    torch.manual_seed(6)
    model = FineTuneModel("resnet18", 3, pretrained=False, image_size=64, seed=3)
    export_detr_state_dict(model.get_feature_extractor(), tmp_path / "detr.pth")
    torchvision_weights.write(model, ExportOptions(), tmp_path / "bare.pth")
    torchvision_weights.write(model, ExportOptions(with_head=True), tmp_path / "head.pth")
    safetensors_weights.write(model, ExportOptions(), tmp_path / "w.safetensors")
    for name in ("detr.pth", "bare.pth", "head.pth", "w.safetensors"):
        again = build(tmp_path / name)
        assert "none missing but the new head" in again.weights_report
        own = model.network.state_dict()
        assert all(torch.equal(v, own[k]) for k, v in again.network.state_dict().items() if not k.startswith("fc."))


def test_altered_metadata_of_our_own_are_refused(tmp_path, first):
    told = {"backbone": "resnet18", "class_names": "[", "preprocessing": json.dumps({"image_size": 64})}
    save_file({name: value.clone() for name, value in first.items()}, tmp_path / "w.safetensors", told)
    assert "metadata" in refusal(tmp_path / "w.safetensors", error=CheckpointError)
