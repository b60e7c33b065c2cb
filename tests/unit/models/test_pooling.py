"""``pool = avg``: a ViT's averaged patch tokens in place of its class token."""

import pytest
import torch
from conftest import write_classes

from sat_vg.backbone_finetuning import FinetuneConfig, create_vit, evaluate, finetune
from sat_vg.backbone_finetuning.models.artifact import BEST_MODEL
from sat_vg.backbone_finetuning.models.exports.contract import ExportOptions, load_format
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, ConfigError

NAMES = ("field", "sea")
TIMM = "timm:vit_tiny_patch16_224"


def vit(backbone="vit_b_32", pool="avg", **options):
    return FineTuneModel(backbone, 2, pretrained=False, image_size=64, class_names=NAMES, pool=pool, **options).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def averaging():
    return vit()


@torch.no_grad()
def test_the_classifier_sees_the_mean_of_torchvisions_patch_tokens(averaging, images):
    square = images[..., :64]
    network = averaging.network
    patches = network._process_input(square)
    tokens = network.encoder(torch.cat([network.class_token.expand(2, -1, -1), patches], 1))
    torch.testing.assert_close(averaging.forward_pooled(square), tokens[:, 1:].mean(1))
    torch.testing.assert_close(averaging(square), network.heads(tokens[:, 1:].mean(1)))
    default = vit(pool="default")
    assert torch.equal(default(square), network(square))  # the same random start
    assert not torch.allclose(default.forward_pooled(square), averaging.forward_pooled(square))
    extractor = averaging.get_feature_extractor()
    assert torch.equal(extractor.forward_pooled(images), averaging.forward_pooled(images))
    torch.testing.assert_close(extractor(images)["norm"].mean((2, 3)), averaging.forward_pooled(images))


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_it_is_timms_own_average(images, name):
    pytest.importorskip("timm")
    model, square = vit(f"timm:{name}"), images[..., :64]
    trunk = model.network.trunk
    expected = trunk.pool(trunk.forward_features(square), "avg")
    torch.testing.assert_close(model.forward_pooled(square), expected)
    token = trunk.forward_head(trunk.forward_features(square), pre_logits=True)
    assert not torch.allclose(expected, token)


@torch.no_grad()
def test_the_file_of_a_model_keeps_it(images, tmp_path):
    pytest.importorskip("timm")
    averaging = vit(TIMM)
    averaging.save_checkpoint(tmp_path / "m.pt")
    loaded = FineTuneModel.load_checkpoint(tmp_path / "m.pt")
    assert loaded.row.pool == "avg"
    assert torch.equal(loaded(images), averaging(images))
    same = vit(TIMM, weights=str(tmp_path / "m.pt"))
    assert "the head is kept" in same.weights_report
    assert torch.equal(same(images), averaging(images))
    other = vit(TIMM, weights=str(tmp_path / "m.pt"), pool="default")
    assert "the head is new: that of the file is for pool = avg, and pool = default here" in other.weights_report
    content = torch.load(tmp_path / "m.pt", weights_only=True)
    torch.save({**content, "pool": "max"}, tmp_path / "altered.pt")
    with pytest.raises(CheckpointError, match=r"has the pool 'max', and this sat_vg .* knows default and avg"):
        FineTuneModel.load_checkpoint(tmp_path / "altered.pt")
    del content["pool"]
    torch.save(content, tmp_path / "old.pt")
    assert FineTuneModel.load_checkpoint(tmp_path / "old.pt").row.pool == "default"


def test_exports_compute_it_or_refuse(averaging, images, tmp_path):
    with pytest.raises(ConfigError, match="pool = 'avg': torchvision's vit_b_32 classifies by its class token"):
        load_format("torchvision").write(averaging, ExportOptions(), tmp_path / "m.pth")
    pytest.importorskip("timm")
    model = vit(TIMM)
    made = load_format("safetensors")
    made.write(model, ExportOptions(), tmp_path / "m.safetensors")
    square = images[..., :64]
    with torch.no_grad():
        expected = model(square)
        assert torch.equal(made.read(tmp_path / "m.safetensors", model).run(square)["logits"], expected)
        shown = made.usage(
            model, made.read(tmp_path / "m.safetensors", model).contract, str(tmp_path / "m.safetensors")
        )
        names: dict = {}
        exec(shown, names)
        assert torch.equal(names["model"](square), expected)


def test_what_has_no_class_token_says_so():
    for backbone in ("resnet18", "swin_t"):
        with pytest.raises(ConfigError, match=f"pool = 'avg': {backbone} does not classify by a class token"):
            vit(backbone)
    with pytest.raises(ConfigError, match="pool = 'mean': must be default or avg"):
        vit(pool="mean")
    assert create_vit(
        {"architecture": "vit_b_32", "num_classes": 2, "pretrained": False, "image_size": 32, "pool": "avg"}
    ).row.pool == "avg"  # fmt: skip


def test_networks_of_timm_that_average_or_pool_by_attention_say_so():
    pytest.importorskip("timm")
    for name in ("vit_relpos_small_patch16_224", "mobilenetv3_small_050"):
        with pytest.raises(ConfigError, match=f"pool = 'avg': timm:{name} does not classify by a class token"):
            FineTuneModel(f"timm:{name}", 2, pretrained=False, image_size=64, pool="avg")


def test_a_run_with_it_is_evaluated_as_it_was_trained(tmp_path, monkeypatch, capfd):
    pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
    folder = write_classes(tmp_path / "images")
    config = FinetuneConfig(
        dataset_path=folder, backbone=TIMM, pretrained=False, image_size=32, num_epochs=1, batch_size=6,
        strategy="linear_probe", probe_solver="sgd", pool="avg", num_workers=0, mixed_precision=False, name="avg",
    )  # fmt: skip
    result = finetune(config)
    assert result.model.row.pool == "avg"
    numbers = evaluate("runs/avg", out="evaluated")
    assert numbers["accuracy"] == pytest.approx(result.metrics["val_accuracy"])
    assert (tmp_path / "runs/avg/checkpoints" / BEST_MODEL).exists()
    assert "attention" in (tmp_path / "evaluated/report.html").read_text() or numbers["accuracy"] == 1
