"""The extractor under ``torch.compile``: one graph, the same maps, at two sizes, with gradients."""

import pytest
import torch

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.position_embedding import resample_positions


def test_position_embeddings_are_compiled_for_changing_sizes():
    """Their gradient too: torch's own antialiased resampling has none there."""
    torch._dynamo.reset()
    positions = torch.nn.Parameter(torch.randn(1, 1 + 16, 8))
    compiled = torch.compile(resample_positions, backend="aot_eager", fullgraph=True)
    for grid in ((8, 8), (6, 9), (7, 5)):
        found = compiled(positions, grid, 1)
        torch.testing.assert_close(found, resample_positions(positions, grid, 1))
        found.square().sum().backward()
    assert positions.grad.abs().min() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b_32", "resnet18", "swin_t"])
def test_one_graph_and_the_same_maps(name):
    torch._dynamo.reset()
    size = 64
    extractor = FineTuneModel(name, 3, pretrained=False, image_size=size).get_feature_extractor()
    # Symbolic sizes through torchvision's window arithmetic take minutes to trace.
    dynamic = False if name == "swin_t" else None
    compiled = torch.compile(extractor, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for shape in ((1, 3, size, size), (2, 3, size, size + 26)):
        images = torch.randn(shape)
        for mine, theirs in zip(compiled(images).values(), extractor(images).values(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    sum(m.square().mean() for m in compiled(torch.randn(1, 3, size, size)).values()).backward()
    assert all(p.grad is not None for p in extractor.parameters() if p.requires_grad)


def test_frozen_stages_stay_frozen_when_compiled():
    torch._dynamo.reset()
    extractor = FineTuneModel("resnet18", 3, pretrained=False, image_size=64).get_feature_extractor(
        trainable_stages=["layer4"], freeze_norm=False
    )
    compiled = torch.compile(extractor, backend="aot_eager")
    before = {name: value.clone() for name, value in extractor.state_dict().items()}
    compiled.train()
    for _ in range(2):
        compiled(torch.randn(2, 3, 64, 64))["layer4"].mean().backward()
    moved = {
        name.split(".")[0] for name, value in extractor.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved == {"layer4"}  # its statistics
    assert {name.split(".")[0] for name, p in extractor.named_parameters() if p.grad is not None} == {"layer4"}
